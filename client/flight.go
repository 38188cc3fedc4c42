package client

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// initialBackoff and maxBackoff bound the pause between calls to the broker
	// after a failure; it doubles with each failure.
	initialBackoff = 200 * time.Millisecond
	maxBackoff     = 10 * time.Second
	// maxRetryInfo bounds the retry delay that the broker may advise.
	maxRetryInfo = 30 * time.Second
	// maxJitter bounds the random delay that spreads refreshes due at the same
	// moment.
	maxJitter = 30 * time.Second
	// maxDueInterval is the longest pause before a token that is due is requested
	// again.
	maxDueInterval = 5 * time.Second
	// minDueInterval is the shortest pause between these requests. The identity
	// provider may return the same token until it expires.
	minDueInterval = 250 * time.Millisecond
)

// start starts a flight. No other flight may be in progress.
func (s *Source) start(rejected *Token) *flight {
	f := &flight{done: make(chan struct{}), rejected: rejected}
	s.flight = f
	s.idle.Store(false)
	if !s.client.spawn(func() { s.run(f) }) {
		s.flight, f.err = nil, errClosed()
		close(f.done)
	}
	return f
}

func (s *Source) run(f *flight) {
	ctx, cancel := context.WithTimeout(s.client.ctx, flightTimeout)
	defer cancel()
	sent := time.Now()
	token, err := s.fetch(ctx, f.rejected)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(f.done)
	s.flight = nil
	if s.client.ctx.Err() != nil {
		f.err = errClosed()
		return
	}
	if err != nil {
		f.err = err
		if !isBrokerResponse(err) {
			s.rewatchAt, s.watchFailures = time.Time{}, 0 // the broker is unreachable; watches may work once it is back
		}
		s.recordFailure(err)
		return
	}
	s.adopt(token, sent)
	if f.rejected != nil {
		s.lastRejected, s.rejectedAt = f.rejected.digest(), time.Now()
	}
	s.schedule()
}

// fetch requests a token: by the first message of a new watch if one may be
// opened, or else by a call.
func (s *Source) fetch(ctx context.Context, rejected *Token) (*Token, error) {
	if rejected == nil && s.acquireWatch() {
		token, err := s.openWatch(ctx)
		if err == nil || isBrokerResponse(err) || ctx.Err() != nil {
			return token, err
		}
	}
	req := s.req
	if rejected != nil {
		sum := rejected.digest()
		req = proto.CloneOf(req)
		req.RejectedTokenSha256 = sum[:]
	}
	resp, err := s.client.api.GetToken(ctx, req)
	if err != nil {
		return nil, err
	}
	return newToken(resp), nil
}

// recordFailure makes callers receive err until the backoff ends.
func (s *Source) recordFailure(err error) {
	now := time.Now()
	pause := min(initialBackoff<<min(s.failureCount, 10), maxBackoff)
	s.failureCount++
	pause = pause/2 + rand.N(pause/2)
	if advised := min(retryAfter(err), maxRetryInfo); advised > pause {
		pause = advised + rand.N(advised/10+1)
	}
	s.failure = &failure{err, now.Add(pause)}
	if s.failureCount&(s.failureCount-1) == 0 { // log fewer lines the longer the outage lasts
		s.client.cfg.log.Warn("the token broker returned no token", "client", s.req.GetClientName(), "error", err,
			"tries", s.failureCount, "holding_one", s.held.Load().usable(now), "again_in", pause.Round(time.Millisecond))
	}
	s.schedule()
}

func (s *Source) recordSuccess() {
	if s.failureCount > 0 {
		s.client.cfg.log.Info("the token broker returns tokens again", "client", s.req.GetClientName(), "tries", s.failureCount)
	}
	s.failure, s.failureCount = nil, 0
}

// schedule sets the timer for the next request.
func (s *Source) schedule() {
	if s.closed || s.idle.Load() {
		return
	}
	now := time.Now()
	at := s.dueAt
	switch {
	case s.failure != nil:
		at = s.failure.until
	case s.watch != nil:
		// The watch delivers every change. The timer only detects a stream that is
		// stuck, before the token expires.
		at = s.held.Load().overdue(now)
	case s.rewatchAt.Before(at) && s.canRewatch(now):
		at = s.rewatchAt
	}
	pause := at.Sub(now)
	if s.timer == nil {
		s.timer = time.AfterFunc(pause, s.due)
		return
	}
	s.timer.Reset(pause)
}

// due runs when the timer fires.
func (s *Source) due() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.idle.Load() || s.flight != nil || s.stopIfIdle(time.Now()) {
		return
	}
	s.start(nil)
}

// stopIfIdle stops the source if it has not been used for idleAfter, and
// reports whether it did.
func (s *Source) stopIfIdle(now time.Time) bool {
	h := s.held.Load()
	if h.used.Swap(false) {
		s.lastUsed = now
	}
	if now.Sub(s.lastUsed) < idleAfter {
		return false
	}
	s.idle.Store(true)
	if h.used.Swap(false) { // by a caller that did not see idle yet
		s.idle.Store(false)
		s.lastUsed = now
		return false
	}
	if s.watch != nil {
		s.watch.cancel()
	}
	return true
}

// nextPoll returns when to request the next token without a watch: at a random
// time after it is due, so that sources do not all call at once, but within the
// poll interval, so that a purge is noticed.
func (s *Source) nextPoll(token *Token, now time.Time) time.Time {
	average := s.client.cfg.pollInterval
	interval := average - average/10 + rand.N(average/5)
	due := token.RefreshAt().Sub(now.Round(0))
	due += rand.N(min(max(token.ExpiresAt().Sub(token.RefreshAt())/4, time.Millisecond), maxJitter))
	return now.Add(min(interval, max(due, dueInterval(token.ExpiresAt().Sub(now.Round(0))))))
}

// overdue returns when the next token is overdue on a watch: half way between
// the refresh time and the end of use of this one.
func (h *heldToken) overdue(now time.Time) time.Time {
	refresh := now.Add(h.token.RefreshAt().Sub(now.Round(0)))
	at := refresh.Add(h.until.Sub(refresh) / 2)
	if earliest := now.Add(dueInterval(h.until.Sub(now))); at.Before(earliest) {
		return earliest
	}
	return at
}

// dueInterval returns the pause before a token that is due, with this time left,
// is requested again.
func dueInterval(left time.Duration) time.Duration {
	return min(maxDueInterval, max(left/4, minDueInterval))
}

// isBrokerResponse reports whether an error is the broker's response to the
// token request, and not about the connection or about watches.
func isBrokerResponse(err error) bool {
	reason := reasonOf(err)
	return reason != "" && reason != reasonTooManyWatches && reason != reasonShuttingDown
}

// Reasons of the broker that the client handles; docs/api.md has them all.
const (
	brokerDomain         = "tokenbroker"
	reasonTooManyWatches = "TOO_MANY_WATCHES"
	reasonShuttingDown   = "SHUTTING_DOWN"
)

// reasonOf returns the broker's reason for an error, or "" if the error is not
// the broker's.
func reasonOf(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == brokerDomain {
			return info.GetReason()
		}
	}
	return ""
}

// retryAfter returns the retry delay that the broker advises, or zero if it
// advises none.
func retryAfter(err error) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}
