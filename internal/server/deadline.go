package server

import (
	"context"
	"sync"
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

	mu     sync.Mutex
	timed  context.Context //nolint:containedctx // the one with the timer; nil: Done and Err were not called yet
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
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timed == nil {
		c.timed, c.cancel = context.WithDeadline(c.Context, c.at)
	}
	return c.timed
}

// release cancels the timer context when the call is over.
func (c *deadlineContext) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel()
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
