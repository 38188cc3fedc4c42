package client

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

const (
	// initialRewatch and maxRewatch bound how long a source polls before it opens
	// another watch; the time doubles with each watch that fails or ends early.
	initialRewatch = 250 * time.Millisecond
	maxRewatch     = time.Minute
	// stableWatch is how long a watch must last to reset that time.
	stableWatch = 10 * time.Second
	// firstMessageTimeout bounds the wait for the first token of a watch. After
	// that the source calls the broker without a watch: a proxy may be buffering
	// streams.
	firstMessageTimeout = 15 * time.Second
)

// watch is an open stream of tokens.
type watch struct {
	cancel   context.CancelFunc
	openedAt time.Time
}

// acquireWatch reports whether a watch may be opened now. If so it counts
// against the bound until releaseWatch.
func (s *Source) acquireWatch() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watch == nil && !s.closed && !time.Now().Before(s.rewatchAt) && s.client.acquireWatch()
}

// canRewatch reports whether another watch may be opened at s.rewatchAt. That time
// may have passed while a call was retried; then a watch must be free.
func (s *Source) canRewatch(now time.Time) bool {
	return s.rewatchAt.After(now) || !s.rewatchAt.IsZero() && s.client.hasFreeWatch()
}

func (c *Client) hasFreeWatch() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.watches < *c.cfg.maxWatches
}

func (c *Client) acquireWatch() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watches >= *c.cfg.maxWatches {
		return false
	}
	c.watches++
	return true
}

func (c *Client) releaseWatch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watches--
}

// openWatch opens a watch and returns its first token.
func (s *Source) openWatch(ctx context.Context) (*Token, error) {
	ctx, cancelTimeout := context.WithTimeout(ctx, firstMessageTimeout)
	defer cancelTimeout()
	streamCtx, cancel := context.WithCancel(s.client.ctx)
	stopTimeout := context.AfterFunc(ctx, cancel)
	stream, first, err := s.openStream(streamCtx)
	if !stopTimeout() && err == nil {
		err = status.FromContextError(ctx.Err()).Err()
	}
	if err == nil && !s.startWatch(stream, cancel) {
		err = errClosed()
	}
	if err != nil {
		cancel()
		s.client.releaseWatch()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.backOffWatch(err)
		return nil, err
	}
	return newToken(first.GetToken()), nil
}

func (s *Source) openStream(ctx context.Context) (grpc.ServerStreamingClient[tokenbrokerv1.WatchTokenResponse], *tokenbrokerv1.WatchTokenResponse, error) {
	req := s.req
	stream, err := s.client.api.WatchToken(ctx, &tokenbrokerv1.WatchTokenRequest{
		ClientName: req.GetClientName(), Audience: req.GetAudience(), Resources: req.GetResources(), Scopes: req.GetScopes(),
	})
	if err != nil {
		return nil, nil, err
	}
	first, err := stream.Recv()
	return stream, first, err
}

// startWatch starts reading the stream. It reports false if the source or client
// is closed.
func (s *Source) startWatch(stream grpc.ServerStreamingClient[tokenbrokerv1.WatchTokenResponse], cancel context.CancelFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &watch{cancel, time.Now()}
	if s.closed || !s.client.spawn(func() { s.receive(stream, w) }) {
		return false
	}
	s.watch, s.rewatchAt = w, time.Time{}
	return true
}

// receive adopts the tokens from the watch until it ends.
func (s *Source) receive(stream grpc.ServerStreamingClient[tokenbrokerv1.WatchTokenResponse], w *watch) {
	for {
		resp, err := stream.Recv()
		if err != nil {
			s.endWatch(w, err)
			return
		}
		s.handleToken(newToken(resp.GetToken()))
	}
}

func (s *Source) handleToken(token *Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.closed {
		return
	}
	s.adopt(token, now)
	if !s.stopIfIdle(now) {
		s.schedule()
	}
}

// endWatch continues without the watch. A response of the broker about the token
// is a failure like any other. Otherwise the connection or the replica ended:
// another watch is opened soon, after a random delay, so that sources do not all
// reconnect at once.
func (s *Source) endWatch(w *watch, err error) {
	w.cancel()
	s.client.releaseWatch()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch = nil
	if s.closed || s.idle.Load() {
		return
	}
	now := time.Now()
	s.dueAt = now.Add(s.client.cfg.pollInterval) // the watch delivered all changes until now
	if now.Sub(w.openedAt) >= stableWatch {
		s.watchFailures = 0
	}
	s.backOffWatch(err)
	if isBrokerResponse(err) {
		s.recordFailure(err)
		return
	}
	s.schedule()
}

// backOffWatch sets when to open the next watch after one failed to open or
// ended, unless the broker responded about the token itself.
func (s *Source) backOffWatch(err error) {
	if isBrokerResponse(err) {
		return
	}
	pause := min(initialRewatch<<min(s.watchFailures, 10), maxRewatch)
	s.watchFailures++
	if status.Code(err) == codes.Unimplemented || reasonOf(err) == reasonTooManyWatches {
		pause = maxRewatch
	}
	s.rewatchAt = time.Now().Add(pause/2 + rand.N(pause))
}
