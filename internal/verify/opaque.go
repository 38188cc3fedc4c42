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
	// they leave room in a connection, as those for keys do. Tokens that are known
	// to have been active have maxAskingKnown of their own.
	maxAsking      = 64
	maxAskingKnown = 32
	maxWaiting     = maxKeyWaiters

	// Bounds of what is remembered.
	activeBytes   = 16 << 20
	inactiveBytes = 1 << 20
	knownBytes    = 4 << 20

	opaqueDomain = "tokenbroker: an opaque token\x00"
)

// Introspection says how an issuer is asked about its opaque tokens (RFC 7662).
type Introspection struct {
	// Endpoint asks the issuer about one token, as one of its clients, and
	// returns whether it says active, and its whole answer: a JSON object. The
	// error shows nothing of either. It may have a method Backoff() time.Duration
	// for how long not to ask again; negative: the failure is about that token
	// alone. It may have a method Ambiguous() bool; true: the failure may be
	// about that token alone, or about all.
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

// opaqueTokens knows what one issuer says of the tokens that only it can read.
type opaqueTokens struct {
	issuer  *issuer
	cfg     Introspection // with its defaults
	logger  *slog.Logger
	metrics introspectionMetrics
	key     []byte // of the digests that stand for tokens

	mu               sync.Mutex
	active, inactive *opinions
	// known remembers until their expiry which tokens were active, without the
	// facts and beyond the time for which an answer is used.
	known     *opinions
	questions map[cacheKey]*question
	answered  bool // the endpoint has answered a question since the start
	// knownTokens are the questions about known tokens, otherTokens all others.
	knownTokens, otherTokens *lane
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
	lane    *lane
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
		issuer:      i,
		cfg:         cfg,
		logger:      logger.With("issuer", i.cfg.Issuer),
		metrics:     metrics.introspectionOf(i.cfg.Issuer),
		key:         key,
		active:      newOpinions(activeBytes),
		inactive:    newOpinions(inactiveBytes),
		known:       newOpinions(knownBytes),
		questions:   map[cacheKey]*question{},
		knownTokens: newLane("known", maxAskingKnown),
		otherTokens: newLane("other", maxAsking),
	}
}

// establish returns the facts that the issuer vouches for, and until when its
// answer is used. They are to be judged as those of a JWT are.
func (o *opaqueTokens) establish(ctx context.Context, presented redact.String) (*issuer, *Facts, time.Time, error) {
	if !bearable(presented.Reveal()) {
		return nil, nil, time.Time{}, reject(Malformed, "The token is malformed: it is neither a JWT nor made of the characters of a bearer token (RFC 6750 section 2.1), or it is too long.")
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
	if known := o.active.find(id, now); known != nil {
		o.resolveDoubt(ctx, id, presented, now)
		return known, nil, nil
	}
	if known := o.inactive.find(id, now); known != nil {
		return known, nil, nil
	}
	if asked := o.questions[id]; asked != nil {
		return nil, asked, nil
	}
	lane := o.otherTokens
	if o.known.find(id, now) != nil {
		lane = o.knownTokens
	}
	if wait, err := lane.busy(now); err != nil {
		return nil, nil, o.unavailable(wait, err)
	}
	return nil, o.begin(ctx, id, presented, lane), nil
}

// resolveDoubt asks again about a token that is known to be active while questions
// about other tokens fail: if the issuer answers, the failures were about those
// tokens. The caller holds o.mu.
func (o *opaqueTokens) resolveDoubt(ctx context.Context, id cacheKey, presented redact.String, now time.Time) {
	if !o.otherTokens.doubted() || o.knownTokens.questions > 0 {
		return
	}
	if _, err := o.knownTokens.busy(now); err == nil {
		o.begin(ctx, id, presented, o.knownTokens)
	}
}

// begin starts a question. The caller holds o.mu.
func (o *opaqueTokens) begin(ctx context.Context, id cacheKey, presented redact.String, l *lane) *question {
	asked := &question{lane: l, done: make(chan struct{})}
	o.questions[id] = asked
	l.questions++
	go o.pursue(tracing.Detached(context.Background(), ctx), id, asked, presented)
	return asked
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
	found, err := o.ask(ctx, presented, asked.lane)
	o.mu.Lock()
	delete(o.questions, id)
	asked.lane.questions--
	switch now := time.Now(); {
	case err != nil:
		if mayBeTheToken(err) {
			o.known.forget(id) // so that one revoked token cannot fail again and again
		}
		o.failed(asked.lane, err, begun, now)
		asked.err = o.unavailable(asked.lane.restUntil.Sub(now), err)
	case found.facts != nil:
		o.succeeded()
		o.active.put(id, found, now)
		o.known.put(id, &opinion{until: found.facts.ExpiresAt}, now)
	default:
		o.succeeded()
		o.active.forget(id)
		o.known.forget(id)
		o.inactive.put(id, found, now)
	}
	asked.opinion = found
	o.mu.Unlock()
	close(asked.done)
}

// ask waits for its turn and asks.
func (o *opaqueTokens) ask(ctx context.Context, presented redact.String, l *lane) (found *opinion, err error) {
	defer func() {
		if recover() != nil {
			o.logger.Error("introspection panicked", "stack", string(debug.Stack()))
			found, err = nil, errPanic
		}
	}()
	patience := time.NewTimer(turnWait)
	defer patience.Stop()
	select {
	case l.turns <- struct{}{}:
		defer func() { <-l.turns }()
	case <-patience.C:
		return nil, errCrowded
	}
	ctx, cancel := context.WithTimeout(ctx, introspectTimeout)
	defer cancel()
	if o.resting(l) {
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

// resting reports whether the endpoint failed while a question waited for its
// turn.
func (o *opaqueTokens) resting(l *lane) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return time.Now().Before(l.restUntil)
}

func (o *opaqueTokens) refusal(askedAt time.Time, rejection error) *opinion {
	return &opinion{rejection: rejection, until: askedAt.Add(min(o.cfg.Cache, inactiveCache))}
}

// failed leaves the endpoint alone for a while if there is reason to: all of it
// where the error says so, else for tokens of the same kind. The caller holds o.mu.
func (o *opaqueTokens) failed(l *lane, err error, begun, now time.Time) {
	rest := askedToRest(err)
	// A question from before the endpoint was last left alone brings no news of it.
	if rest < 0 || err == errCrowded || err == errResting || begun.Before(l.restBegan) { //nolint:errorlint // they come as they are
		return
	}
	l.failures++
	l.err = err
	if rest > 0 {
		rest = min(max(rest, l.restAfter(false, false)), longestRest)
		o.knownTokens.rest(now, rest, err)
		o.otherTokens.rest(now, rest, err)
	} else if rest = l.restAfter(mayBeTheToken(err), o.answered); rest > 0 {
		l.rest(now, rest, err)
	}
	if rest > 0 {
		o.logger.Warn("an issuer's introspection endpoint fails and is left alone for a while", "tokens", l.name, "error", err, "failures", l.failures, "rest", rest)
	}
}

// succeeded notes that the endpoint has answered. The caller holds o.mu.
func (o *opaqueTokens) succeeded() {
	if o.knownTokens.doubted() || o.otherTokens.doubted() {
		o.logger.Info("an issuer's introspection endpoint answers again", "failures", o.knownTokens.failures+o.otherTokens.failures)
	}
	o.answered = true
	o.knownTokens.recovered()
	o.otherTokens.recovered()
}
