package fleet_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/store"
)

// counted counts the calls of a store; each is one round trip.
type counted struct {
	store.Store

	reads, applies, others atomic.Int64
	down                   atomic.Bool
}

func (c *counted) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	c.reads.Add(1)
	if c.down.Load() {
		return nil, store.ErrAway
	}
	return c.Store.Get(ctx, keys...)
}

func (c *counted) Apply(ctx context.Context, change store.Change) ([]bool, error) {
	c.applies.Add(1)
	if c.down.Load() {
		return nil, store.ErrNoWrites
	}
	return c.Store.Apply(ctx, change)
}

func (c *counted) Acquire(ctx context.Context, claim store.Claim) (store.Claimed, error) {
	c.others.Add(1)
	return c.Store.Acquire(ctx, claim)
}

func (c *counted) Renew(ctx context.Context, lease store.Lease, ttl time.Duration) (bool, error) {
	c.others.Add(1)
	return c.Store.Renew(ctx, lease, ttl)
}

func (c *counted) Raise(ctx context.Context, key string, floor, by uint64) (uint64, error) {
	c.others.Add(1)
	return c.Store.Raise(ctx, key, floor, by)
}

// taken returns the counts since the last call.
func (c *counted) taken() (reads, applies, others int64) {
	return c.reads.Swap(0), c.applies.Swap(0), c.others.Swap(0)
}

func TestStatusCostsTheStoreOneWriteInTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := store.NewMemory(store.MemoryConfig{})
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer stop()
		var stores []*counted
		for _, id := range []fleet.Name{"a", "b", "c"} {
			s := &counted{Store: memory}
			stores = append(stores, s)
			running.Go(func() { join(t, s, id).Run(ctx) })
			synctest.Wait()
			if reads, applies, others := s.taken(); reads > 3 || applies != 1 || others > 2 {
				t.Errorf("the start of %s takes %d reads, %d writes of its status and %d others", id, reads, applies, others)
			}
		}
		expectCost := func(what string) {
			t.Helper()
			for range 30 {
				time.Sleep(fleet.Interval)
				synctest.Wait()
				for i, s := range stores {
					if reads, applies, others := s.taken(); reads > 1 || applies > 1 || others > 0 {
						t.Fatalf("%s, replica %d takes %d reads, %d writes of its status and %d others in 10 s", what, i, reads, applies, others)
					}
				}
			}
		}
		expectCost("normally")
		stores[0].down.Store(true)
		expectCost("while the store is away from one")
	})
}

// Each event is a message to each replica.
func TestStatusIsNoEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := store.NewMemory(store.MemoryConfig{})
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for _, id := range []fleet.Name{"a", "b", "c"} {
			running.Go(func() { join(t, memory, id).Run(ctx) })
		}
		synctest.Wait()
		events := memory.Subscribe(t.Context())
		time.Sleep(5 * time.Minute)
		stop()
		running.Wait()
		if len(events) > 0 {
			t.Errorf("%d events in 5 minutes", len(events))
		}
	})
}

// Replicas that start together take their slots with a few trips each.
func TestStatusOfManyReplicasThatStartTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &counted{Store: store.NewMemory(store.MemoryConfig{})}
		const n = 200
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for i := range n {
			running.Go(func() { join(t, slow{s}, fleet.Name(fmt.Sprint(i))).Run(ctx) })
		}
		time.Sleep(2 * fleet.Interval)
		_, _, others := s.taken()
		stop()
		running.Wait()
		if others > 16*n {
			t.Errorf("%d replicas make %d trips to take their slots", n, others)
		}
	})
}

// slow is a store on a network.
type slow struct{ *counted }

func (s slow) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	time.Sleep(time.Millisecond)
	return s.counted.Get(ctx, keys...)
}

// Replicas beyond the number of slots look for one as seldom as they look at the fleet.
func TestStatusOfMoreReplicasThanSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := store.NewMemory(store.MemoryConfig{})
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for i := range fleet.MaxSlots {
			r := join(t, memory, fleet.Name(fmt.Sprint(i)))
			r.publish(t)
			running.Go(func() { r.Run(ctx) })
		}
		s := &counted{Store: memory}
		running.Go(func() { join(t, s, "one more").Run(ctx) })
		time.Sleep(10 * time.Minute)
		reads, applies, others := s.taken()
		stop()
		running.Wait()
		if once := int64(fleet.MaxSlots/16 + 1); reads > 2*once || applies+others > 0 {
			t.Errorf("%d reads, %d writes and %d others in 10 minutes; want at most %d reads", reads, applies, others, 2*once)
		}
	})
}

func TestManyReadersCostTheStoreOneReadingInASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &counted{Store: store.NewMemory(store.MemoryConfig{})}
		a := join(t, s, "a")
		a.publish(t)
		s.taken()
		view := fleet.Cached(func(ctx context.Context) fleet.View {
			time.Sleep(100 * time.Millisecond) // the store is slow
			return a.Read(ctx, "self")
		})
		for second := range 5 {
			var readers sync.WaitGroup
			for range 50 {
				readers.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
					defer cancel()
					if got := view(ctx); len(got.Members) != 1 {
						t.Errorf("%d other replicas", len(got.Members))
					}
				})
			}
			readers.Wait()
			if reads, applies, others := s.taken(); reads != 2 || applies+others != 0 {
				t.Errorf("second %d: %d reads, %d writes; want those of one reader, 2 and 0", second, reads, applies+others)
			}
			time.Sleep(fleet.CacheTime)
		}
	})
}
