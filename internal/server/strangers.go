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
	// DefaultStrangers is the default of Limits.Strangers. Any peer that can connect
	// can begin calls and never send their requests. Each takes memory, and calls of
	// callers must not fail for lack of it.
	DefaultStrangers = 2000
	// fewStrangerStreams is the number of calls below which ended ones are not swept.
	fewStrangerStreams = 64
)

// strangers bounds the calls of unidentified clients before any work is done for them.
type strangers struct {
	most    int
	refused func() // counts

	mu sync.Mutex
	// open holds the calls, some of which may have ended. They are swept when there are
	// sweepAt: a goroutine per call that waits for its end would cost more than the
	// call, which matters when a client opens and resets as many as it can.
	open    []strangerCall
	sweepAt int
}

type strangerCall struct {
	ctx  context.Context //nolint:containedctx // it ends with the call
	from *stranger
}

// stranger is the state of a connection on which no caller has been identified yet.
type stranger struct {
	all   *strangers // nil: its calls are not bounded
	known atomic.Bool
}

func (s *strangers) newcomer() *stranger { return &stranger{all: s} }

// isKnown records that a caller was identified: the calls of the connection no longer
// count.
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

// tooMany counts a call for which there is no room and returns its error.
func (s *strangers) tooMany() error {
	s.refused()
	return &apierror.Error{
		Code: apierror.ResourceExhausted, Reason: apierror.ReasonOverloaded, RetryAfter: time.Second,
		Message: "too many calls are open whose callers the broker does not know: try again, or connect with a client certificate, which is known from the start",
	}
}

// begin checks a call when it begins. An error refuses the call.
func (c *callers) begin(ctx context.Context, header metadata.MD) error {
	if !c.headers.admits(header) {
		return c.headers.tooLarge()
	}
	if !connectionOf(ctx).stranger.enter(ctx) {
		return c.strangers.tooMany()
	}
	return nil
}
