package lease_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/epoch"
	"github.com/cezzis/tokenbroker/internal/lease"
	"github.com/cezzis/tokenbroker/internal/store"
)

var errFailed = errors.New("the store failed")

// failing is a store whose calls fail, by their number from 1.
type failing struct {
	store.Store

	get, acquire, apply    func(number int) error // nil: no call fails
	gets, acquired, writes int
	got                    []time.Time // of the gets
}

func outcomeOf(fails func(int) error, number int) error {
	if fails == nil {
		return nil
	}
	return fails(number)
}

func (f *failing) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	f.gets++
	f.got = append(f.got, time.Now())
	if err := outcomeOf(f.get, f.gets); err != nil {
		return nil, err
	}
	return f.Store.Get(ctx, keys...)
}

func (f *failing) Acquire(ctx context.Context, claim store.Claim) (store.Claimed, error) {
	f.acquired++
	if err := outcomeOf(f.acquire, f.acquired); err != nil {
		return store.Claimed{}, err
	}
	return f.Store.Acquire(ctx, claim)
}

func (f *failing) Apply(ctx context.Context, change store.Change) ([]bool, error) {
	f.writes++
	if err := outcomeOf(f.apply, f.writes); err != nil {
		return nil, err
	}
	return f.Store.Apply(ctx, change)
}

// always returns err for each call.
func always(err error) func(int) error { return func(int) error { return err } }

// first fails the first n calls.
func first(n int) func(int) error {
	return func(number int) error {
		if number <= n {
			return errFailed
		}
		return nil
	}
}

// awaitIn awaits a lease that is always needed.
func awaitIn(ctx context.Context, f *failing, subscriptions *store.Subscriptions) (store.Lease, lease.Outcome) {
	leases := &lease.Leases{Store: f, Subscriptions: subscriptions}
	return leases.Await(ctx, lease.Wanted{
		Key: leaseKey, Counters: &epoch.Counters{Store: f, FenceKey: fences},
		Events: func() []string { return []string{resultKey} },
		Look: func() lease.Look {
			return lease.Look{Keys: []string{resultKey}, Adopt: func(context.Context, []store.Entry) bool { return true }}
		},
	})
}

// A replica takes the store for away after five failures in a row, and at once if the store
// says so.
func TestAwait_failingStore(t *testing.T) {
	everyFifth := func(number int) error {
		if number%5 != 0 {
			return errFailed
		}
		return nil
	}
	for name, tt := range map[string]struct {
		get, acquire func(int) error
		held         bool
		outcome      lease.Outcome
		gets, claims int // 0: any number
	}{
		"away":                     {get: always(store.ErrAway), outcome: lease.StoreAway, gets: 1},
		"reads fail five times":    {get: always(errFailed), outcome: lease.StoreAway, gets: 5},
		"reads fail four times":    {get: first(4), outcome: lease.Acquired, gets: 5, claims: 1},
		"claims fail five times":   {acquire: always(errFailed), outcome: lease.StoreAway, claims: 5},
		"claims fail four times":   {acquire: first(4), outcome: lease.Acquired, claims: 5},
		"four of five reads, held": {get: everyFifth, held: true, outcome: lease.Acquired},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &failing{Store: store.NewMemory(store.MemoryConfig{}), get: tt.get, acquire: tt.acquire}
				if tt.held {
					claim(t, f.Store, "another")
				}
				granted, outcome := awaitIn(t.Context(), f, store.NewSubscriptions())
				if outcome != tt.outcome || (granted.Fence > 0) != (outcome == lease.Acquired) {
					t.Errorf("outcome %v with %+v, want %v", outcome, granted, tt.outcome)
				}
				if tt.gets > 0 && f.gets != tt.gets || tt.claims > 0 && f.acquired != tt.claims {
					t.Errorf("%d reads and %d claims, want %d and %d", f.gets, f.acquired, tt.gets, tt.claims)
				}
			})
		})
	}
}

func TestAwait_contextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &failing{Store: store.NewMemory(store.MemoryConfig{})}
		claim(t, f.Store, "another")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, outcome := awaitIn(ctx, f, store.NewSubscriptions()); outcome != lease.ContextEnd {
			t.Errorf("outcome %v", outcome)
		}
	})
}

// Without events the store is read seldom, and less and less often.
func TestAwait_pauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &failing{Store: store.NewMemory(store.MemoryConfig{})}
		claim(t, f.Store, "another")
		begun := time.Now()
		if _, outcome := awaitIn(t.Context(), f, store.NewSubscriptions()); outcome != lease.Acquired {
			t.Errorf("outcome %v", outcome)
		}
		if waited := time.Since(begun); waited < 3*time.Second || waited > 3400*time.Millisecond {
			t.Errorf("the lease of a dead replica was acquired after %v", waited)
		}
		pause := func(n int) time.Duration { return f.got[n].Sub(f.got[n-1]) }
		if p := pause(1); p < 12*time.Millisecond || p > 38*time.Millisecond {
			t.Errorf("the first pause is %v", p)
		}
		if p := pause(len(f.got) - 1); p < 125*time.Millisecond || p > 375*time.Millisecond {
			t.Errorf("the last pause is %v", p)
		}
	})
}

func TestRenew_lost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{Store: store.NewMemory(store.MemoryConfig{})}
		held := claim(t, s.Store, "holder").Lease
		if _, err := s.Store.Apply(t.Context(), store.Change{Release: held}); err != nil {
			t.Fatal(err)
		}
		stop := (&lease.Leases{Store: s}).Renew(t.Context(), held)
		defer stop()
		time.Sleep(10 * time.Second)
		if got := s.renewals.Load(); got != 1 {
			t.Errorf("a lost lease was renewed %d times", got)
		}
	})
}

func TestWrite(t *testing.T) {
	put := func(number uint64) store.Change {
		return store.Change{Puts: []store.Put{{Key: resultKey, Number: number, Value: []byte("a"), TTL: time.Hour}}}
	}
	for name, tt := range map[string]struct {
		change store.Change
		fails  func(int) error
		newest bool
		writes int
	}{
		"the newest":             {put(8), nil, true, 1},
		"not the newest":         {put(7), nil, false, 1},
		"a release":              {store.Change{Release: store.Lease{Key: leaseKey, Owner: "a", Fence: 1}}, nil, true, 1},
		"after a failure":        {put(7), first(1), false, 2},
		"a store that fails":     {put(7), always(errFailed), true, 2},
		"a store that is away":   {put(7), always(store.ErrAway), true, 1},
		"a store that has ended": {put(7), always(store.ErrClosed), true, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &failing{Store: store.NewMemory(store.MemoryConfig{}), apply: tt.fails}
				if _, err := f.Store.Apply(t.Context(), put(7)); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				cancel() // the writes of a holder do not end with its context
				if newest := (&lease.Leases{Store: f}).Write(ctx, tt.change); newest != tt.newest || f.writes != tt.writes {
					t.Errorf("newest %v after %d writes, want %v after %d", newest, f.writes, tt.newest, tt.writes)
				}
			})
		})
	}
}
