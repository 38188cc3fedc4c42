package broker

import (
	"sync"
	"sync/atomic"
)

// bells ring when the store tells of a change of what somebody here waits for.
// The store has one subscription for the whole replica; this spreads its
// events.
type bells struct {
	mu   sync.Mutex
	hung map[string]map[*bell]bool
}

type bell struct {
	keys []string
	ring func()
}

func newBells() *bells { return &bells{hung: map[string]map[*bell]bool{}} }

// hang has ring called for each event of one of the keys, until the bell is
// taken. It must not block.
func (b *bells) hang(ring func(), keys ...string) *bell {
	made := &bell{keys, ring}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, key := range keys {
		if b.hung[key] == nil {
			b.hung[key] = map[*bell]bool{}
		}
		b.hung[key][made] = true
	}
	return made
}

func (b *bells) take(taken *bell) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, key := range taken.keys {
		delete(b.hung[key], taken)
		if len(b.hung[key]) == 0 {
			delete(b.hung, key)
		}
	}
}

func (b *bells) ring(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for bell := range b.hung[key] {
		bell.ring()
	}
}

// signal wakes everybody who waits for the next change of something.
type signal struct {
	mu sync.Mutex
	ch chan struct{} // nil: nobody waits
}

// next returns a channel that is closed at the next change. Who takes it before
// looking misses nothing.
func (s *signal) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

// chaser does some work each time it is told to, one after the other; being told
// many times during the work makes it done once more.
type chaser struct{ told atomic.Int64 }

func (c *chaser) tell(spawn func(work func()) bool, work func()) {
	if c.told.Add(1) > 1 {
		return
	}
	spawn(func() {
		for {
			told := c.told.Load()
			work()
			if c.told.CompareAndSwap(told, 0) {
				return
			}
		}
	})
}
