package broker

import "sync"

// signal wakes all waiters at the next change.
type signal struct {
	mu sync.Mutex
	ch chan struct{} // nil: no waiters
}

// next returns a channel that is closed at the next change. A waiter that takes it
// before it reads the state misses no change.
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
