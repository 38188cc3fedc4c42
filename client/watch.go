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
	// firstRewatch and mostRewatch bound how long a source polls before it opens
	// another watch; the time doubles with each watch that fails or ends early.
	firstRewatch = 250 * time.Millisecond
	mostRewatch  = time.Minute
	// goodWatch is how long a watch must last to reset that time.
	goodWatch = 10 * time.Second
	// firstMessage is how long a watch may take to deliver its first token. After
	// that the source calls the broker without a watch: a proxy may be buffering
	// streams.
	firstMessage = 15 * time.Second
)

// watch is an open stream of tokens.
type watch struct {
	cancel context.CancelFunc
	opened time.Time
}

// mayWatch reports whether a watch may be opened now. If so it counts against
// the bound until leaveWatch.
func (s *Source) mayWatch() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watch == nil && !s.closed && !time.Now().Before(s.rewatch) && s.client.takeWatch()
}

// rewatchIsDue reports whether another watch may be opened at s.rewatch. That time may
// have passed while a call was retried. If no watch is left then, the source polls.
func (s *Source) rewatchIsDue(now time.Time) bool {
	return s.rewatch.After(now) || !s.rewatch.IsZero() && s.client.canTakeWatch()
}

func (c *Client) canTakeWatch() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.watches < *c.set.maxWatches
}

func (c *Client) takeWatch() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watches >= *c.set.maxWatches {
		return false
	}
	c.watches++
	return true
}

func (c *Client) leaveWatch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watches--
}

// openWatch opens a watch and returns its first token.
func (s *Source) openWatch(ctx context.Context) (*Token, error) {
	ctx, done := context.WithTimeout(ctx, firstMessage)
	defer done()
	streaming, cancel := context.WithCancel(s.client.ctx)
	inTime := context.AfterFunc(ctx, cancel)
	stream, first, err := s.firstOfWatch(streaming)
	if !inTime() && err == nil {
		err = status.FromContextError(ctx.Err()).Err()
	}
	if err == nil && !s.opened(stream, cancel) {
		err = errClosed()
	}
	if err != nil {
		cancel()
		s.client.leaveWatch()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.noWatch(err)
		return nil, err
	}
	return newToken(first.GetToken()), nil
}

func (s *Source) firstOfWatch(ctx context.Context) (grpc.ServerStreamingClient[tokenbrokerv1.WatchTokenResponse], *tokenbrokerv1.WatchTokenResponse, error) {
	q := s.question
	stream, err := s.client.api.WatchToken(ctx, &tokenbrokerv1.WatchTokenRequest{
		ClientName: q.GetClientName(), Audience: q.GetAudience(), Resources: q.GetResources(), Scopes: q.GetScopes(),
	})
	if err != nil {
		return nil, nil, err
	}
	first, err := stream.Recv()
	return stream, first, err
}

// opened starts reading the stream. It reports false if the source or client is
// closed.
func (s *Source) opened(stream grpc.ServerStreamingClient[tokenbrokerv1.WatchTokenResponse], cancel context.CancelFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &watch{cancel, time.Now()}
	if s.closed || !s.client.spawn(func() { s.read(stream, w) }) {
		return false
	}
	s.watch, s.rewatch = w, time.Time{}
	return true
}

// read adopts the tokens from the watch until it ends.
func (s *Source) read(stream grpc.ServerStreamingClient[tokenbrokerv1.WatchTokenResponse], w *watch) {
	for {
		message, err := stream.Recv()
		if err != nil {
			s.watchEnded(w, err)
			return
		}
		s.pushed(newToken(message.GetToken()))
	}
}

func (s *Source) pushed(token *Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.closed {
		return
	}
	s.adopt(token, now)
	if !s.rests(now) {
		s.schedule()
	}
}

// watchEnded continues without the watch. A response of the broker about the
// token is a failure like any other. Otherwise the connection or the replica
// ended: another watch is opened soon, after a random delay, so that sources do
// not all reconnect at once.
func (s *Source) watchEnded(w *watch, err error) {
	w.cancel()
	s.client.leaveWatch()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch = nil
	if s.closed || s.resting.Load() {
		return
	}
	now := time.Now()
	s.dueAt = now.Add(s.client.set.pollInterval) // the watch delivered all changes until now
	if now.Sub(w.opened) >= goodWatch {
		s.badWatch = 0
	}
	s.noWatch(err)
	if answered(err) {
		s.failed(err)
		return
	}
	s.schedule()
}

// noWatch records that a watch failed to open or ended, and sets when to open
// the next, unless the broker responded about the token itself.
func (s *Source) noWatch(err error) {
	if answered(err) {
		return
	}
	pause := min(firstRewatch<<min(s.badWatch, 10), mostRewatch)
	s.badWatch++
	if status.Code(err) == codes.Unimplemented || reasonOf(err) == reasonTooManyWatches {
		pause = mostRewatch
	}
	s.rewatch = time.Now().Add(pause/2 + rand.N(pause))
}
