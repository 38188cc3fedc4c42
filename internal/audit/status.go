package audit

import "time"

// Status is the state of a Log.
type Status struct {
	// Failing: the last attempt to write failed.
	Failing bool
	// Lost counts the lines that were dropped since the start, LostAt is when the last was.
	Lost   uint64
	LostAt time.Time
}

// Status returns the state of the log. That of a nil Log is zero.
func (l *Log) Status() Status {
	if l == nil {
		return Status{}
	}
	l.lost.Lock()
	defer l.lost.Unlock()
	return Status{Failing: l.failing.Load(), Lost: l.lost.total, LostAt: l.lost.last}
}
