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
	// flightTimeout bounds requests in the background. It is longer than the
	// broker's own limit.
	flightTimeout = 35 * time.Second
	// maxMargin is how long before its expiry a source no longer returns a token,
	// so that the caller has time to use it. The margin is a tenth of the life left
	// on arrival if that is less. The broker replaces tokens long before.
	maxMargin = 10 * time.Second
	// rejectedInterval is the shortest time between two reports that a token is
	// rejected. The broker replaces rejected tokens no more often than that.
	rejectedInterval = 30 * time.Second
	// idleAfter is how long a source must be unused before it closes its watch and
	// stops polling.
	idleAfter = 15 * time.Minute
	// maxReplaced is how many replaced tokens are remembered, so that they are not
	// adopted again from a replica that missed the replacement.
	maxReplaced = 8
)

// Source keeps one token: for one client of the broker, one audience and one
// set of scopes. It is safe for concurrent use. Sources come from
// [Client.TokenSource] and end with the Client.
//
// A source starts working at its first use. It receives each new token from the
// broker over a stream or, if no stream is possible, polls. After it has been
// unused for between 15 minutes and about two token lifetimes, it stops until
// its next use.
type Source struct {
	client *Client
	req    *tokenbrokerv1.GetTokenRequest // immutable

	// held is the token to return; the pointer is never nil.
	held atomic.Pointer[heldToken]
	// idle is set with mu held: no requests are made until the next use.
	idle atomic.Bool

	mu            sync.Mutex
	closed        bool
	flight        *flight     // in progress; may be nil
	watch         *watch      // open; may be nil
	rewatchAt     time.Time   // earliest time to open a watch
	watchFailures int         // successive watches that failed to open or ended early
	timer         *time.Timer // runs due
	dueAt         time.Time   // when to poll without a watch
	lastUsed      time.Time
	failure       *failure // failure of the last flight; nil if it succeeded
	failureCount  int      // successive failures
	// lastRejected is the digest of the last token that was reported, at rejectedAt.
	lastRejected [sha256.Size]byte
	rejectedAt   time.Time
	// replaced are the digests of the last replaced tokens.
	replaced     [maxReplaced][sha256.Size]byte
	replacements int
}

// heldToken is a token and the limit of its use. It is immutable except for used and
// shared.
type heldToken struct {
	token *Token
	// until and untilWall end the use of the token by the monotonic clock and by
	// the wall clock, whichever is first: setting the wall clock back must not
	// lengthen a token's life, and the monotonic clock stands still while a machine
	// sleeps.
	until     time.Time
	untilWall int64 // Unix seconds, rounded up
	arrived   time.Time
	// used is set by each use and cleared by stopIfIdle.
	used atomic.Bool
	// shared is the token for users of [Source.OAuth2]; nil before their first use.
	shared atomic.Pointer[sharedOAuth2Token]
}

func (h *heldToken) usable(now time.Time) bool {
	return now.Before(h.until) && now.Unix() < h.untilWall
}

func newHeldToken(token *Token, now time.Time) *heldToken {
	left := token.ExpiresAt().Sub(now.Round(0))
	left -= min(maxMargin, left/10)
	return &heldToken{token: token, until: now.Add(left), untilWall: now.Add(left + time.Second - 1).Unix(), arrived: now}
}

// flight is one request to the broker, shared by all callers that wait.
type flight struct {
	done chan struct{}
	// rejected is the token to report as rejected; may be nil.
	rejected *Token
	err      error // set before done is closed
}

// failure is the error of the last flight and when the next attempt may be made.
type failure struct {
	err   error
	until time.Time
}

// TokenSource returns the source of tokens of the client with this name in the
// broker's configuration. It makes no request yet. Calls with the same name and
// the same options return the same source. Sources are kept until the Client is
// closed: create them per API that the program calls, not per user.
func (c *Client) TokenSource(name string, opts ...SourceOption) *Source {
	req := &tokenbrokerv1.GetTokenRequest{ClientName: name}
	for _, opt := range opts {
		opt.token(req)
	}
	req.Resources = slices.Clone(req.GetResources())
	req.Scopes = slices.Compact(slices.Sorted(slices.Values(req.GetScopes())))
	key := keyOf(req)
	c.mu.Lock()
	defer c.mu.Unlock()
	if source := c.sources[key]; source != nil {
		return source
	}
	source := &Source{client: c, req: req, closed: c.closed}
	source.held.Store(&heldToken{})
	if !c.closed {
		c.sources[key] = source
	}
	return source
}

// keyOf returns a key that is equal for equal requests.
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

