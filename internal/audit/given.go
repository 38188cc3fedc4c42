package audit

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
	"unique"
)

// Given audits the callers that receive one token.
//
// Unless each time has a line, a caller has a line for the first time, and further times
// are counted: without a lock, a line or an allocation.
type Given struct {
	log   *Log
	event Event // without the members that differ from time to time
	// callers maps unique.Handle[string] to *tally, for callers that received the token.
	callers sync.Map
	mu      sync.Mutex // held while a first line is written
	closed  atomic.Bool
}

// tally counts how often one caller received the token.
type tally struct {
	caller string
	first  atomic.Bool // the first line was written
	more   atomic.Uint64
	since  atomic.Int64 // start of the count, in Unix nanoseconds
}

// Given returns a Given for a token. event describes the token and the request.
func (l *Log) Given(event Event) *Given {
	event.Event, event.Outcome = Token, OK
	return &Given{log: l, event: event}
}

// SHA256 returns the digest of the token.
func (g *Given) SHA256() [32]byte { return g.event.TokenSHA256 }

// To audits that a caller receives the token; the handle contains the caller's name. If it
// returns ErrUnwritten, the caller must not receive the token.
func (g *Given) To(ctx context.Context, caller unique.Handle[string], origin string, degraded bool) error {
	if g.log.cfg.EveryToken {
		return g.permit(ctx, caller.Value(), origin, degraded)
	}
	if value, ok := g.callers.Load(caller); ok {
		if t := value.(*tally); t.first.Load() { //nolint:forcetypeassert // it contains no other type
			g.again(t)
			return nil
		}
	}
	return g.first(ctx, caller, origin, degraded)
}

func (g *Given) first(ctx context.Context, caller unique.Handle[string], origin string, degraded bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	value, _ := g.callers.LoadOrStore(caller, &tally{caller: caller.Value()})
	t := value.(*tally) //nolint:forcetypeassert // it contains no other type
	if t.first.Load() {
		g.again(t)
		return nil
	}
	if err := g.permit(ctx, t.caller, origin, degraded); err != nil {
		return err
	}
	t.since.Store(time.Now().UnixNano())
	t.first.Store(true)
	return nil
}

// again counts. After Close it also writes the count.
func (g *Given) again(t *tally) {
	t.more.Add(1)
	if g.closed.Load() {
		g.sum(t)
	}
}

func (g *Given) permit(ctx context.Context, caller, origin string, degraded bool) error {
	e := g.event
	e.Caller, e.Peer, e.Origin, e.Degraded = caller, g.log.cfg.From(ctx), origin, degraded
	return g.log.Permit(&e)
}

// Sum writes a line for each caller that received the token again since the last Sum.
func (g *Given) Sum() {
	if g == nil {
		return
	}
	g.callers.Range(func(_, value any) bool {
		g.sum(value.(*tally)) //nolint:forcetypeassert // it contains no other type
		return true
	})
}

// Close calls Sum for the last time. Counts at the same time or later are not lost.
func (g *Given) Close() {
	if g == nil {
		return
	}
	g.closed.Store(true)
	g.Sum()
}

// sum writes the line. If the buffer is full, it keeps the count for the next time.
func (g *Given) sum(t *tally) {
	more := t.more.Swap(0)
	if more == 0 {
		return
	}
	e := g.event
	since := t.since.Swap(time.Now().UnixNano())
	e.Caller, e.Count, e.Since = t.caller, more, time.Unix(0, since)
	switch {
	case g.log.put(&e, 2*g.log.cfg.buffer):
	case g.closed.Load():
		g.log.lose()
	default:
		t.since.Store(since)
		t.more.Add(more)
	}
}
