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
	// firstBackoff and mostBackoff bound how long a source leaves the broker alone
	// after a failure; it doubles with each.
	firstBackoff = 200 * time.Millisecond
	mostBackoff  = 10 * time.Second
	// mostRetryInfo is how long the broker's own advice is followed.
	mostRetryInfo = 30 * time.Second
	// mostJitter spreads refreshes that are due at the same moment.
	mostJitter = 30 * time.Second
	// soonestPoll is how soon a token that is due is asked for again.
	soonestPoll = 5 * time.Second
	// leastPoll is how far apart these requests are at the end of a token, which the
	// identity provider may repeat until then.
	leastPoll = 250 * time.Millisecond
)

// start starts a flight; there is none under way.
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
			s.rewatch, s.badWatch = time.Time{}, 0 // the broker is away, not its watches
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

// ask asks the broker: by a watch where one may be opened, whose first message is
// the answer.
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

// failed notes a failure, which all who ask within a moment share.
func (s *Source) failed(err error) {
	now := time.Now()
	pause := min(firstBackoff<<min(s.tries, 10), mostBackoff)
	s.tries++
	pause = pause/2 + rand.N(pause/2)
	if advised := min(retryAfter(err), mostRetryInfo); advised > pause {
		pause = advised + rand.N(advised/10+1)
	}
	s.trouble = &trouble{err, now.Add(pause)}
	if s.tries&(s.tries-1) == 0 { // a line for each would be many in a long outage
		s.client.set.log.Warn("the token broker gives no token", "client", s.question.GetClientName(), "error", err,
			"tries", s.tries, "holding_one", s.held.Load().usable(now), "again_in", pause.Round(time.Millisecond))
	}
	s.schedule()
}

// recovered notes that the broker gives tokens.
func (s *Source) recovered() {
	if s.tries > 0 {
		s.client.set.log.Info("the token broker gives tokens again", "client", s.question.GetClientName(), "tries", s.tries)
	}
	s.trouble, s.tries = nil, 0
}

// schedule sets the timer for what is to be done next.
func (s *Source) schedule() {
	if s.closed || s.resting.Load() {
		return
	}
	now := time.Now()
	at := s.dueAt
	switch {
	case s.trouble != nil:
		at = s.trouble.until
	case s.watch != nil:
		// The watch tells of everything. Only a stream that is stuck does not, and
		// that must be found before the token ends.
		at = s.held.Load().overdue(now)
	case s.rewatch.After(now) && s.rewatch.Before(at):
		at = s.rewatch
	}
	pause := at.Sub(now)
	if s.timer == nil {
		s.timer = time.AfterFunc(pause, s.due)
		return
	}
	s.timer.Reset(pause)
}

// due does what the timer was set for.
func (s *Source) due() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.resting.Load() || s.flight != nil || s.rests(time.Now()) {
		return
	}
	s.start(nil)
}

// rests lets the source rest if nobody has asked it for long, and reports
// whether it does.
func (s *Source) rests(now time.Time) bool {
	h := s.held.Load()
	if h.used.Swap(false) {
		s.lastUsed = now
	}
	if now.Sub(s.lastUsed) < restAfter {
		return false
	}
	s.resting.Store(true)
	if h.used.Swap(false) { // by somebody who did not see yet that it rests
		s.resting.Store(false)
		s.lastUsed = now
		return false
	}
	if s.watch != nil {
		s.watch.cancel()
	}
	return true
}

// nextPoll is when to ask for the next token where no watch tells of it: some
// time after it is due, so that not all ask at once, and never later than the
// poll interval, so that a purge is not missed for longer.
func (s *Source) nextPoll(token *Token, now time.Time) time.Time {
	every := s.client.set.pollInterval
	interval := every - every/10 + rand.N(every/5)
	due := token.RefreshAt().Sub(now.Round(0))
	due += rand.N(min(max(token.ExpiresAt().Sub(token.RefreshAt())/4, time.Millisecond), mostJitter))
	return now.Add(min(interval, max(due, soonest(token.ExpiresAt().Sub(now.Round(0))))))
}

// overdue is when a watch should have brought the next token long since: half
// way between when it was due and when it ends.
func (h *held) overdue(now time.Time) time.Time {
	refresh := now.Add(h.token.RefreshAt().Sub(now.Round(0)))
	at := refresh.Add(h.until.Sub(refresh) / 2)
	if earliest := now.Add(soonest(h.until.Sub(now))); at.Before(earliest) {
		return earliest
	}
	return at
}

// soonest is how soon a token that is due, and has so long left, is asked for again.
func soonest(left time.Duration) time.Duration { return min(soonestPoll, max(left/4, leastPoll)) }

// answered reports whether an error is the broker's answer to the question, and
// not about the way there or about watches.
func answered(err error) bool {
	reason := reasonOf(err)
	return reason != "" && reason != reasonTooManyWatches && reason != reasonShuttingDown
}

// Reasons of the broker's that mean something here; docs/api.md has them all.
const (
	brokerDomain         = "tokenbroker"
	reasonTooManyWatches = "TOO_MANY_WATCHES"
	reasonShuttingDown   = "SHUTTING_DOWN"
)

// reasonOf is the broker's reason for an error; empty if it is not the broker's.
func reasonOf(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == brokerDomain {
			return info.GetReason()
		}
	}
	return ""
}

// retryAfter is when the broker says that asking again pays; zero: it does not
// say.
func retryAfter(err error) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}
