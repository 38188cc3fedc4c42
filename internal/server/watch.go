package server

import (
	"context"
	"time"

	"google.golang.org/grpc"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// WatchToken streams the tokens of the broker until the caller leaves, the broker
// cannot keep the token, or the server drains: then the status makes clients reconnect,
// which sends them to another replica.
func (s *service) WatchToken(req *tokenbrokerv1.WatchTokenRequest, stream grpc.ServerStreamingServer[tokenbrokerv1.WatchTokenResponse]) error {
	ask, invalid := questionOf(req)
	if invalid != nil {
		return statusOf(invalid)
	}
	now := time.Now()
	caller, until, err := s.callers.of(stream.Context(), now)
	if err != nil {
		return statusOf(err)
	}
	leave, full := s.limits.watch(caller, connectionOf(stream.Context()), s.streams, now)
	if full != nil {
		turnedAway(stream.Context(), s.callers.audit, methodOf(stream.Context()), caller, full)
		return statusOf(full)
	}
	defer leave()
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.draining, func() { cancel(broker.ShuttingDown(ask.Client)) })()
	defer s.callers.watch(ctx, until, cancel)()
	who := func() (*policy.Caller, error) {
		caller, _, err := s.callers.of(ctx, time.Now())
		return caller, err
	}
	err = s.broker.Watch(ctx, who, ask, func(answer broker.Answer) error {
		return stream.Send(&tokenbrokerv1.WatchTokenResponse{Token: tokenResponse(answer)})
	})
	return statusOf(err)
}

// watch ends a stream when the certificate or the JWT that identifies its caller has
// expired.
func (c *callers) watch(ctx context.Context, until time.Time, cancel context.CancelCauseFunc) (stop func()) {
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
		var err error
		if _, until, err = c.of(ctx, time.Now()); err != nil {
			cancel(err)
		} else if !until.IsZero() {
			timer.Reset(wait())
		}
	})
	close(armed)
	return func() { timer.Stop() }
}