// Token returns a token that is valid now. If one is held it comes from memory,
// without a lock and without waiting for a refresh in progress. Otherwise all
// callers share one call to the broker, each waiting until its own ctx ends:
// give ctx 10 s or more. If that call fails, all of them get its error, as do
// callers during the backoff that follows (at most 33 s), without another call
// to the broker.
//
// A held token is returned while it is valid, even if the broker is
// unreachable, except in the last 10 s of its life, or in the last tenth of the
// life that it had left on arrival, if that is less.
func (s *Source) Token(ctx context.Context) (*Token, error) {
	if h, _ := s.hit(); h != nil {
		return h.token, nil
	}
	return s.wait(ctx)
}

// hit returns the held token and the present time, or nil if no usable token is
// held.
func (s *Source) hit() (*heldToken, time.Time) {
	h, now := s.held.Load(), time.Now()
	if !h.usable(now) {
		return nil, now
	}
	if !h.used.Load() {
		s.recordUse(h, now)
	}
	return h, now
}

// recordUse records a use of the token, and wakes an idle source.
func (s *Source) recordUse(h *heldToken, now time.Time) {
	h.used.Store(true)
	if !s.idle.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.idle.CompareAndSwap(true, false) {
		return
	}
	s.lastUsed = now
	if s.flight == nil {
		s.start(nil)
	}
}

// wait returns the token after the next flight.
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
		return nil, status.Error(codes.Unavailable, "by this machine's clock, the token in the broker's response is not valid; compare this clock with the broker's")
	}
	h.used.Store(true)
	return h.token, nil
}

// Rejected reports that an API refused a token of this source (HTTP 401), and
// returns the token to use instead. However many callers report it, the broker
// gets one report and replaces the token once; if it was replaced already, the
// current token is returned at once.
//
// If the returned token is the reported one, the broker has no other yet: it
// replaces a rejected token at most once in 30 s, so that an API that refuses
// every token does not cost the IdP a call for each request. Do not retry with
// it.
//
// Until the replacement arrives, [Source.Token] keeps returning the old token:
// another API may accept it.
func (s *Source) Rejected(ctx context.Context, token *Token) (*Token, error) {
	// A flight in progress may have started without this report.
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

// join returns the flight to wait for, or a token or error if no flight is
// needed. If rejected is not nil, it seeks a token other than rejected.
func (s *Source) join(rejected *Token) (*flight, *Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, now := s.held.Load(), time.Now()
	switch usable := h.usable(now); {
	case s.closed:
		return nil, nil, errClosed()
	case usable && (rejected == nil || h.token.AccessToken() != rejected.AccessToken() || s.wasReported(rejected, now)):
		return nil, h.token, nil
	case !usable:
		rejected = nil
	}
	switch {
	case s.flight != nil:
		return s.flight, nil, nil
	case s.failure != nil && now.Before(s.failure.until):
		return nil, nil, s.failure.err
	}
	s.lastUsed = now
	return s.start(rejected), nil, nil
}

// wasReported reports whether the token was reported as rejected within
// rejectedInterval.
func (s *Source) wasReported(token *Token, now time.Time) bool {
	return now.Sub(s.rejectedAt) < rejectedInterval && s.lastRejected == token.digest()
}

// reportRejected is Rejected without waiting.
func (s *Source) reportRejected(token *Token) {
	_, _, err := s.join(token)
	_ = err // a flight logs its failures
}

// wait waits for the end of the flight, or of ctx.
func (f *flight) wait(ctx context.Context, s *Source) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return &contextError{s.req.GetClientName(), context.Cause(ctx)}
	}
}

// contextError means that a caller's context ended before a token arrived.
type contextError struct {
	client string
	cause  error
}

func (e *contextError) Error() string {
	return fmt.Sprintf("the caller's context ended before the token broker returned a token of %q: %v", e.client, e.cause)
}

func (e *contextError) Unwrap() error { return e.cause }

// GRPCStatus makes it a gRPC status like all other errors of calls.
func (e *contextError) GRPCStatus() *status.Status {
	return status.New(status.FromContextError(e.cause).Code(), e.Error())
}

// adopt makes token the held token, unless it is older than the present one:
// because that arrived after the request for token was sent, or because token
// was replaced before and comes from a replica that missed the replacement.
func (s *Source) adopt(token *Token, sent time.Time) {
	now, current := time.Now(), s.held.Load()
	s.recordSuccess()
	s.dueAt = s.nextPoll(token, now)
	switch usable := current.usable(now); {
	case usable && current.token.AccessToken() == token.AccessToken():
		return
	case usable && (current.arrived.After(sent) || slices.Contains(s.replaced[:], token.digest())):
		return
	case current.token != nil:
		s.replaced[s.replacements%maxReplaced] = current.token.digest()
		s.replacements++
	}
	if current.used.Load() {
		s.lastUsed = now
	}
	s.held.Store(newHeldToken(token, now))
}

func (s *Source) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.held.Store(&heldToken{})
	if s.timer != nil {
		s.timer.Stop()
	}
}

// Format writes the name of the client that the tokens belong to, for any verb,
// and never a token.
func (s *Source) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "tokens of "+s.req.GetClientName())
}
