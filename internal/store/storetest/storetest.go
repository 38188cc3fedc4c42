// Package storetest is the conformance suite of [store.Store]: its contract as tests
// that every implementation and every decorator must pass.
package storetest

import (
	"context"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

// Store is a store under test.
type Store interface {
	store.Store
	io.Closer
}

// Harness makes the store under test and moves its time.
type Harness struct {
	// Open returns an empty store. The suite closes it.
	Open func(t *testing.T) Store
	// Advance lets time pass for the store: time.Sleep in a bubble or for a store
	// without a movable clock, else a call that moves the clock.
	Advance func(d time.Duration)
	// Bubble runs each test in a testing/synctest bubble.
	Bubble bool
	// RealTime means that advancing takes as long as the time that passes. The random
	// walk, which lets minutes pass, then omits expiry, and several tests run at once, on
	// stores that must be independent of each other.
	RealTime bool
}

// Run tests a store against the contract.
func Run(t *testing.T, harness Harness) {
	// A list that lost its entries would pass as well.
	const floor = 45
	all := slices.Concat(valueTests(), leaseTests(), counterTests(), eventTests(), lifecycleTests(), raceTests(), walkTests())
	if len(all) < floor {
		t.Fatalf("the suite has %d tests, expected at least %d", len(all), floor)
	}
	atOnce := 1
	if harness.RealTime {
		atOnce = 4
	}
	turns := make(chan struct{}, atOnce)
	var running sync.WaitGroup
	defer running.Wait()
	for _, test := range all {
		turns <- struct{}{}
		running.Go(func() {
			defer func() { <-turns }()
			harness.test(t, test)
		})
	}
}

func (h Harness) test(t *testing.T, test namedTest) {
	t.Run(test.name, func(t *testing.T) {
		body := func(t *testing.T) {
			s := h.Open(t)
			defer func() {
				if err := s.Close(); err != nil {
					t.Errorf("closing: %v", err)
				}
			}()
			test.run(&tester{T: t, Harness: h, store: s})
		}
		if h.Bubble {
			synctest.Test(t, body)
		} else {
			body(t)
		}
	})
}

type namedTest struct {
	name string
	run  func(t *tester)
}

// tester is a test with its store. Its methods fail the test if the store returns an
// error.
type tester struct {
	*testing.T
	Harness

	store Store
}

// life is a lifetime that no test outlives.
const life = time.Hour

// Keys of one hash tag, as a caller would name them.
const (
	keyA    = "tb{client}a"
	keyB    = "tb{client}b"
	leaseA  = "tb{client}a:lease"
	leaseB  = "tb{client}b:lease"
	fences  = "tb{client}fences"
	epoch   = "tb{client}epoch"
	another = "tb{other}epoch"
)

func (t *tester) get(key string) store.Entry {
	t.Helper()
	entries, err := t.store.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("Get(%q): %v", key, err)
	}
	if len(entries) != 1 {
		t.Fatalf("Get of one key returned %d entries", len(entries))
	}
	return entries[0]
}

// expect checks the entry of a key. Number 0: no entry.
func (t *tester) expect(key string, number uint64, value string) {
	t.Helper()
	if got := t.get(key); got.Number != number || string(got.Value) != value {
		t.Errorf("%s holds %d %q, want %d %q", key, got.Number, got.Value, number, value)
	}
}

func (t *tester) apply(change store.Change) []bool {
	t.Helper()
	applied, err := t.store.Apply(t.Context(), change)
	if err != nil {
		t.Fatalf("Apply: %v", err)
	}
	if len(applied) != len(change.Puts) {
		t.Fatalf("Apply of %d puts reported on %d", len(change.Puts), len(applied))
	}
	return applied
}

func (t *tester) put(key string, number uint64, value string, ttl time.Duration) (applied bool) {
	t.Helper()
	return t.apply(store.Change{Puts: []store.Put{{Key: key, Number: number, Value: []byte(value), TTL: ttl}}})[0]
}

