package store

import (
	"context"
	"sync"
	"sync/atomic"
)

// Broadcast sends the keys that changed to the subscribers of a store. The zero value has
// no subscribers.
type Broadcast struct {
	mu          sync.Mutex
	closed      bool
	subscribers map[chan string]func() bool // each with the function that releases its ctx
}

// Subscribe implements Store.
func (b *Broadcast) Subscribe(ctx context.Context) <-chan string {
	events := make(chan string, EventBuffer)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		close(events)
		return events
	}
	if b.subscribers == nil {
		b.subscribers = make(map[chan string]func() bool)
	}
	b.subscribers[events] = context.AfterFunc(ctx, func() { b.unsubscribe(events) })
	return events
}

func (b *Broadcast) unsubscribe(events chan string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.subscribers[events]; ok {
		delete(b.subscribers, events)
		close(events)
	}
}

// Notify sends keys to all subscribers. It never waits for one.
func (b *Broadcast) Notify(keys ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for events := range b.subscribers {
		for _, key := range keys {
			select {
			case events <- key:
			default:
			}
		}
	}
}

// Close ends all subscriptions.
func (b *Broadcast) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for events, release := range b.subscribers {
		release()
		close(events)
	}
	clear(b.subscribers)
}

// Subscriptions distributes the events of a store to the subscriptions of each key. A
// replica subscribes to its store only once.
type Subscriptions struct {
	mu    sync.Mutex
	byKey map[string]map[*Subscription]bool
}

// Subscription is a subscription to the events of some keys.
type Subscription struct {
	all    *Subscriptions
	keys   []string
	notify func()
}

// NewSubscriptions returns an empty set of subscriptions.
func NewSubscriptions() *Subscriptions {
	return &Subscriptions{byKey: map[string]map[*Subscription]bool{}}
}

// Subscribe calls notify for each event of one of the keys, until the subscription is
// closed. Notify must not block.
func (s *Subscriptions) Subscribe(notify func(), keys ...string) *Subscription {
	subscription := &Subscription{s, keys, notify}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		if s.byKey[key] == nil {
			s.byKey[key] = map[*Subscription]bool{}
		}
		s.byKey[key][subscription] = true
	}
	return subscription
}

// Close ends the subscription. Without a subscription it does nothing.
func (s *Subscription) Close() {
	if s == nil {
		return
	}
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	for _, key := range s.keys {
		delete(s.all.byKey[key], s)
		if len(s.all.byKey[key]) == 0 {
			delete(s.all.byKey, key)
		}
	}
}

// Notify notifies the subscriptions to a key.
func (s *Subscriptions) Notify(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for one := range s.byKey[key] {
		one.notify()
	}
}

// Coalescer merges wake-ups: it runs some work for each, one run after the other;
// wake-ups during a run cause one further run together.
type Coalescer struct{ wanted atomic.Int64 }

// Run runs work in a goroutine that spawn starts, or once more after the current run.
func (c *Coalescer) Run(spawn func(work func()) bool, work func()) {
	if c.wanted.Add(1) > 1 {
		return
	}
	spawn(func() {
		for {
			wanted := c.wanted.Load()
			work()
			if c.wanted.CompareAndSwap(wanted, 0) {
				return
			}
		}
	})
}

// Signal wakes all waiters at the next change in this process. The zero value is ready.
type Signal struct {
	mu sync.Mutex
	ch chan struct{} // nil: no waiters
}

// Next returns a channel that is closed at the next change. A waiter that calls it
// before it reads the state misses no change.
func (s *Signal) Next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

// Fire wakes the waiters.
func (s *Signal) Fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
