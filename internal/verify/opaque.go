package verify

import (
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
	// inactiveCache is how long it is remembered that a token is not active: long
	// enough for whoever presents it again and again, and short enough for a
	// token that its issuer has only just made.
	inactiveCache = 5 * time.Second

	// turnWait is how long a question waits for its turn, introspectTimeout how
	// long it is with the issuer then.
	turnWait          = 2 * time.Second
	introspectTimeout = 6 * time.Second
	// maxAsking is how many questions are with the issuer at a time, maxWaiting
	// how many wait for their turn or their answer. More are not decided, so that
	// they leave room in a connection, as those for keys do.
	maxAsking  = 64
	maxWaiting = maxKeyWaiters

	// After so many failures in a row the endpoint is left alone: at first for
	// minBackoff, and then for twice as long each time, up to opaqueBackoff. One
	// failure is not enough: a token may be made to cause it.
	toleratedFailures = 3
	opaqueBackoff     = 30 * time.Second
	// longestRest bounds what the endpoint itself asks for.
	longestRest = 5 * time.Minute

	// Bounds of what is remembered.
	activeBytes   = 16 << 20
	inactiveBytes = 1 << 20

	opaqueDomain = "tokenbroker: an opaque token\x00"
)

// Introspection says how an issuer is asked about its opaque tokens (RFC 7662).
type Introspection struct {
	// Endpoint asks the issuer about one token, as one of its clients, and
	// returns whether it says active, and its whole answer: a JSON object. The
	// error shows nothing of either. It may have a method Rest() time.Duration
	// for how long not to ask again; negative: the failure is about that token
	// alone.
	Endpoint introspector
	// Cache is how long an answer is used, and so how late a revocation at the
	// issuer is noticed; at most 5 min. An answer is not used beyond the token's
	// expiry, and one that a token is not active not for longer than 5 s. Zero:
	// 30 s. Negative: not at all.
	Cache time.Duration
	// DefaultLifetime is for how long a token is taken to be good, from when the
	// issuer was asked, where the issuer does not say when it expires; at most 24
	// h. Zero: such tokens are refused.
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
		return errors.New("its answers to introspection would be used for longer than 5 min")
	case i.DefaultLifetime < 0 || i.DefaultLifetime > maxOpaqueLifetime:
		return errors.New("the default lifetime of its opaque tokens is not between 0 and 24 h")
	}
	return nil
}

// isOpaque reports by its form alone whether a token is to be introspected. A token
// that looks like a JWT never is, whatever its issuer and whatever is wrong with it:
// introspection must not accept a token whose signature was refused, and an issuer
// must not see the tokens of another one. An encrypted JWT, of five parts, is opaque.
func isOpaque(presented redact.String) bool {
	first, rest, _ := strings.Cut(presented.Reveal(), ".")
	parts := strings.Count(rest, ".") + 2
	return rest == "" || parts < 3 || parts == 5 || !beginsObject(first)
}

// beginsObject reports whether the first part of a token is the beginning of a JSON
// object to some parser: in either alphabet of base64, and behind white space, a byte
// order mark or the NULs of UTF-16.
func beginsObject(part string) bool {
	// An object in JSON begins with {" or with { and white space.
	if strings.HasPrefix(part, "ey") || strings.HasPrefix(part, "ew") {
		return true
	}
	part = strings.ReplaceAll(strings.ReplaceAll(part, "+", "-"), "/", "_")
	decoded, _ := base64.RawURLEncoding.DecodeString(part) // with an error, up to it
	start := 0
	for start < len(decoded) && blank(decoded[start]) {
		start++
	}
	object := decoded[start:]
	return start > 0 && len(object) > 1 && object[0] == '{' && (object[1] == '"' || blank(object[1]))
}

// blank reports whether a byte is white space or of a byte order mark.
func blank(b byte) bool { return b <= ' ' || strings.IndexByte("\xef\xbb\xbf\xfe\xff", b) >= 0 }

// bearable reports whether a token is made as RFC 6750 section 2.1 says, and not
// with an empty part at an end, which some parsers take for nothing.
func bearable(token string) bool {
	text := strings.TrimRight(token, "=")
	strange := strings.ContainsFunc(text, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._~+/", r)
	})
	return text != "" && !strange && len(token) <= jose.MaxTokenSize && text[0] != '.' && text[len(text)-1] != '.'
}

