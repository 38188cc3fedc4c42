package audit

import (
	"sync"
	"time"
)

// refusalsPerSecond is the number of lines of one kind that are written per second.
const refusalsPerSecond = 10

// ration limits the lines about refused calls. Its kinds contain only configured callers, so
// there are few of them.
type ration struct {
	mu    sync.Mutex
	kinds map[kind]*allowance
}

type kind struct {
	event   Name
	outcome Outcome
	caller  string
}

// allowance counts the lines of a kind in the current second, and the events without a line.
type allowance struct {
	second int64
	lines  int
	more   uint64
	since  time.Time
}

func newRation() ration { return ration{kinds: map[kind]*allowance{}} }

// admits reports whether to write a line for this event. Otherwise it counts the event.
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

// sums returns events that count those without lines. It forgets kinds without recent
// events.
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
