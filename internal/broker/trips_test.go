package broker_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/store"
)

// tripping records the calls of a store, each of which is a trip to a server.
type tripping struct {
	store.Store

	mu    sync.Mutex
	trips []string
}

func (s *tripping) trip(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trips = append(s.trips, name)
}

// taken returns the trips since the last call.
func (s *tripping) taken() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.trips
	s.trips = nil
	return taken
}

func (s *tripping) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	s.trip("get")
	return s.Store.Get(ctx, keys...)
}

func (s *tripping) Acquire(ctx context.Context, claim store.Claim) (store.Claimed, error) {
	s.trip("acquire")
	return s.Store.Acquire(ctx, claim)
}

func (s *tripping) Renew(ctx context.Context, lease store.Lease, ttl time.Duration) (bool, error) {
	s.trip("renew")
	return s.Store.Renew(ctx, lease, ttl)
}

func (s *tripping) Apply(ctx context.Context, change store.Change) ([]bool, error) {
	s.trip("apply")
	return s.Store.Apply(ctx, change)
}

func (s *tripping) Raise(ctx context.Context, key string, floor, by uint64) (uint64, error) {
	s.trip("raise")
	return s.Store.Raise(ctx, key, floor, by)
}

// A fetch looks, claims its lease and publishes: three trips. Another replica that wants
// the token needs one.
func TestFetchTakesThreeTripsToTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 0)
		var counted []*tripping
		r.seal = func(way store.Store) store.Store {
			counted = append(counted, &tripping{Store: way})
			return counted[len(counted)-1]
		}
		r.add("right")
		r.add("right")
		first, second := r.all[0], r.all[1]
		get := func(from *replica, audience string) broker.Origin {
			answer, err := from.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audience})
			if err != nil {
				t.Fatal(err)
			}
			return answer.Origin
		}
		get(first, audience) // proves the secret
		synctest.Wait()
		time.Sleep(time.Second) // let it become the current one
		counted[0].taken()
		counted[1].taken()
		if origin := get(first, audienceNo(1)); origin != broker.OriginFetched {
			t.Errorf("the token is from %v", origin)
		}
		if trips := counted[0].taken(); !slices.Equal(trips, []string{"get", "acquire", "apply"}) {
			t.Errorf("the trips of a fetch are %q", trips)
		}
		if origin := get(second, audienceNo(1)); origin != broker.OriginShared {
			t.Errorf("the token is from %v", origin)
		}
		if trips := counted[1].taken(); !slices.Equal(trips, []string{"get"}) {
			t.Errorf("the trips of another replica are %q", trips)
		}
	})
}
