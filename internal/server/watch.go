package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// watchRetry is when a client that has too many watches may try again.
const watchRetry = 10 * time.Second

// WatchToken streams what the broker has, until the caller leaves, the token
// cannot be kept, or the server drains: then the status makes clients connect
// anew, which brings them to another replica.
func (s *service) WatchToken(req *tokenbrokerv1.WatchTokenRequest, stream grpc.ServerStreamingServer[tokenbrokerv1.WatchTokenResponse]) error {
	ask, invalid := questionOf(req)
	if invalid != nil {
		return statusOf(invalid)
	}
	leave, full := s.watches.enter(stream.Context())
	if full != nil {
		return statusOf(full)
	}
	defer leave()
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.draining, func() { cancel(broker.ShuttingDown(ask.Client)) })()
	who := func() (*policy.Caller, error) { return s.callers.of(ctx) }
	err := s.broker.Watch(ctx, who, ask, func(answer broker.Answer) error {
		return stream.Send(&tokenbrokerv1.WatchTokenResponse{Token: tokenResponse(answer)})
	})
	return statusOf(err)
}

// watches bounds the watches of each connection. A connection has a bounded
// number of calls, and those who keep some for ever must leave room for the
// others.
type watches struct {
	most int

	mu   sync.Mutex
	open map[string]int // by the connection's remote address
}

func newWatches(maxStreams uint32) *watches {
	return &watches{most: max(1, int(maxStreams)/2), open: map[string]int{}}
}

func (w *watches) enter(ctx context.Context) (leave func(), full *broker.Error) {
	connection := ""
	if from, ok := peer.FromContext(ctx); ok {
		connection = from.Addr.String()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open[connection] >= w.most {
		return nil, &broker.Error{
			Code: broker.ResourceExhausted, Reason: broker.ReasonTooManyWatches, RetryAfter: watchRetry,
			Message: fmt.Sprintf("this connection has %d watches, and one may have no more; share a watch among those who want the same token, or open another connection", w.most),
		}
	}
	w.open[connection]++
	return func() { w.leave(connection) }, nil
}

func (w *watches) leave(connection string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open[connection]--; w.open[connection] == 0 {
		delete(w.open, connection)
	}
}
