package server

import (
	"context"
	"time"

	"google.golang.org/grpc"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/tokenerror"
)

const watchMethod = tokenbrokerv1.TokenBrokerService_WatchToken_FullMethodName

// WatchToken streams the tokens of the broker until the caller leaves, the broker
// cannot keep the token, or the server drains: then the status makes clients reconnect,
// which sends them to another replica.
func (s *service) WatchToken(req *tokenbrokerv1.WatchTokenRequest, stream grpc.ServerStreamingServer[tokenbrokerv1.WatchTokenResponse]) error {
	request, invalid := tokenRequestOf(req)
	if invalid = firstOf(invalid, checkWatch(req)); invalid != nil {
		return statusOf(invalid)
	}
	ctx, now := stream.Context(), time.Now()
	identified, err := s.callers.Identify(ctx, watchMethod, false, now)
	if err != nil {
		return statusOf(err)
	}
	leave, err := s.callers.Watch(ctx, watchMethod, identified.Caller, now)
	if err != nil {
		return statusOf(err)
	}
	defer leave()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.draining, func() { cancel(tokenerror.ShuttingDown(request.Client)) })()
	defer s.endWhenExpired(ctx, identified.Until, cancel)()
	identify := func() (*policy.Caller, error) {
		identified, err := s.callers.Identify(ctx, watchMethod, false, time.Now())
		return identified.Caller, err
	}
	err = s.broker.Watch(ctx, identify, request, func(answer broker.Answer) error {
		return stream.Send(&tokenbrokerv1.WatchTokenResponse{Token: tokenResponse(answer)})
	})
	return statusOf(err)
}

// endWhenExpired ends a watch when the certificate or the JWT that identifies its caller
// has expired.
func (s *service) endWhenExpired(ctx context.Context, until time.Time, cancel context.CancelCauseFunc) (stop func()) {
	if until.IsZero() {
		return func() {}
	}
	wait := func() time.Duration { return max(time.Until(until), time.Second) } // the check may allow a leeway
	var timer *time.Timer
	armed := make(chan struct{})
	timer = time.AfterFunc(wait(), func() {
		<-armed
		if ctx.Err() != nil {
			return
		}
		identified, err := s.callers.Identify(ctx, watchMethod, false, time.Now())
		if until = identified.Until; err != nil {
			cancel(err)
		} else if !until.IsZero() {
			timer.Reset(wait())
		}
	})
	close(armed)
	return func() { timer.Stop() }
}
