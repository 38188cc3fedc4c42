package server

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/tap"

	"github.com/cezzis/tokenbroker/internal/broker"
)

// maxStrangerStreams bounds the calls that are open on all connections together
// on which nobody was recognised yet. Whoever can connect can begin calls and
// never say what they ask: each takes memory, and no call of a caller's may fail
// for want of that.
const maxStrangerStreams = 2000

// strangers bounds the calls of those whom nobody knows, before anything is done
// for them.
type strangers struct {
	open    atomic.Int64
	most    int64
	refused func() // counts
}

// stranger is a connection on which nobody has been recognised yet.
type stranger struct {
	all   *strangers
	known atomic.Bool

	mu   sync.Mutex
	open int64
}

func (s *strangers) newcomer() *stranger { return &stranger{all: s} }

// isKnown says that somebody was recognised. The calls that are open, and those
// to come, count as strange no more.
func (s *stranger) isKnown() {
	if s.known.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.known.Swap(true) && s.all != nil {
		s.all.open.Add(-s.open)
	}
}

// enter reports whether there is room for another call.
func (s *stranger) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known.Load() {
		return true
	}
	if s.all.open.Add(1) > s.all.most {
		s.all.open.Add(-1)
		return false
	}
	s.open++
	return true
}

func (s *stranger) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.known.Load() {
		s.open--
		s.all.open.Add(-1)
	}
}

// tooMany counts a call for which there is no room, and says so.
func (s *strangers) tooMany() error {
	s.refused()
	return &broker.Error{
		Code: broker.ResourceExhausted, Reason: broker.ReasonOverloaded, RetryAfter: time.Second,
		Message: "too many calls are open whose callers the broker does not know: try again, or connect with a client certificate, which is known from the start",
	}
}

// tap looks at each call when it begins, in the goroutine that reads the
// connection.
func (s *strangers) tap(ctx context.Context, _ *tap.Info) (context.Context, error) {
	from := connectionOf(ctx).stranger
	if from.known.Load() || from.all == nil {
		return ctx, nil
	}
	if !from.enter() {
		return nil, statusOf(s.tooMany())
	}
	context.AfterFunc(ctx, from.leave)
	return ctx, nil
}
