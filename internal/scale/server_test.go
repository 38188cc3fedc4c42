package scale_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

// The costs of the simulated server are about those that TestRedisCosts measured.
const (
	// roundTrip is the time on the network, there and back, of a trip without a queue.
	roundTrip = 500 * time.Microsecond
	// tripCost and messageCost are the CPU time of Redis for a trip and for a message to
	// one subscriber.
	tripCost    = 30 * time.Microsecond
	messageCost = 2 * time.Microsecond
)

// server simulates a Redis: a store in memory that handles one call after the other, so
// that calls wait in a queue if many arrive at once.
type server struct {
	memory *store.Memory
	// deaf drops all events, as if each message were lost.
	deaf atomic.Bool

	mu          sync.Mutex
	free        time.Time // when the queue is empty
	subscribers int
	counts      counts
}

// counts are the work of a server.
type counts struct {
	trips, changes, messages, bytes int64
	busy, slowest                   time.Duration
}

func (c counts) since(before counts) counts {
	c.trips -= before.trips
	c.changes -= before.changes
	c.messages -= before.messages
	c.bytes -= before.bytes
	c.busy -= before.busy
	return c
}

// newServer returns a server that counts its changes until ctx ends.
func newServer(ctx context.Context) *server {
	s := &server{memory: store.NewMemory(store.MemoryConfig{})}
	changes := s.memory.Subscribe(ctx)
	go func() {
		for range changes {
			s.mu.Lock()
			messages := s.subscribers
			s.counts.changes++
			s.counts.messages += int64(messages)
			s.occupy(time.Duration(messages) * messageCost)
			s.mu.Unlock()
		}
	}()
	return s
}

// counted returns the counts so far.
func (s *server) counted() counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

// occupy adds work to the queue and returns when it is done. The caller holds s.mu.
func (s *server) occupy(work time.Duration) time.Time {
	if now := time.Now(); s.free.Before(now) {
		s.free = now
	}
	s.free = s.free.Add(work)
	s.counts.busy += work
	return s.free
}

// arrive waits until the server handles a call.
func (s *server) arrive(ctx context.Context) error {
	sent := time.Now()
	if err := pause(ctx, transit()); err != nil {
		return err
	}
	s.mu.Lock()
	s.counts.trips++
	done := s.occupy(tripCost)
	s.counts.slowest = max(s.counts.slowest, done.Sub(sent))
	s.mu.Unlock()
	return pause(ctx, time.Until(done))
}

// transit is the time of one way on the network.
func transit() time.Duration { return roundTrip/4 + rand.N(roundTrip/2) }

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// link is the connection of one replica to the server.
type link struct{ *server }

func (l link) Get(ctx context.Context, keys ...string) (entries []store.Entry, err error) {
	err = l.trip(ctx, func() (size int, err error) {
		entries, err = l.memory.Get(ctx, keys...)
		for i, entry := range entries {
			size += len(keys[i]) + len(entry.Value)
		}
		return size, err
	})
	return entries, err
}

func (l link) Acquire(ctx context.Context, claim store.Claim) (claimed store.Claimed, err error) {
	err = l.trip(ctx, func() (size int, err error) {
		claimed, err = l.memory.Acquire(ctx, claim)
		size = len(claim.Key) + len(claim.Counter) + len(claim.Owner)
		for i, entry := range claimed.Entries {
			size += len(claim.Read[i]) + len(entry.Value)
		}
		return size, err
	})
	return claimed, err
}

func (l link) Renew(ctx context.Context, lease store.Lease, ttl time.Duration) (held bool, err error) {
	err = l.trip(ctx, func() (size int, err error) {
		held, err = l.memory.Renew(ctx, lease, ttl)
		return len(lease.Key) + len(lease.Owner), err
	})
	return held, err
}

func (l link) Apply(ctx context.Context, change store.Change) (applied []bool, err error) {
	err = l.trip(ctx, func() (size int, err error) {
		applied, err = l.memory.Apply(ctx, change)
		for _, put := range change.Puts {
			size += len(put.Key) + len(put.Value)
		}
		return size, err
	})
	return applied, err
}

func (l link) Raise(ctx context.Context, key string, floor, by uint64) (count uint64, err error) {
	err = l.trip(ctx, func() (size int, err error) {
		count, err = l.memory.Raise(ctx, key, floor, by)
		return len(key), err
	})
	return count, err
}

func (l link) Confirm(context.Context, string) store.Safety { return store.Safety{Disk: true} }

// trip makes a call that returns the size of its keys and values.
func (l link) trip(ctx context.Context, call func() (size int, err error)) error {
	if err := l.arrive(ctx); err != nil {
		return err
	}
	size, err := call()
	l.mu.Lock()
	l.counts.bytes += int64(size)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return pause(ctx, transit())
}

// Subscribe delivers the events after the time that the server needs for all messages of
// a change.
func (l link) Subscribe(ctx context.Context) <-chan string {
	l.subscribe(1)
	delivered := make(chan string, store.EventBuffer)
	events := l.memory.Subscribe(ctx)
	go func() {
		defer close(delivered)
		defer l.subscribe(-1)
		for key := range events {
			l.mu.Lock()
			sent := l.free
			l.mu.Unlock()
			if l.deaf.Load() || pause(ctx, time.Until(sent)+transit()) != nil {
				continue
			}
			delivered <- key
		}
	}()
	return delivered
}

func (s *server) subscribe(by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribers += by
}
