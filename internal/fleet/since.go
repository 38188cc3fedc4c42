package fleet

import (
	"sync"
	"time"
)

// Tracker remembers since when conditions hold that their parts do not time themselves. It
// is safe for concurrent use. The zero value is ready.
type Tracker struct {
	mu    sync.Mutex
	since map[string]time.Time
}

// Since returns when the condition was first seen to hold, without a break until now; zero
// if it does not hold.
func (t *Tracker) Since(condition string, holds bool, now time.Time) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !holds {
		delete(t.since, condition)
		return time.Time{}
	}
	if t.since == nil {
		t.since = map[string]time.Time{}
	}
	if _, ok := t.since[condition]; !ok {
		t.since[condition] = now
	}
	return t.since[condition]
}