// opaqueTokens knows what their one issuer says of the tokens that only it can
// read.
type opaqueTokens struct {
	issuer  *issuer
	cfg     Introspection // with its defaults
	logger  *slog.Logger
	metrics introspectionMetrics
	key     []byte        // of the digests that stand for tokens
	turns   chan struct{} // holds one for each question that is with the issuer

	mu               sync.Mutex
	active, inactive *opinions
	questions        map[cacheKey]*question
	failures         int       // in a row
	restBegan        time.Time // when the endpoint was last left alone
	restUntil        time.Time
	err              error // of the last failure
}

// opinion is what the issuer says of a token. It is immutable: either facts or
// rejection is set.
type opinion struct {
	facts     *Facts
	rejection error
	until     time.Time // when it is not to be used any more
}

// question is one that the issuer was asked, for all who wait for the answer.
type question struct {
	done    chan struct{} // closed when the rest is set
	opinion *opinion
	err     error
}

func newOpaqueTokens(i *issuer, logger *slog.Logger, metrics *metrics) *opaqueTokens {
	cfg := *i.cfg.Introspection
	cfg.Cache = max(orDefault(cfg.Cache, defaultOpaqueCache), 0)
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // it never fails
	return &opaqueTokens{
		issuer:    i,
		cfg:       cfg,
		logger:    logger.With("issuer", i.cfg.Issuer),
		metrics:   metrics.introspectionOf(i.cfg.Issuer),
		key:       key,
		turns:     make(chan struct{}, maxAsking),
		active:    newOpinions(activeBytes),
		inactive:  newOpinions(inactiveBytes),
		questions: map[cacheKey]*question{},
	}
}

// establish returns the facts that the issuer vouches for, and until when its
// answer is used. They are to be judged as those of a JWT are.
func (o *opaqueTokens) establish(ctx context.Context, presented redact.String, pin string) (*issuer, *Facts, time.Time, error) {
	switch {
	case !bearable(presented.Reveal()):
		return nil, nil, time.Time{}, reject(Malformed, "The token is malformed: it is neither a JWT nor made of the characters of a bearer token (RFC 6750 section 2.1), or it is too long.")
	case pin != "" && pin != o.issuer.cfg.Issuer:
		return nil, nil, time.Time{}, reject(UnknownIssuer, "The token is opaque, and the issuer asked for is not the one that is asked about opaque tokens.")
	}
	found, err := o.opinionOf(ctx, presented)
	switch {
	case err != nil:
		return nil, nil, time.Time{}, err
	case found.rejection != nil:
		return nil, nil, time.Time{}, found.rejection
	}
	return o.issuer, found.facts, found.until, nil
}

