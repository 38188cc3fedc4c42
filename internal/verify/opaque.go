package verify

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

const (
	defaultOpaqueCache = 30 * time.Second
	maxOpaqueCache     = 5 * time.Minute
	maxOpaqueLifetime  = 24 * time.Hour
	// inactiveCache bounds how long an inactive result is cached: long enough for a
	// client that presents the token again and again, and short enough for a token
	// that the issuer has only just issued.
	inactiveCache = 5 * time.Second

	// slotWait is how long a call waits for a slot, introspectTimeout how long the
	// request to the issuer may take after that.
	slotWait          = 2 * time.Second
	introspectTimeout = 6 * time.Second
	// maxRequests bounds the concurrent requests to the issuer, and maxCalls those and
	// the calls that wait for a slot. Further tokens get an [UnavailableError], so that
	// they leave room in a connection for tokens of other issuers. Tokens that were active
	// before have slots of their own, maxKnownRequests.
	maxRequests      = 64
	maxKnownRequests = 32
	maxCalls         = 125

	// Bounds of the caches.
	activeBytes   = 16 << 20
	inactiveBytes = 1 << 20
	knownBytes    = 4 << 20

	opaqueDomain = "tokenbroker: an opaque token\x00"
)

// Introspection configures the verification of an issuer's opaque tokens by
// introspection (RFC 7662).
type Introspection struct {
	// Endpoint introspects one token at the issuer, as one of the issuer's clients. It
	// returns whether the token is active, and the whole response: a JSON object. Its
	// error must quote nothing of either.
	//
	// The error may implement two methods. Backoff() time.Duration returns how long to
	// back off; negative: the failure concerns this token only. Ambiguous() bool returns
	// true if the failure may concern this token only or all tokens.
	Endpoint introspector
	// Cache is how long a result is used, and therefore how late a revocation at the
	// issuer is noticed; at most 5 min. A result is never used after the token's
	// expiry, and an inactive one for at most 5 s. Zero: 30 s. Negative: no cache.
	Cache time.Duration
	// DefaultLifetime is the lifetime of a token if the response has no exp, counted
	// from the request; at most 24 h. Zero: such tokens are rejected.
	DefaultLifetime time.Duration
}

type introspector interface {
	Introspect(ctx context.Context, token redact.String) (active bool, members []byte, err error)
}

func (i *Introspection) check() error {
	switch {
	case i == nil:
		return nil
	case i.Endpoint == nil:
		return errors.New("its introspection has no endpoint")
	case i.Cache > maxOpaqueCache:
		return errors.New("its introspection results would be cached for longer than 5 min")
	case i.DefaultLifetime < 0 || i.DefaultLifetime > maxOpaqueLifetime:
		return errors.New("the default lifetime of its opaque tokens is not between 0 and 24 h")
	}
	return nil
}

// isOpaque reports by its form alone whether a token is introspected. A text that looks
// like a JWT never is, whatever its issuer and its defects: introspection must not
// accept a token after its signature was rejected, and an issuer must not see the tokens
// of another issuer. An encrypted JWT, which has five parts, is opaque.
func isOpaque(presented redact.String) bool {
	first, rest, _ := strings.Cut(presented.Reveal(), ".")
	parts := strings.Count(rest, ".") + 2
	return rest == "" || parts < 3 || parts == 5 || !beginsObject(first)
}

// beginsObject reports whether some parser could decode the first part of a token as the
// beginning of a JSON object: in either base64 alphabet, and after white space, a byte
// order mark or the NUL bytes of UTF-16.
func beginsObject(part string) bool {
	// "ey" decodes to {" and "ew" to { with white space.
	if strings.HasPrefix(part, "ey") || strings.HasPrefix(part, "ew") {
		return true
	}
	part = strings.ReplaceAll(strings.ReplaceAll(part, "+", "-"), "/", "_")
	decoded, _ := base64.RawURLEncoding.DecodeString(part) // on an error, the bytes before it
	start := 0
	for start < len(decoded) && blank(decoded[start]) {
		start++
	}
	object := decoded[start:]
	return start > 0 && len(object) > 1 && object[0] == '{' && (object[1] == '"' || blank(object[1]))
}

// blank reports whether a byte is white space or part of a byte order mark.
func blank(b byte) bool { return b <= ' ' || strings.IndexByte("\xef\xbb\xbf\xfe\xff", b) >= 0 }

// isBearerToken reports whether a token follows RFC 6750 section 2.1. It also refuses a
// dot at either end, because some parsers ignore an empty part there.
func isBearerToken(token string) bool {
	text := strings.TrimRight(token, "=")
	strange := strings.ContainsFunc(text, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._~+/", r)
	})
	return text != "" && !strange && len(token) <= jose.MaxTokenSize && text[0] != '.' && text[len(text)-1] != '.'
}

