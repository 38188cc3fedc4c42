package caller

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
)

// fewUnidentified is the number of calls below which ended ones are not swept.
const fewUnidentified = 64

// unidentifiedLimit bounds the calls of unidentified clients before any work is done for
// them.
type unidentifiedLimit struct {
	most    int
	refused func() // counts

	mu sync.Mutex
	// open holds the calls, some of which may have ended. They are swept when there are
	// sweepAt: a goroutine per call that waits for its end would cost more than the
	// call, which matters when a client opens and resets as many as it can.
	open    []unidentifiedCall
	sweepAt int
}

type unidentifiedCall struct {
	ctx  context.Context //nolint:containedctx // it ends with the call
	conn *connection
}

// beginCall reports whether there is room for another call, which ends with ctx.
func (c *connection) beginCall(ctx context.Context) bool {
	if c.unidentified == nil || c.identified.Load() {
		return true
	}
	return c.unidentified.admits(unidentifiedCall{ctx, c})
}

func (l *unidentifiedLimit) admits(call unidentifiedCall) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) >= max(l.sweepAt, fewUnidentified) || len(l.open) >= l.most {
		l.open = slices.DeleteFunc(l.open, func(c unidentifiedCall) bool { return c.ctx.Err() != nil || c.conn.identified.Load() })
		l.sweepAt = 2 * len(l.open)
	}
	if len(l.open) >= l.most {
		return false
	}
	l.open = append(l.open, call)
	return true
}

// tooMany counts a call for which there is no room and returns its error.
func (l *unidentifiedLimit) tooMany() error {
	l.refused()
	return &apierror.Error{
		Code: apierror.ResourceExhausted, Reason: apierror.ReasonOverloaded, RetryAfter: time.Second,
		Message: "too many calls of unidentified clients are open: try again, or connect with a client certificate, which identifies a caller before its first call",
	}
}