func (t *tester) acquire(claim store.Claim) (store.Lease, bool) {
	t.Helper()
	claimed := t.claim(claim)
	return claimed.Lease, claimed.Acquired
}

func (t *tester) claim(claim store.Claim) store.Claimed {
	t.Helper()
	claimed, err := t.store.Acquire(t.Context(), claim)
	if err != nil {
		t.Fatalf("Acquire(%+v): %v", claim, err)
	}
	want := store.Lease{}
	if claimed.Acquired {
		want = store.Lease{Key: claim.Key, Owner: claim.Owner, Fence: max(1, claimed.Lease.Fence)}
	}
	if claimed.Lease != want {
		t.Fatalf("Acquire(%+v) granted %+v", claim, claimed)
	}
	if len(claimed.Entries) != len(claim.Read) {
		t.Fatalf("Acquire(%+v) read %d keys", claim, len(claimed.Entries))
	}
	return claimed
}

// mustAcquire acquires a lease that must be free.
func (t *tester) mustAcquire(key, owner string, ttl time.Duration) store.Lease {
	t.Helper()
	lease, acquired := t.acquire(store.Claim{Key: key, Owner: owner, Counter: fences, TTL: ttl})
	if !acquired {
		t.Fatalf("%s cannot acquire %s, which is free", owner, key)
	}
	return lease
}

// mustBeHeld checks that a newcomer does not get the lease.
func (t *tester) mustBeHeld(key string) {
	t.Helper()
	if _, acquired := t.acquire(store.Claim{Key: key, Owner: "newcomer", Counter: fences, TTL: life}); acquired {
		t.Fatalf("%s was granted though it is held", key)
	}
}

func (t *tester) release(lease store.Lease) {
	t.Helper()
	t.apply(store.Change{Release: lease})
}

func (t *tester) renew(lease store.Lease, ttl time.Duration) (held bool) {
	t.Helper()
	held, err := t.store.Renew(t.Context(), lease, ttl)
	if err != nil {
		t.Fatalf("Renew(%+v): %v", lease, err)
	}
	return held
}

func (t *tester) raise(key string, floor, by uint64) uint64 {
	t.Helper()
	count, err := t.store.Raise(t.Context(), key, floor, by)
	if err != nil {
		t.Fatalf("Raise(%q, %d, %d): %v", key, floor, by, err)
	}
	return count
}

// subscribe returns events once they flow: a subscription may take a while to become
// active.
func (t *tester) subscribe(ctx context.Context) <-chan string {
	t.Helper()
	events := t.store.Subscribe(ctx)
	for range 500 {
		t.raise("tb{probe}", 0, 1)
		if _, told := receive(events, 20*time.Millisecond); told {
			t.drain(events)
			return events
		}
	}
	t.Fatal("no event came")
	return nil
}

// drain discards the remaining events of the probes of subscribe.
func (t *tester) drain(events <-chan string) {
	t.Helper()
	for {
		key, told := receive(events, 200*time.Millisecond)
		if !told {
			return
		}
		if key != "tb{probe}" {
			t.Fatalf("told of %q, which nobody changed", key)
		}
	}
}

// awaitEvent waits until the subscriber gets an event of the key.
func (t *tester) awaitEvent(events <-chan string, key string) {
	t.Helper()
	for {
		got, told := receive(events, 5*time.Second)
		if !told {
			t.Fatalf("no event tells of %s", key)
		}
		if got == key {
			return
		}
	}
}

func receive(events <-chan string, patience time.Duration) (key string, ok bool) {
	select {
	case key, ok = <-events:
		return key, ok
	case <-time.After(patience):
		return "", false
	}
}

// awaitEnd waits until the channel is closed.
func (t *tester) awaitEnd(events <-chan string) {
	t.Helper()
	deadline := time.After(5 * time.Second)
	for {
		select {
		case _, open := <-events:
			if !open {
				return
			}
		case <-deadline:
			t.Fatal("the subscription did not end")
		}
	}
}
