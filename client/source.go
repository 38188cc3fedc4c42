package client

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

const (
	// flightTimeout bounds what is asked behind callers' backs. It is longer than
	// the broker may take.
	flightTimeout = 35 * time.Second
	// mostMargin is the end of a token's life in which a source does not answer
	// with it: time for the caller to use it. It is less for tokens that had less
	// than ten times as much left when they came. The broker has a margin of its
	// own, which is longer, and replaces tokens long before.
	mostMargin = 10 * time.Second
	// rejectedInterval: a token is reported as rejected once in so long, which is
	// also how seldom the broker replaces one for that.
	rejectedInterval = 30 * time.Second
	// restAfter is how long nobody need ask for a source to let go of its watch
	// and to ask no more.
	restAfter = 15 * time.Minute
	// remembered is how many tokens that were replaced are known, so that a
	// replica that has not heard of it does not bring one back.
	remembered = 8
)

// Source keeps one token: of one client of the broker, for one audience, with
// some scopes. It is safe for concurrent use. Sources come from
// [Client.TokenSource] and end with the Client.
//
// A source begins to work when it is first asked. It has the broker tell it of
// each token that takes the place of the last, over a stream, or, where that
// cannot be, asks from time to time. After 15 minutes to about two lives of a
// token in which nobody asked it, it rests until somebody does.
type Source struct {
	client   *Client
	question *tokenbrokerv1.GetTokenRequest // not changed

	// held is what there is to answer with; never nil.
	held atomic.Pointer[held]

	mu       sync.Mutex
	closed   bool
	resting  bool
	flight   *flight     // under way; nil: none
	watch    *watch      // open; nil: none
	rewatch  time.Time   // no watch is opened before
	badWatch int         // watches in a row that did not open, or not for long
	timer    *time.Timer // of what is to be done next
	dueAt    time.Time   // when to ask for the next token without a watch
	lastUsed time.Time
	trouble  *trouble // why the last flight failed; nil: it did not
	tries    int      // that failed in a row
	// rejected is the last token that was reported, and when.
	rejected   [sha256.Size]byte
	rejectedAt time.Time
	// replaced are the last tokens that others took the place of.
	replaced     [remembered][sha256.Size]byte
	replacements int
}

// held is a token as a source answers with it. It is immutable but for used.
type held struct {
	token *Token
	// until is when it is answered with no more, by the monotonic clock and by
	// the wall clock, whichever is first: a wall clock that was set back must not
	// lengthen a token's life, and the monotonic clock stands still while a
	// machine sleeps.
	until     time.Time
	untilWall int64
	came      time.Time
	// used reports that the token was asked for since somebody last looked.
	used atomic.Bool
}

func (h *held) usable(now time.Time) bool {
	return now.Before(h.until) && now.UnixNano() < h.untilWall
}

// hold makes of a token that came now what there is to answer with.
func hold(token *Token, now time.Time) *held {
	left := token.ExpiresAt().Sub(now.Round(0))
	left -= min(mostMargin, left/10)
	return &held{token: token, until: now.Add(left), untilWall: now.Add(left).UnixNano(), came: now}
}

// flight asks the broker for all who wait.
type flight struct {
	done chan struct{}
	// rejects is the token that the broker is told was rejected; nil: none.
	rejects *Token
	err     error // set before done is closed
}

// trouble is why there is no fresher token, and when it is tried again.
type trouble struct {
	err   error
	until time.Time
}

// TokenSource returns the source of tokens of the client that the broker's
// configuration calls name. It asks nobody yet. Calls with the same name and the
// same options return the same source.
func (c *Client) TokenSource(name string, opts ...SourceOption) *Source {
	question := &tokenbrokerv1.GetTokenRequest{ClientName: name}
	for _, opt := range opts {
		opt.token(question)
	}
	question.Resources = slices.Clone(question.GetResources())
	question.Scopes = slices.Compact(slices.Sorted(slices.Values(question.GetScopes())))
	key := keyOf(question)
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.sources[key]; known != nil {
		return known
	}
	made := &Source{client: c, question: question, closed: c.closed}
	made.held.Store(&held{})
	if !c.closed {
		c.sources[key] = made
	}
	return made
}

// keyOf is the same for the same question.
func keyOf(q *tokenbrokerv1.GetTokenRequest) string {
	var key strings.Builder
	write := func(values ...string) {
		fmt.Fprintf(&key, "%d:", len(values))
		for _, value := range values {
			key.WriteString(strconv.Quote(value))
		}
	}
	write(q.GetClientName(), q.GetAudience())
	write(q.GetResources()...)
	write(q.GetScopes()...)
	return key.String()
}

// Token returns a token to present now: from memory where there is one, without
// a lock and without waiting for a refresh that is under way. Where there is
// none, all callers wait for one call to the broker, each until its own ctx ends:
// give it 10 s or more. If that call fails they all get its error, and so do
// those who ask within a moment of it: the broker is not asked by each of them.
//
// A token is answered with while it is good, whether or not the broker can be
// reached, but not in the last 10 s of its life, or a tenth of what was left of
// it when it came, if that is less.
func (s *Source) Token(ctx context.Context) (*Token, error) {
	h, now := s.held.Load(), time.Now()
	if h.usable(now) {
		if !h.used.Load() {
			s.firstUse(h, now)
		}
		return h.token, nil
	}
	return s.wait(ctx)
}