// opaqueVerifier verifies the opaque tokens of one issuer. It is safe for concurrent
// use.
type opaqueVerifier struct {
	issuer  *issuer
	cfg     Introspection // with defaults applied
	logger  *slog.Logger
	metrics introspectionMetrics
	key     []byte // of the digests

	mu sync.Mutex
	// active and inactive cache results. known holds the digests of tokens that were
	// active, without facts, until the tokens expire.
	active, inactive, known *resultCache
	calls                   map[tokenDigest]*call
	answered                bool // the endpoint has answered a request since the start
	// knownTokens has the calls for tokens in known, otherTokens all other calls.
	knownTokens, otherTokens *lane
}

// introspectionResult is the issuer's response about a token. It is immutable: either
// facts or rejection is set.
type introspectionResult struct {
	facts     *Facts
	rejection error
	until     time.Time // when it must no longer be used
}

// call is one introspection request. All concurrent verifications of a token share it.
type call struct {
	lane   *lane
	done   chan struct{} // closed when result or err is set
	result *introspectionResult
	err    error
}

func newOpaqueVerifier(i *issuer, logger *slog.Logger, metrics *metrics) *opaqueVerifier {
	cfg := *i.cfg.Introspection
	cfg.Cache = max(cmp.Or(cfg.Cache, defaultOpaqueCache), 0)
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // it never fails
	return &opaqueVerifier{
		issuer:      i,
		cfg:         cfg,
		logger:      logger.With("issuer", i.cfg.Issuer),
		metrics:     metrics.introspectionForIssuer(i.cfg.Issuer),
		key:         key,
		active:      newResultCache(activeBytes),
		inactive:    newResultCache(inactiveBytes),
		known:       newResultCache(knownBytes),
		calls:       map[tokenDigest]*call{},
		knownTokens: newLane("known", maxKnownRequests),
		otherTokens: newLane("other", maxRequests),
	}
}

// establish returns the facts of an opaque token from the cache or from the issuer. The
// caller judges them like the facts of a JWT.
func (o *opaqueVerifier) establish(ctx context.Context, presented redact.String) (established, error) {
	if !isBearerToken(presented.Reveal()) {
		return established{}, reject(Malformed, "The token is malformed: it is not a JWT, and it has characters that a bearer token cannot have (RFC 6750 section 2.1) or is too long.")
	}
	result, err := o.result(ctx, presented)
	switch {
	case err != nil:
		return established{}, err
	case result.rejection != nil:
		return established{}, result.rejection
	}
	return established{issuer: o.issuer, facts: result.facts, freshUntil: result.until}, nil
}

