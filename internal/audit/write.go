package audit

import (
	"cmp"
	"slices"
	"time"
)

// write runs in the writing goroutine.
func (l *Log) write() {
	defer close(l.done)
	defer l.out.close()
	sums := time.NewTicker(SumInterval)
	defer sums.Stop()
	for {
		wake, retry := l.wake, (<-chan time.Time)(nil)
		if l.failing.Load() {
			wake, retry = nil, time.After(retryInterval)
		}
		select {
		case <-l.closing:
			l.sumUp()
			l.drain()
			return
		case written := <-l.flushes:
			l.flush(written)
		case <-sums.C:
			l.sumUp()
			l.drain()
		case <-wake:
			l.gather()
			l.drain()
		case <-retry:
			l.drain()
		}
	}
}

// gather waits until lines can be written together.
func (l *Log) gather() {
	timer := time.NewTimer(flushDelay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.hurry:
	case written := <-l.flushes:
		l.flush(written)
	case <-l.closing:
	}
}

func (l *Log) flush(written chan<- error) {
	l.drain()
	written <- l.unwritten()
}

func (l *Log) unwritten() error {
	if l.failing.Load() {
		return ErrUnwritten
	}
	return nil
}

// drain writes all lines, or until a write fails.
func (l *Log) drain() {
	if err := l.out.follow(); err != nil {
		l.failed(err)
		return
	}
	for l.collect() {
		for len(l.pending) > 0 {
			n, err := l.out.write(l.pending)
			l.pending = l.pending[n:]
			if err != nil {
				l.failed(err)
				return
			}
		}
		l.metrics.lines.Add(float64(l.lines))
		l.lines = 0
	}
	if l.failing.Swap(false) {
		l.cfg.Logger.Info("the audit is written again")
	}
}

func (l *Log) failed(err error) {
	if l.failing.Swap(true) {
		return
	}
	message := "the audit cannot be written; lines that find no room are dropped"
	if l.cfg.Refuse {
		message = "the audit cannot be written; what it would have to tell of is refused"
	}
	l.cfg.Logger.Error(message, "error", err)
}

// collect fills pending if it is empty, and reports whether it contains a line. Lines are in
// the order in which they were added.
func (l *Log) collect() bool {
	if len(l.pending) > 0 {
		return true
	}
	l.batch = l.batch[:0]
	var runs []run
	for i := range l.shards {
		runs = l.shards[i].drain(runs)
	}
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.number, b.number) })
	for _, r := range runs {
		l.batch = append(l.batch, r.line...)
	}
	l.lines = len(runs)
	if lost := l.takeLost(); lost.Count > 0 {
		l.batch = appendEvent(append(l.batch, l.head...), &lost, time.Now())
		l.lines++
	}
	l.pending = l.batch
	return len(l.pending) > 0
}

// run is a line with its number.
type run struct {
	number uint64
	line   []byte
}

// drain returns the lines of a shard and empties it. They are valid until the next call.
func (s *shard) drain(into []run) []run {
	s.mu.Lock()
	s.now, s.before = s.before, s.now
	s.now.empty()
	s.mu.Unlock()
	begin := 0
	for _, m := range s.before.marks {
		into = append(into, run{m.number, s.before.lines[begin:m.end]})
		begin = m.end
	}
	return into
}

// empty empties a buffer and frees the memory that a flood of lines took.
func (b *buffer) empty() {
	const keep = 128 << 10
	if cap(b.lines) > keep {
		*b = buffer{}
	}
	b.lines, b.marks = b.lines[:0], b.marks[:0]
}

// sumUp adds the lines that count rationed events.
func (l *Log) sumUp() {
	for _, e := range l.ration.sums(time.Now()) {
		l.keep(&e)
	}
}
