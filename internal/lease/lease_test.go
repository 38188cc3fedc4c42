package lease_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/epoch"
	"github.com/cezzis/tokenbroker/internal/lease"
	"github.com/cezzis/tokenbroker/internal/store"
)

const (
	leaseKey  = "{c}lease"
	fences    = "{c}fences"
	resultKey = "{c}result"
)

// watched records the calls of a store.
type watched struct {
	store.Store

	beforeClaim func() // nil: nothing happens then

	mu    sync.Mutex
	calls []string
}

func (w *watched) called(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, name)
}

func (w *watched) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	w.called("get")
	return w.Store.Get(ctx, keys...)
}

func (w *watched) Acquire(ctx context.Context, claim store.Claim) (store.Claimed, error) {
	w.called("acquire")
	if w.beforeClaim != nil {
		w.beforeClaim()
	}
	return w.Store.Acquire(ctx, claim)
}

func (w *watched) Apply(ctx context.Context, change store.Change) ([]bool, error) {
	w.called("apply")
	return w.Store.Apply(ctx, change)
}

// await waits for a lease that is needed as long as the store has no result.
func await(t *testing.T, w *watched) (store.Lease, lease.Outcome) {
	t.Helper()
	return awaitWith(t, w, store.NewSubscriptions())
}

func awaitWith(t *testing.T, w *watched, subscriptions *store.Subscriptions) (store.Lease, lease.Outcome) {
	t.Helper()
	leases := &lease.Leases{Store: w, Subscriptions: subscriptions}
	return leases.Await(t.Context(), lease.Wanted{
		Key: leaseKey, Counters: &epoch.Counters{Store: w, FenceKey: fences}, Events: func() []string { return []string{resultKey} },
		Look: func() lease.Look {
			return lease.Look{Keys: []string{resultKey}, Adopt: func(_ context.Context, entries []store.Entry) (needed bool) {
				return entries[0].Number == 0
			}}
		},
	})
}

func publish(t *testing.T, s store.Store) {
	t.Helper()
	if _, err := s.Apply(t.Context(), store.Change{Puts: []store.Put{{Key: resultKey, Number: 1, Value: []byte("result"), TTL: time.Hour}}}); err != nil {
		t.Error(err)
	}
}

func claim(t *testing.T, s store.Store, owner string) store.Claimed {
	t.Helper()
	claimed, err := s.Acquire(t.Context(), store.Claim{Key: leaseKey, Owner: owner, Counter: fences, TTL: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return claimed
}

// Each case counts the calls of the store.
func TestAwait(t *testing.T) {
	for name, tt := range map[string]struct {
		held      bool // by another replica
		published bool // before the first look
		meanwhile bool // another replica publishes between the look and the claim
		outcome   lease.Outcome
		calls     []string
	}{
		"free":                                  {outcome: lease.Acquired, calls: []string{"get", "acquire"}},
		"not needed":                            {published: true, outcome: lease.NotNeeded, calls: []string{"get"}},
		"published before the claim":            {meanwhile: true, outcome: lease.NotNeeded, calls: []string{"get", "acquire", "apply"}},
		"published while the lease is held":     {held: true, meanwhile: true, outcome: lease.NotNeeded, calls: []string{"get", "acquire"}},
		"not needed although the lease is held": {held: true, published: true, outcome: lease.NotNeeded, calls: []string{"get"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				memory := store.NewMemory(store.MemoryConfig{})
				w := &watched{Store: memory}
				if tt.held {
					claim(t, memory, "another")
				}
				if tt.published {
					publish(t, memory)
				}
				if tt.meanwhile {
					w.beforeClaim = func() { publish(t, memory) }
				}
				begun := time.Now()
				granted, outcome := await(t, w)
				if outcome != tt.outcome || (granted.Fence > 0) != (outcome == lease.Acquired) {
					t.Errorf("outcome %v with %+v, want %v", outcome, granted, tt.outcome)
				}
				if !slices.Equal(w.calls, tt.calls) {
					t.Errorf("calls of the store: %q, want %q", w.calls, tt.calls)
				}
				if waited := time.Since(begun); waited > 0 {
					t.Errorf("it waited %v", waited)
				}
				if free := claim(t, memory, "newcomer").Acquired; free != (!tt.held && outcome != lease.Acquired) {
					t.Errorf("afterwards the lease is free: %v", free)
				}
			})
		})
	}
}

