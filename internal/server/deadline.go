package server

import (
	"context"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/policy"
)

// deadlineContext is what context.WithDeadline returns, but for its timer, which
// starts when somebody waits for the end. A hit waits for nothing, and the timer
// would cost it more than all else that is done for it here.
type deadlineContext struct {
	context.Context //nolint:containedctx // it is one itself

	at     time.Time
	caller *policy.Caller

	mu     sync.Mutex
	timed  context.Context //nolint:containedctx // the one with the timer; nil: nobody waits yet
	cancel context.CancelFunc
}

func withDeadline(ctx context.Context, at time.Time, caller *policy.Caller) *deadlineContext {
	return &deadlineContext{Context: ctx, at: at, caller: caller}
}

// Value also tells who calls, which spares a hit a context of its own for that.
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

// release ends the wait of whoever still waits when the call is over.
func (c *deadlineContext) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel()
	}
}

// Deadline is the nearer of the call's own and this one's.
func (c *deadlineContext) Deadline() (time.Time, bool) {
	if own, ok := c.Context.Deadline(); ok && own.Before(c.at) {
		return own, true
	}
	return c.at, true
}

func (c *deadlineContext) Done() <-chan struct{} { return c.withTimer().Done() }

func (c *deadlineContext) Err() error { return c.withTimer().Err() }
