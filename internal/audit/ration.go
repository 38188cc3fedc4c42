package audit

import (
	"sync"
	"time"
)

// refusalsPerSecond is how many lines of one kind are written in a second.
const refusalsPerSecond = 10

// ration bounds the lines of those who are refused. The callers among its kinds
// are those of the configuration, so there are not many.
type ration struct {
	mu    sync.Mutex
	kinds map[kind]*allowance
}

type kind struct {
	event   Name
	outcome Outcome
	caller  string
}

// allowance is what a kind had of the present second, and what it got no line for.
type allowance struct {
	second int64
	lines  int
	more   uint64
	since  time.Time
}

func newRation() ration { return ration{kinds: map[kind]*allowance{}} }

// admits reports whether there is to be a line of this event. If not, it is
// counted.
func (r *ration) admits(e *Event, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := kind{e.Event, e.Outcome, e.Caller}
	a := r.kinds[k]
	if a == nil {
		a = &allowance{}
		r.kinds[k] = a
	}
	if second := now.Unix(); second != a.second {
		a.second, a.lines = second, 0
	}
	if a.lines < refusalsPerSecond {
		a.lines++
		return true
	}
	if a.more == 0 {
		a.since = now
	}
	a.more++
	return false
}

// sums are the events that stand for those which had no lines, and forgets the
// kinds that are over.
func (r *ration) sums(now time.Time) []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var sums []Event
	for k, a := range r.kinds {
		switch {
		case a.more > 0:
			sums = append(sums, Event{Event: k.event, Outcome: k.outcome, Caller: k.caller, Count: a.more, Since: a.since})
			a.more = 0
		case now.Unix()-a.second > 1:
			delete(r.kinds, k)
		}
	}
	return sums
}
