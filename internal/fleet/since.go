package fleet

import (
	"sync"
	"time"
)

// Tracker remembers since when conditions hold, and when counts changed, that their parts do not time themselves. It
// is safe for concurrent use. The zero value is ready.
type Tracker struct {
	mu    sync.Mutex
	since map[string]time.Time
	last  map[string]seenCount
}

// seenCount is a count, and when it was first seen. Zero: it was there from the beginning.
type seenCount struct {
	count uint64
	at    time.Time
}

// Changed returns when a count was last seen to change; zero if it was not.
func (t *Tracker) Changed(name string, count uint64, now time.Time) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		t.last = map[string]seenCount{}
	}
	before, known := t.last[name]
	switch {
	case !known:
		t.last[name] = seenCount{count: count}
	case before.count != count:
		t.last[name] = seenCount{count, now}
	}
	return t.last[name].at
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

// Seen has when a replica first saw each current finding.
type Seen map[watched]time.Time

// Date sets the beginning of findings that no replica has timed, such as differences
// between replicas, to when this replica first saw them. now is the time of the summary. It
// returns the times for the next summary.
func (s *Summary) Date(before Seen, now time.Time) Seen {
	seen := make(Seen, len(s.Findings))
	for i := range s.Findings {
		one := &s.Findings[i]
		key := watched{one.ID, one.Subject}
		seen[key] = now
		if first, ok := before[key]; ok {
			seen[key] = first
		}
		if one.Since.Equal(now) {
			one.Since = seen[key]
		}
	}
	return seen
}
