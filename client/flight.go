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
	// firstBackoff and mostBackoff bound the pause between calls to the broker
	// after a failure; it doubles with each failure.
	firstBackoff = 200 * time.Millisecond
	mostBackoff  = 10 * time.Second
	// mostRetryInfo bounds the retry delay that the broker may advise.
	mostRetryInfo = 30 * time.Second
	// mostJitter bounds the random delay that spreads refreshes due at the same
	// moment.
	mostJitter = 30 * time.Second
	// soonestPoll is the longest pause before a token that is due is requested
	// again.
	soonestPoll = 5 * time.Second
	// leastPoll is the shortest pause between these requests near the end of a
	// token, which the identity provider may return again until it expires.
	leastPoll = 250 * time.Millisecond
)

// start starts a flight. No other flight may be in progress.
func (s *Source) start(rejects *Token) *flight {
	f := &flight{done: make(chan struct{}), rejects: rejects}
	s.flight = f
	s.resting.Store(false)
	if !s.client.spawn(func() { s.fly(f) }) {
		s.flight, f.err = nil, errClosed()
		close(f.done)
	}
	return f
}

func (s *Source) fly(f *flight) {
	ctx, cancel := context.WithTimeout(s.client.ctx, flightTimeout)
	defer cancel()
	asked := time.Now()
	token, err := s.ask(ctx, f.rejects)
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
		if !answered(err) {
			s.rewatch, s.badWatch = time.Time{}, 0 // the broker is unreachable; watches may work once it is back
		}
		s.failed(err)
		return
	}
	s.adopt(token, asked)
	if f.rejects != nil {
		s.rejected, s.rejectedAt = f.rejects.digest(), time.Now()
	}
	s.schedule()
}

// ask requests a token: from the first message of a new watch if one may be
// opened, or else by a call.
func (s *Source) ask(ctx context.Context, rejects *Token) (*Token, error) {
	if rejects == nil && s.mayWatch() {
		token, err := s.openWatch(ctx)
		if err == nil || answered(err) || ctx.Err() != nil {
			return token, err
		}
	}
	request := s.question
	if rejects != nil {
		sum := rejects.digest()
		request = proto.CloneOf(request)
		request.RejectedTokenSha256 = sum[:]
	}
	message, err := s.client.api.GetToken(ctx, request)
	if err != nil {
		return nil, err
	}
	return newToken(message), nil
}

// failed records a failure; callers receive it until the backoff ends.
func (s *Source) failed(err error) {
	now := time.Now()
	pause := min(firstBackoff<<min(s.tries, 10), mostBackoff)
	s.tries++
	pause = pause/2 + rand.N(pause/2)
	if advised := min(retryAfter(err), mostRetryInfo); advised > pause {
		pause = advised + rand.N(advised/10+1)
	}
	s.failure = &failure{err, now.Add(pause)}
	if s.tries&(s.tries-1) == 0 { // at tries that are powers of two: few lines in a long outage
		s.client.set.log.Warn("the token broker returned no token", "client", s.question.GetClientName(), "error", err,
			"tries", s.tries, "holding_one", s.held.Load().usable(now), "again_in", pause.Round(time.Millisecond))
	}
	s.schedule()
}

// recovered records that the broker returned a token.
func (s *Source) recovered() {
	if s.tries > 0 {
		s.client.set.log.Info("the token broker returns tokens again", "client", s.question.GetClientName(), "tries", s.tries)
	}
	s.failure, s.tries = nil, 0
}

// schedule sets the timer for the next request.
func (s *Source) schedule() {
	if s.closed || s.resting.Load() {
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
	case s.rewatch.Before(at) && s.rewatchIsDue(now):
		at = s.rewatch
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
	if s.closed || s.resting.Load() || s.flight != nil || s.rests(time.Now()) {
		return
	}
	s.start(nil)
}

// rests puts the source to rest if it has not been used for restAfter, and
// reports whether it rests.
func (s *Source) rests(now time.Time) bool {
	h := s.held.Load()
	if h.used.Swap(false) {
		s.lastUsed = now
	}
	if now.Sub(s.lastUsed) < restAfter {
		return false
	}
	s.resting.Store(true)
	if h.used.Swap(false) { // by a caller that did not see resting yet
		s.resting.Store(false)
		s.lastUsed = now
		return false
	}
	if s.watch != nil {
		s.watch.cancel()
	}
	return true
}

// nextPoll returns when to request the next token without a watch: at a random
// time after it is due, so that sources do not all call at once, and no later
// than the poll interval, which bounds how late a purge is noticed.
func (s *Source) nextPoll(token *Token, now time.Time) time.Time {
	every := s.client.set.pollInterval
	interval := every - every/10 + rand.N(every/5)
	due := token.RefreshAt().Sub(now.Round(0))
	due += rand.N(min(max(token.ExpiresAt().Sub(token.RefreshAt())/4, time.Millisecond), mostJitter))
	return now.Add(min(interval, max(due, soonest(token.ExpiresAt().Sub(now.Round(0))))))
}

// overdue returns when the next token is overdue on a watch: half way between
// its refresh time and the end of its use, but no earlier than soonest allows.
func (h *held) overdue(now time.Time) time.Time {
	refresh := now.Add(h.token.RefreshAt().Sub(now.Round(0)))
	at := refresh.Add(h.until.Sub(refresh) / 2)
	if earliest := now.Add(soonest(h.until.Sub(now))); at.Before(earliest) {
		return earliest
	}
	return at
}

// soonest returns the pause before a token that is due, with this time left, is
// requested again.
func soonest(left time.Duration) time.Duration { return min(soonestPoll, max(left/4, leastPoll)) }

// answered reports whether an error is the broker's response to the token
// request, and not about the connection or about watches.
func answered(err error) bool {
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
