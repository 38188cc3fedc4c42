package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		Open:    func(*testing.T) storetest.Store { return store.NewMemory(store.MemoryConfig{}) },
		Advance: time.Sleep,
		Bubble:  true,
	})
}

func put(key string, size int, ttl time.Duration) store.Put {
	return store.Put{Key: key, Number: 1, Value: []byte(strings.Repeat("v", size)), TTL: ttl}
}

func apply(t *testing.T, m *store.Memory, puts ...store.Put) error {
	t.Helper()
	_, err := m.Apply(t.Context(), store.Change{Puts: puts})
	return err
}

func holds(t *testing.T, m *store.Memory, keys ...string) (held []string) {
	t.Helper()
	entries, err := m.Get(t.Context(), keys...)
	if err != nil {
		t.Fatal(err)
	}
	for i, entry := range entries {
		if entry.Number != 0 {
			held = append(held, keys[i])
		}
	}
	return held
}

func TestFullMemoryDropsTheSoonestExpiry(t *testing.T) {
	m := store.NewMemory(store.MemoryConfig{MaxBytes: 8000})
	for _, p := range []store.Put{put("soon", 1000, time.Minute), put("later", 1000, time.Hour), put("never", 1000, 0), put("sooner", 1000, time.Second)} {
		if err := apply(t, m, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := apply(t, m, put("large", 5000, time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(holds(t, m, "sooner", "soon", "later", "never", "large")); got != "[later never large]" {
		t.Errorf("kept %v", got)
	}
}

func TestFullMemoryKeepsLastingValues(t *testing.T) {
	m := store.NewMemory(store.MemoryConfig{MaxBytes: 3700})
	claim := store.Claim{Key: "lease", Owner: "a", Counter: "fences", TTL: time.Hour}
	lease, _, err := claimLease(t.Context(), m, claim)
	if err != nil {
		t.Fatal(err)
	}
	if err := apply(t, m, put("never", 3000, 0)); err != nil {
		t.Fatal(err)
	}
	if err := apply(t, m, put("small", 10, time.Hour), put("large", 3000, time.Hour)); !errors.Is(err, store.ErrFull) {
		t.Errorf("a write without room: %v", err)
	}
	if _, err := m.Acquire(t.Context(), store.Claim{Key: strings.Repeat("k", 250), Owner: strings.Repeat("o", 250), Counter: "fences", TTL: time.Hour}); !errors.Is(err, store.ErrFull) {
		t.Errorf("a lease without room: %v", err)
	}
	if _, err := m.Raise(t.Context(), strings.Repeat("e", 256), 0, 1); !errors.Is(err, store.ErrFull) {
		t.Errorf("a counter without room: %v", err)
	}
	if got := fmt.Sprint(holds(t, m, "never", "small", "large", "fences")); got != "[never fences]" {
		t.Errorf("holds %v", got)
	}
	if held, err := m.Renew(t.Context(), lease, time.Hour); err != nil || !held {
		t.Errorf("a full store lost a lease: %v, %v", held, err)
	}
	if err := apply(t, m, store.Put{Key: "never", Number: 2, Value: []byte(strings.Repeat("w", 3000))}); err != nil {
		t.Errorf("overwriting in place needs no room: %v", err)
	}
}

// The limit is so low that the writes succeed only if what expired was freed.
func TestMemoryFreesExpiredValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := store.NewMemory(store.MemoryConfig{MaxBytes: 2000})
		acquire := func(key, owner string, ttl time.Duration) store.Lease {
			t.Helper()
			lease, _, err := claimLease(t.Context(), m, store.Claim{Key: key, Owner: owner, Counter: "fences", TTL: ttl})
			if err != nil {
				t.Fatalf("%s: %v", key, err)
			}
			return lease
		}
		first := acquire("renewed", "a", time.Second)
		for i := range 4 {
			acquire(fmt.Sprintf("large lease %d", i), strings.Repeat("o", 250), 2*time.Second)
		}
		if _, err := m.Renew(t.Context(), first, time.Hour); err != nil { // now it is the last to go
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		for i := range 1000 {
			acquire(fmt.Sprintf("lease %d", i), "a", time.Second)
			if err := apply(t, m, put(fmt.Sprintf("value %d", i), 1000, time.Second)); err != nil {
				t.Fatalf("after %d values: %v", i, err)
			}
			time.Sleep(time.Second)
		}
	})
}

// claimLease returns the lease of a claim, and whether it was granted.
func claimLease(ctx context.Context, s store.Store, claim store.Claim) (store.Lease, bool, error) {
	claimed, err := s.Acquire(ctx, claim)
	return claimed.Lease, claimed.Acquired, err
}