// firstUse notes that the token is asked for, and wakes a source that rests.
func (s *Source) firstUse(h *held, now time.Time) {
	h.used.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.resting || s.closed {
		return
	}
	s.resting, s.lastUsed = false, now
	if s.flight == nil {
		s.start(nil)
	}
}

// wait returns what the next flight brings.
func (s *Source) wait(ctx context.Context) (*Token, error) {
	f, token, err := s.join(nil)
	if f == nil {
		return token, err
	}
	err = f.wait(ctx, s)
	h, now := s.held.Load(), time.Now()
	switch {
	case h.usable(now):
	case err != nil:
		return nil, err
	default:
		return nil, status.Error(codes.Unavailable, "the broker's answer holds no token that is good by the clock of this machine; compare its clock with the broker's")
	}
	h.used.Store(true)
	return h.token, nil
}

// Rejected reports that an API refused a token of this source (HTTP 401), and
// returns the one to use instead. However many callers report it, the broker is
// told once, and replaces it once; where that has happened already the current
// token is returned at once.
//
// If the token returned is the one reported, the broker has no other to give
// yet: it replaces a rejected token at most once in 30 s, so that an API that
// refuses everything does not cost the IdP a call for each request. Do not try
// again with it.
//
// Until the replacement is there, [Source.Token] goes on answering with the old
// token: another API may accept it.
func (s *Source) Rejected(ctx context.Context, token *Token) (*Token, error) {
	// A flight that was under way may have been about something else.
	for range 3 {
		f, current, err := s.join(token)
		switch {
		case err != nil:
			return nil, err
		case f == nil:
			return current, nil
		}
		if err := f.wait(ctx, s); err != nil {
			return nil, err
		}
	}
	return s.Token(ctx)
}

// join returns the flight to wait for, or the token or error that needs none.
// With rejected it is about a token other than that one.
func (s *Source) join(rejected *Token) (*flight, *Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, now := s.held.Load(), time.Now()
	switch usable := h.usable(now); {
	case s.closed:
		return nil, nil, errClosed()
	case usable && (rejected == nil || h.token.AccessToken() != rejected.AccessToken() || s.reported(rejected, now)):
		return nil, h.token, nil
	case !usable:
		rejected = nil
	}
	switch {
	case s.flight != nil:
		return s.flight, nil, nil
	case s.trouble != nil && now.Before(s.trouble.until):
		return nil, nil, s.trouble.err
	}
	s.lastUsed = now
	return s.start(rejected), nil, nil
}

// reported reports whether the broker was told a moment ago that the token was
// rejected.
func (s *Source) reported(token *Token, now time.Time) bool {
	return now.Sub(s.rejectedAt) < rejectedInterval && s.rejected == token.digest()
}

// report is Rejected for those who do not wait.
func (s *Source) report(token *Token) {
	_, _, err := s.join(token)
	_ = err // a flight says in the log what it came to
}

// wait waits for the end of the flight, or of ctx.
func (f *flight) wait(ctx context.Context, s *Source) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return &gaveUpError{s.question.GetClientName(), context.Cause(ctx)}
	}
}

// gaveUpError says that a caller's context ended before there was a token.
type gaveUpError struct {
	client string
	cause  error
}

func (e *gaveUpError) Error() string {
	return fmt.Sprintf("the caller gave up before the token broker had a token of %q: %v", e.client, e.cause)
}

func (e *gaveUpError) Unwrap() error { return e.cause }

// GRPCStatus makes it a status like all other errors of calls.
func (e *gaveUpError) GRPCStatus() *status.Status {
	return status.New(status.FromContextError(e.cause).Code(), e.Error())
}

// adopt takes a token for the one to answer with, unless it is known to be older
// than what is held. A token that a watch pushed is newer by what the stream
// promises; one that was asked for is not if another came meanwhile, or if it was
// replaced here already and the replica that gave it has not heard.
func (s *Source) adopt(token *Token, asked time.Time, pushed bool) {
	now, current := time.Now(), s.held.Load()
	s.trouble, s.tries = nil, 0
	s.dueAt = s.nextPoll(token, now)
	switch usable := current.usable(now); {
	case usable && current.token.AccessToken() == token.AccessToken():
		return
	case usable && !pushed && (current.came.After(asked) || slices.Contains(s.replaced[:], token.digest())):
		return
	case current.token != nil:
		s.replaced[s.replacements%remembered] = current.token.digest()
		s.replacements++
	}
	if current.used.Load() {
		s.lastUsed = now
	}
	s.held.Store(hold(token, now))
}

func (s *Source) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.held.Store(&held{})
	if s.timer != nil {
		s.timer.Stop()
	}
}

// Format writes which client's tokens these are, whatever the verb, and never one
// of them.
func (s *Source) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "tokens of "+s.question.GetClientName())
}