// opinionOf returns what the issuer says of a token, and asks it unless it said
// so lately.
func (o *opaqueTokens) opinionOf(ctx context.Context, presented redact.String) (*opinion, error) {
	known, asked, err := o.join(ctx, o.digest(presented), presented)
	if known != nil || err != nil {
		return known, err
	}
	select {
	case <-asked.done:
		return asked.opinion, asked.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// digest stands for a token as [factsCache.find] makes it do.
func (o *opaqueTokens) digest(presented redact.String) cacheKey {
	token := presented.Reveal()
	mac := hmac.New(sha256.New, o.key)
	_, _ = mac.Write(binary.BigEndian.AppendUint64([]byte(opaqueDomain), uint64(len(token))))
	_, _ = mac.Write([]byte(token))
	return cacheKey(mac.Sum(nil))
}

// join returns what is known of a token, or the question about it that is under
// way, and starts one if there is none and it may be asked.
func (o *opaqueTokens) join(ctx context.Context, id cacheKey, presented redact.String) (*opinion, *question, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	for _, remembered := range [...]*opinions{o.active, o.inactive} {
		if known := remembered.find(id, now); known != nil {
			return known, nil, nil
		}
	}
	if asked := o.questions[id]; asked != nil {
		return nil, asked, nil
	}
	if err := o.busy(now); err != nil {
		return nil, nil, err
	}
	asked := &question{done: make(chan struct{})}
	o.questions[id] = asked
	go o.pursue(tracing.Detached(context.Background(), ctx), id, asked, presented)
	return nil, asked, nil
}

// busy returns why no question may be asked now; nil: one may. The caller holds
// o.mu.
func (o *opaqueTokens) busy(now time.Time) error {
	switch rest := o.restUntil.Sub(now); {
	case rest > 0:
		return o.unavailable(rest, o.err)
	case o.failures >= toleratedFailures && len(o.questions) > 0: // one finds out how the endpoint is
		return o.unavailable(minBackoff, o.err)
	case len(o.questions) >= maxWaiting:
		return o.unavailable(minBackoff, errCrowded)
	}
	return nil
}

func (o *opaqueTokens) unavailable(wait time.Duration, err error) error {
	return &UnavailableError{
		Issuer: o.issuer.cfg.Issuer, Introspection: true, RetryAfter: min(max(wait, minBackoff), maxBackoff), Err: err,
	}
}

var (
	errCrowded = errors.New("too many tokens wait for an answer")
	errResting = errors.New("it failed lately and is left alone for a while")
	errPanic   = errors.New("asking failed in a way that is a defect of the broker; its log has more")
)

// pursue asks the issuer, apart from the contexts of those who wait: the first
// to leave must not take the answer from the others.
func (o *opaqueTokens) pursue(ctx context.Context, id cacheKey, asked *question, presented redact.String) {
	begun := time.Now()
	found, err := o.ask(ctx, presented)
	o.mu.Lock()
	delete(o.questions, id)
	switch now := time.Now(); {
	case err != nil:
		o.failed(err, begun, now)
		asked.err = o.unavailable(o.restUntil.Sub(now), err)
	case found.facts != nil:
		o.succeeded()
		o.active.put(id, found, now)
	default:
		o.succeeded()
		o.inactive.put(id, found, now)
	}
	asked.opinion = found
	o.mu.Unlock()
	close(asked.done)
}

// ask waits for its turn and asks.
func (o *opaqueTokens) ask(ctx context.Context, presented redact.String) (found *opinion, err error) {
	defer func() {
		if recover() != nil {
			o.logger.Error("introspection panicked", "stack", string(debug.Stack()))
			found, err = nil, errPanic
		}
	}()
	patience := time.NewTimer(turnWait)
	defer patience.Stop()
	select {
	case o.turns <- struct{}{}:
		defer func() { <-o.turns }()
	case <-patience.C:
		return nil, errCrowded
	}
	ctx, cancel := context.WithTimeout(ctx, introspectTimeout)
	defer cancel()
	if o.resting() {
		return nil, errResting
	}
	askedAt := time.Now()
	active, members, err := o.cfg.Endpoint.Introspect(ctx, presented)
	if err != nil {
		o.metrics.failure.Inc()
		return nil, err
	}
	if !active {
		o.metrics.inactive.Inc()
		return o.refusal(askedAt, reject(Inactive, "The token is not active, says its issuer: it has expired, was revoked, or is not the issuer's.")), nil
	}
	o.metrics.active.Inc()
	facts, err := newOpaqueFacts(&o.issuer.cfg, members, askedAt, o.cfg.DefaultLifetime)
	if err != nil {
		return o.refusal(askedAt, err), nil
	}
	return &opinion{facts: facts, until: earliest(askedAt.Add(o.cfg.Cache), facts.ExpiresAt)}, nil
}

// resting: the endpoint failed while a question waited for its turn.
func (o *opaqueTokens) resting() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return time.Now().Before(o.restUntil)
}

func (o *opaqueTokens) refusal(askedAt time.Time, rejection error) *opinion {
	return &opinion{rejection: rejection, until: askedAt.Add(min(o.cfg.Cache, inactiveCache))}
}

// failed leaves the endpoint alone for a while if there is reason to. The caller
// holds o.mu.
func (o *opaqueTokens) failed(err error, begun, now time.Time) {
	var rest time.Duration
	if told, ok := errors.AsType[interface {
		error
		Rest() time.Duration
	}](err); ok {
		rest = told.Rest()
	}
	// What was asked before the endpoint was last left alone is no news of it.
	if rest < 0 || err == errCrowded || err == errResting || begun.Before(o.restBegan) { //nolint:errorlint // they come as they are
		return
	}
	o.failures++
	o.err = err
	if rest > 0 {
		o.failures = max(o.failures, toleratedFailures)
	}
	if o.failures < toleratedFailures {
		return
	}
	rest = min(max(rest, min(minBackoff<<min(o.failures-toleratedFailures, 10), opaqueBackoff)), longestRest)
	o.restBegan, o.restUntil = now, now.Add(rest)
	o.logger.Warn("an issuer's introspection endpoint fails and is left alone for a while", "error", err, "failures", o.failures, "rest", rest)
}

// succeeded: the endpoint is well again. The caller holds o.mu.
func (o *opaqueTokens) succeeded() {
	if o.failures >= toleratedFailures {
		o.logger.Info("an issuer's introspection endpoint answers again", "failures", o.failures)
	}
	o.failures, o.restUntil, o.err = 0, time.Time{}, nil
}
