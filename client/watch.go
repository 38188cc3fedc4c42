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
	// another watch; it doubles with each that is no good.
	firstRewatch = 250 * time.Millisecond
	mostRewatch  = time.Minute
	// goodWatch is how long a watch lasts that was worth opening.
	goodWatch = 10 * time.Second
	// firstMessage is how long a watch may take to bring its first token. Beyond
	// it the broker is asked without a watch: something on the way may hold
	// streams back.
	firstMessage = 15 * time.Second
)

// watch is an open stream of tokens.
type watch struct {
	cancel context.CancelFunc
	opened time.Time
}

// mayWatch reports whether a watch may be opened now. It is then one of those
// that are bounded, until the client is told that it is not.
func (s *Source) mayWatch() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watch == nil && !s.closed && !time.Now().Before(s.rewatch) && s.client.takeWatch()
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

// opened has the stream read from now on.
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

// read takes what the watch brings, until it ends.
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
	if s.closed || s.rests(now) {
		return
	}
	s.adopt(token, now, true)
	s.schedule()
}

// watchEnded goes on without the watch. What the broker said about the token is
// a failure like any other. Else the connection or the replica ended: another
// watch is opened soon, but not by all who lost theirs in the same instant.
func (s *Source) watchEnded(w *watch, err error) {
	w.cancel()
	s.client.leaveWatch()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch = nil
	if s.closed || s.resting {
		return
	}
	now := time.Now()
	s.dueAt = now.Add(s.client.set.pollInterval) // until now it was told of everything
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

// noWatch notes that a watch did not open, or ended, and when to open the next,
// unless it is the token that there is none of.
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
