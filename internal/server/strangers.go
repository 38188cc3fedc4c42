package server

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/cezzis/tokenbroker/internal/apierror"
)

const (
	// DefaultStrangers is the default of Limits.Strangers. Everyone who can connect can
	// begin calls and never send their requests: each takes memory, and no call of a
	// caller may fail for want of that.
	DefaultStrangers = 2000
	// fewStrangerStreams are too few to look for those that have ended.
	fewStrangerStreams = 64
)

// strangers bounds the calls of clients that were not identified, before anything is
// done for them.
type strangers struct {
	most    int
	refused func() // counts

	mu sync.Mutex
	// open are the calls, some of which may have ended. They are looked through when
	// there are sweepAt: a goroutine for each call that noted its end would cost more
	// than the call, which matters where a client opens and resets as many as it can.
	open    []strangerCall
	sweepAt int
}

type strangerCall struct {
	ctx  context.Context //nolint:containedctx // it ends with the call
	from *stranger
}

// stranger is a connection on which no caller has been identified yet.
type stranger struct {
	all   *strangers // nil: its calls are not bounded
	known atomic.Bool
}

func (s *strangers) newcomer() *stranger { return &stranger{all: s} }

// isKnown notes that a caller was identified: the calls of the connection count no
// more.
func (s *stranger) isKnown() {
	if !s.known.Load() {
		s.known.Store(true)
	}
}

// enter reports whether there is room for another call, which ends with ctx.
func (s *stranger) enter(ctx context.Context) bool {
	if s.all == nil || s.known.Load() {
		return true
	}
	return s.all.enter(strangerCall{ctx, s})
}

func (s *strangers) enter(call strangerCall) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open) >= max(s.sweepAt, fewStrangerStreams) || len(s.open) >= s.most {
		s.open = slices.DeleteFunc(s.open, func(c strangerCall) bool { return c.ctx.Err() != nil || c.from.known.Load() })
		s.sweepAt = 2 * len(s.open)
	}
	if len(s.open) >= s.most {
		return false
	}
	s.open = append(s.open, call)
	return true
}

// tooMany counts a call for which there is no room, and returns its error.
func (s *strangers) tooMany() error {
	s.refused()
	return &apierror.Error{
		Code: apierror.ResourceExhausted, Reason: apierror.ReasonOverloaded, RetryAfter: time.Second,
		Message: "too many calls are open whose callers the broker does not know: try again, or connect with a client certificate, which is known from the start",
	}
}

// begin looks at a call when it begins. An error means that it is refused.
func (c *callers) begin(ctx context.Context, header metadata.MD) error {
	if !c.headers.admits(header) {
		return c.headers.tooLarge()
	}
	if !connectionOf(ctx).stranger.enter(ctx) {
		return c.strangers.tooMany()
	}
	return nil
}