// A replica that waits is woken by an event, and looks again by itself if the event is lost.
func TestAwait_waits(t *testing.T) {
	for name, tt := range map[string]struct {
		event  bool
		within time.Duration
	}{
		"event":      {true, 0},
		"event lost": {false, 500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				memory := store.NewMemory(store.MemoryConfig{})
				claim(t, memory, "another")
				w := &watched{Store: memory}
				subscriptions := store.NewSubscriptions()
				published := make(chan time.Time, 1)
				go func() {
					time.Sleep(2 * time.Second) // shorter than the lease
					publish(t, memory)
					published <- time.Now()
					if tt.event {
						subscriptions.Notify(resultKey)
					}
				}()
				_, outcome := awaitWith(t, w, subscriptions)
				if waited := time.Since(<-published); outcome != lease.NotNeeded || waited > tt.within {
					t.Errorf("outcome %v, %v after the result", outcome, waited)
				}
			})
		})
	}
}

// slow is a store that takes a while to renew a lease, whatever the context says.
type slow struct {
	store.Store

	takes             time.Duration
	renewals, running atomic.Int32
	fail              atomic.Bool
}

func (s *slow) Renew(ctx context.Context, held store.Lease, ttl time.Duration) (bool, error) {
	s.renewals.Add(1)
	s.running.Add(1)
	defer s.running.Add(-1)
	time.Sleep(s.takes)
	if s.fail.Load() {
		return false, errors.New("the store did not respond")
	}
	return s.Store.Renew(ctx, held, ttl)
}

// renewed starts to renew a lease that another replica would get in 3 s.
func renewed(t *testing.T, s *slow) (stop func()) {
	t.Helper()
	s.Store = store.NewMemory(store.MemoryConfig{})
	return (&lease.Leases{Store: s}).Renew(t.Context(), claim(t, s.Store, "holder").Lease)
}

func TestRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{takes: 100 * time.Millisecond}
		stop := renewed(t, s)
		time.Sleep(20 * time.Second)
		if got := s.renewals.Load(); got != 18 { // each 1.1 s
			t.Errorf("%d renewals in 20 s", got)
		}
		if claim(t, s.Store, "newcomer").Acquired {
			t.Error("the lease was lost")
		}
		stop()
		before := s.renewals.Load()
		time.Sleep(10 * time.Second)
		if got := s.renewals.Load(); got != before {
			t.Errorf("%d renewals after the stop", got-before)
		}
	})
}

func TestRenew_stopWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{takes: 700 * time.Millisecond}
		stop := renewed(t, s)
		time.Sleep(1500 * time.Millisecond) // in the middle of a renewal
		if s.running.Load() != 1 {
			t.Fatal("no renewal is under way")
		}
		stop()
		if s.running.Load() != 0 {
			t.Error("stop did not wait for the renewal")
		}
	})
}

func TestRenew_failuresAndLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{}
		stop := renewed(t, s)
		defer stop()
		s.fail.Store(true)
		time.Sleep(2100 * time.Millisecond)
		if got := s.renewals.Load(); got != 5 { // after 1 s, and then each 250 ms
			t.Errorf("%d attempts in 2.1 s while the store fails", got)
		}
		s.fail.Store(false)
		time.Sleep(3 * time.Second)
		if claim(t, s.Store, "newcomer").Acquired {
			t.Error("the lease was lost although the store is back")
		}
		s.fail.Store(true)
		time.Sleep(5 * time.Second)
		s.fail.Store(false)
		time.Sleep(time.Second)
		before := s.renewals.Load()
		time.Sleep(10 * time.Second)
		if got := s.renewals.Load(); got != before {
			t.Errorf("%d renewals of a lost lease", got-before)
		}
	})
}

// A fetch that is shorter than the renewal interval starts no goroutine for it.
func TestRenewStartsNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{}
		before := runtime.NumGoroutine()
		stop := renewed(t, s)
		synctest.Wait()
		if got := runtime.NumGoroutine(); got != before {
			t.Errorf("%d goroutines more", got-before)
		}
		stop()
	})
}