func (o *opaqueVerifier) result(ctx context.Context, presented redact.String) (*introspectionResult, error) {
	cached, pending, err := o.join(ctx, o.digest(presented), presented)
	if cached != nil || err != nil {
		return cached, err
	}
	select {
	case <-pending.done:
		return pending.result, pending.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// digest identifies a token, as [factsCache.find] does.
func (o *opaqueVerifier) digest(presented redact.String) tokenDigest {
	token := presented.Reveal()
	mac := hmac.New(sha256.New, o.key)
	_, _ = mac.Write(binary.BigEndian.AppendUint64([]byte(opaqueDomain), uint64(len(token))))
	_, _ = mac.Write([]byte(token))
	return tokenDigest(mac.Sum(nil))
}

// join returns the cached result of a token, or else the call in progress for it, which
// it starts if necessary and permitted.
func (o *opaqueVerifier) join(ctx context.Context, digest tokenDigest, presented redact.String) (*introspectionResult, *call, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if result := o.active.find(digest, now); result != nil {
		o.testEndpoint(ctx, digest, presented, now)
		o.metrics.avoided.Inc()
		return result, nil, nil
	}
	if result := o.inactive.find(digest, now); result != nil {
		o.metrics.avoided.Inc()
		return result, nil, nil
	}
	if pending := o.calls[digest]; pending != nil {
		o.metrics.avoided.Inc()
		return nil, pending, nil
	}
	lane := o.otherTokens
	if o.known.find(digest, now) != nil {
		lane = o.knownTokens
	}
	if wait, err := lane.admit(now); err != nil {
		return nil, nil, o.unavailable(wait, err)
	}
	return nil, o.start(ctx, digest, presented, lane), nil
}

// testEndpoint introspects an active token again while calls for other tokens fail. If
// the issuer answers, those failures concerned the other tokens only. The caller holds
// o.mu.
func (o *opaqueVerifier) testEndpoint(ctx context.Context, digest tokenDigest, presented redact.String, now time.Time) {
	if !o.otherTokens.failing() || o.knownTokens.calls > 0 {
		return
	}
	if _, err := o.knownTokens.admit(now); err == nil {
		o.start(ctx, digest, presented, o.knownTokens)
	}
}

// start starts a call. The caller holds o.mu.
func (o *opaqueVerifier) start(ctx context.Context, digest tokenDigest, presented redact.String, l *lane) *call {
	c := &call{lane: l, done: make(chan struct{})}
	o.calls[digest] = c
	l.calls++
	go o.run(tracing.Detached(context.Background(), ctx), digest, c, presented)
	return c
}

func (o *opaqueVerifier) unavailable(wait time.Duration, err error) error {
	return &UnavailableError{
		Issuer: o.issuer.cfg.Issuer, Introspection: true, RetryAfter: min(max(wait, minBackoff), time.Minute), Err: err,
	}
}

var (
	errTooManyCalls = errors.New("too many introspection requests are waiting")
	errBackingOff   = errors.New("it failed recently, and the broker backs off")
	errPanic        = errors.New("introspection failed because of a bug in the broker; its log has the details")
)

// run runs a call on a context of its own, so that a caller that gives up does not
// cancel it for the others.
func (o *opaqueVerifier) run(ctx context.Context, digest tokenDigest, c *call, presented redact.String) {
	started := time.Now()
	result, err := o.introspect(ctx, presented, c.lane)
	o.mu.Lock()
	delete(o.calls, digest)
	c.lane.calls--
	switch now := time.Now(); {
	case err != nil:
		if isAmbiguous(err) {
			o.known.delete(digest) // so that one revoked token cannot fail again and again
		}
		o.failed(c.lane, err, started, now)
		c.err = o.unavailable(c.lane.backoffUntil.Sub(now), err)
	case result.facts != nil:
		o.succeeded()
		o.active.put(digest, result, now)
		o.known.put(digest, &introspectionResult{until: result.facts.ExpiresAt}, now)
	default:
		o.succeeded()
		o.active.delete(digest)
		o.known.delete(digest)
		o.inactive.put(digest, result, now)
	}
	c.result = result
	o.mu.Unlock()
	close(c.done)
}

// introspect waits for a slot and sends one request.
func (o *opaqueVerifier) introspect(ctx context.Context, presented redact.String, l *lane) (result *introspectionResult, err error) {
	defer func() {
		if recover() != nil {
			o.logger.Error("introspection panicked", "stack", string(debug.Stack()))
			result, err = nil, errPanic
		}
	}()
	timeout := time.NewTimer(slotWait)
	defer timeout.Stop()
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-timeout.C:
		return nil, errTooManyCalls
	}
	ctx, cancel := context.WithTimeout(ctx, introspectTimeout)
	defer cancel()
	if o.backingOff(l) { // since this call began to wait
		return nil, errBackingOff
	}
	requestedAt := time.Now()
	active, members, err := o.cfg.Endpoint.Introspect(ctx, presented)
	if err != nil {
		o.metrics.failure.Inc()
		return nil, err
	}
	if !active {
		o.metrics.inactive.Inc()
		return o.rejected(requestedAt, reject(Inactive, "The token's issuer reports it as not active: it has expired, was revoked, or is not a token of this issuer.")), nil
	}
	o.metrics.active.Inc()
	facts, err := newOpaqueFacts(&o.issuer.cfg, members, requestedAt, o.cfg.DefaultLifetime)
	if err != nil {
		return o.rejected(requestedAt, err), nil
	}
	return &introspectionResult{facts: facts, until: earliest(requestedAt.Add(o.cfg.Cache), facts.ExpiresAt)}, nil
}

func (o *opaqueVerifier) backingOff(l *lane) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return time.Now().Before(l.backoffUntil)
}

func (o *opaqueVerifier) rejected(requestedAt time.Time, rejection error) *introspectionResult {
	return &introspectionResult{rejection: rejection, until: requestedAt.Add(min(o.cfg.Cache, inactiveCache))}
}

// failed counts a failure and backs off if necessary: from the whole endpoint if the
// error requests it, otherwise for one kind of token. The caller holds o.mu.
func (o *opaqueVerifier) failed(l *lane, err error, started, now time.Time) {
	backoff := requestedBackoff(err)
	// A call that started before the last backoff brings no news about the endpoint.
	if backoff < 0 || err == errTooManyCalls || err == errBackingOff || started.Before(l.backoffBegan) { //nolint:errorlint // these are never wrapped
		return
	}
	l.failures++
	l.err = err
	if backoff > 0 {
		backoff = min(max(backoff, l.nextBackoff(false, false)), maxRequestedBackoff)
		o.knownTokens.backOff(now, backoff, err)
		o.otherTokens.backOff(now, backoff, err)
	} else if backoff = l.nextBackoff(isAmbiguous(err), o.answered); backoff > 0 {
		l.backOff(now, backoff, err)
	}
	if backoff > 0 {
		o.logger.Warn("an issuer's introspection endpoint fails, and the broker backs off", "tokens", l.name, "error", err, "failures", l.failures, "backoff", backoff)
	}
}

// succeeded resets the failures of both lanes. The caller holds o.mu.
func (o *opaqueVerifier) succeeded() {
	if o.knownTokens.failing() || o.otherTokens.failing() {
		o.logger.Info("an issuer's introspection endpoint answers again", "failures", o.knownTokens.failures+o.otherTokens.failures)
	}
	o.answered = true
	o.knownTokens.reset()
	o.otherTokens.reset()
}
