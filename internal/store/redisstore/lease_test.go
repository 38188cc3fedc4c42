package redisstore_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
)

// A lease that Redis would keep for an hour more (its key lives a day longer), because its clock was set back, is
// free after the lifetime that a claim asks for.
func TestProlongedRedisLeaseEnds(t *testing.T) {
	server := redistest.Start(t, redistest.Options{})
	r := openPatient(t, redisstore.Config{Addresses: []string{server.Addr()}})
	claim := store.Claim{Key: "tb{c}lease", Owner: "died", Counter: "tb{c}fences", TTL: time.Second}
	for _, prolong := range [][]string{{"PEXPIRE", "tb1:tb{c}lease", "90000000"}, {"PERSIST", "tb1:tb{c}lease"}} {
		if _, acquired, err := claimLease(t.Context(), r, claim); err != nil || !acquired {
			t.Fatal(acquired, err)
		}
		server.CLI(prolong...)
		claim.Owner += " again"
		for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			lease, acquired, err := claimLease(t.Context(), r, claim)
			if err != nil {
				t.Fatal(err)
			}
			if acquired {
				if _, err := r.Apply(t.Context(), store.Change{Release: lease}); err != nil {
					t.Fatal(err)
				}
				break
			}
			if time.Since(begun) > patience {
				t.Fatalf("%s: the lease stays held", strings.Join(prolong, " "))
			}
		}
	}
}

// claimLease returns the lease of a claim, and whether it was granted.
func claimLease(ctx context.Context, s store.Store, claim store.Claim) (store.Lease, bool, error) {
	claimed, err := s.Acquire(ctx, claim)
	return claimed.Lease, claimed.Acquired, err
}
