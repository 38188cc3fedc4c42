package audit

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
	"unique"
)

// Given writes down to whom one token is given.
//
// Unless every time is to have its line, a caller has one for its first time, and
// further times are counted: without a lock, without a line and without an
// allocation.
type Given struct {
	log  *Log
	what Event // but for what differs from time to time
	// callers are those who were given the token: *tally by unique.Handle[string].
	callers sync.Map
	mu      sync.Mutex // held while a first line is written
	closed  atomic.Bool
}

// tally counts for one caller.
type tally struct {
	caller string
	told   atomic.Bool // the first line is written
	more   atomic.Uint64
	since  atomic.Int64 // Unix nanoseconds: when counting began
}

// Given begins to write down to whom a token is given. of says which token, and
// for what.
func (l *Log) Given(of Event) *Given {
	of.Event, of.Outcome = Token, OK
	return &Given{log: l, what: of}
}

// SHA256 is the digest of the token.
func (g *Given) SHA256() [32]byte { return g.what.TokenSHA256 }

// To writes down that a caller is given the token, whose name the handle is of. If
// the error is not nil it is ErrUnwritten, and the token must not be given.
func (g *Given) To(ctx context.Context, caller unique.Handle[string], origin string, degraded bool) error {
	if g.log.cfg.EveryToken {
		return g.tell(ctx, caller.Value(), origin, degraded)
	}
	if found, ok := g.callers.Load(caller); ok {
		if t := found.(*tally); t.told.Load() { //nolint:forcetypeassert // it holds no others
			g.again(t)
			return nil
		}
	}
	return g.first(ctx, caller, origin, degraded)
}

func (g *Given) first(ctx context.Context, caller unique.Handle[string], origin string, degraded bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	found, _ := g.callers.LoadOrStore(caller, &tally{caller: caller.Value()})
	t := found.(*tally) //nolint:forcetypeassert // it holds no others
	if t.told.Load() {
		g.again(t)
		return nil
	}
	if err := g.tell(ctx, t.caller, origin, degraded); err != nil {
		return err
	}
	t.since.Store(time.Now().UnixNano())
	t.told.Store(true)
	return nil
}

// again counts. Who counts after the Given was closed sums up itself.
func (g *Given) again(t *tally) {
	t.more.Add(1)
	if g.closed.Load() {
		g.sum(t)
	}
}

func (g *Given) tell(ctx context.Context, caller, origin string, degraded bool) error {
	e := g.what
	e.Caller, e.Peer, e.Origin, e.Degraded = caller, g.log.cfg.From(ctx), origin, degraded
	return g.log.Permit(&e)
}

// Sum writes a line for each caller who was given the token again since the last
// time.
func (g *Given) Sum() {
	if g == nil {
		return
	}
	g.callers.Range(func(_, found any) bool {
		g.sum(found.(*tally)) //nolint:forcetypeassert // it holds no others
		return true
	})
}

// Close sums up for the last time. Nothing is lost that is counted at the same
// time or later.
func (g *Given) Close() {
	if g == nil {
		return
	}
	g.closed.Store(true)
	g.Sum()
}

// sum writes the line, unless there is no room for it and there will be another
// time.
func (g *Given) sum(t *tally) {
	more := t.more.Swap(0)
	if more == 0 {
		return
	}
	e := g.what
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
