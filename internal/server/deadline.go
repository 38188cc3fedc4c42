package server

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/policy"
)

// deadlineContext behaves like the result of context.WithDeadline, but starts its timer
// only on the first call of Done or Err. A cache hit waits for nothing, and the timer
// would cost it more than all other work here.
type deadlineContext struct {
	context.Context //nolint:containedctx // it is one itself

	at     time.Time
	caller *policy.Caller
	// timed has the timer. It is nil until Done or Err is called.
	timed atomic.Pointer[timedContext]
}

type timedContext struct {
	context.Context //nolint:containedctx // it is one itself

	cancel context.CancelFunc
}

func withDeadline(ctx context.Context, at time.Time, caller *policy.Caller) *deadlineContext {
	return &deadlineContext{Context: ctx, at: at, caller: caller}
}

// Value also returns the caller, which spares a cache hit a separate context.
func (c *deadlineContext) Value(key any) any {
	if key == (callerKey{}) {
		return c.caller
	}
	return c.Context.Value(key)
}

func (c *deadlineContext) withTimer() context.Context {
	if timed := c.timed.Load(); timed != nil {
		return timed
	}
	ctx, cancel := context.WithDeadline(c.Context, c.at)
	if !c.timed.CompareAndSwap(nil, &timedContext{ctx, cancel}) {
		cancel() // another goroutine started a timer
	}
	return c.timed.Load()
}

// release cancels the timer context when the call is over.
func (c *deadlineContext) release() {
	if timed := c.timed.Load(); timed != nil {
		timed.cancel()
	}
}

// Deadline returns the earlier of the call's own deadline and this one.
func (c *deadlineContext) Deadline() (time.Time, bool) {
	if own, ok := c.Context.Deadline(); ok && own.Before(c.at) {
		return own, true
	}
	return c.at, true
}

func (c *deadlineContext) Done() <-chan struct{} { return c.withTimer().Done() }

func (c *deadlineContext) Err() error { return c.withTimer().Err() }

// CallerOf returns the caller of the call that a handler serves, or nil if there is no
// caller.
func CallerOf(ctx context.Context) *policy.Caller {
	caller, _ := ctx.Value(callerKey{}).(*policy.Caller)
	return caller
}

type callerKey struct{}
