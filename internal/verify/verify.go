// Package verify decides whether a presented access token is good. It takes
// JWTs in compact form, signed by an issuer that is configured, and does each
// step only after the one before it:
//
//	form       three parts, canonical, bounded; a header that asks for nothing unusual
//	issuer     iss, byte for byte one of those configured; no network
//	algorithm  one that the issuer is configured with
//	key        kid and alg, looked up among that issuer's keys only; no kid: its only key
//	signature  by exactly that algorithm; a bad one never causes a fetch
//	claims     of the right kind, once the signature holds
//	judgement  type, time, audience, scopes: on every call
//
// An opaque token has no form to judge and no signature: the one issuer that the
// request names is asked about it ([Introspection]), and its answer takes the place
// of the claims.
//
// The first four tell a caller nothing that is not in the token for all to see,
// and nothing is said of the claims before the signature holds. What the steps
// up to the claims find out are [Facts], which depend on the token and its
// issuer alone; the judgement depends on the time and on what was asked, does no
// I/O, and is never to be kept.
//
// A bad token is an answer, a [Rejection]. An error means that nothing could be
// decided: an [*UnavailableError], or the error of the caller's context.
package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
)

// Verifier verifies tokens of the issuers that it was made for. It is safe for
// concurrent use.
type Verifier struct {
	issuers     []*issuer
	byName      map[string]*issuer
	opaque      map[string]*opaqueTokens // by issuer, those with introspection
	cache       *factsCache
	cacheBytes  int64
	maxValidity time.Duration
	maxToken    int // bytes
	metrics     *metrics
}

type issuer struct {
	cfg  IssuerConfig // with its defaults
	keys *keySource
}

// Request is what a token must be good for.
type Request struct {
	// Audience: the token must be for one of these. Empty: one of those that
	// its issuer is configured with.
	Audience []string
	// Scopes: the token must carry all of these.
	Scopes []string
	// Issuer: the token must be of this one. Empty: any that is configured.
	Issuer string
	// OpaqueIssuer is asked about an opaque token if Issuer is empty. If both are empty
	// and several issuers have introspection, opaque tokens are refused.
	OpaqueIssuer string
	// Issuers are those that there are for whoever asks, each with the audiences
	// that it may be asked about, sorted; nil audiences: any. Nil: all that are
	// configured, with any audience.
	Issuers map[string][]string
	// Caller: the token is to prove who calls the broker, and Audience is the broker. An
	// opaque token is refused: no issuer is asked about it. A JWT needs no claim that only
	// access tokens have, because it is for nobody else; nothing stands for its aud.
	Caller bool
}

// ErrNotPermitted says that a token was to be verified for an audience that
// [Request.Issuers] does not name.
var ErrNotPermitted = errors.New("verify: the audience is not one that may be asked about")

func (r *Request) admits(issuer string) bool {
	_, ok := r.Issuers[issuer]
	return ok || r.Issuers == nil
}

// Result is the answer: either Facts or Rejection is set.
type Result struct {
	Facts *Facts
	// ValidUntil is how long the answer may be kept: the earliest of the
	// token's expiry, the end of [IssuerConfig.MaxAge], [Config.MaxValidity] from
	// now, and the time by which it would be noticed here that the issuer has
	// removed the key, or no longer says that an opaque token is active. It may
	// be in the past, within the leeway or while the issuer's keys cannot be
	// fetched: such an answer is good now and must not be kept.
	ValidUntil time.Time
	Rejection  *Rejection
}

// Verify judges a presented token. Where the issuer's keys were never loaded it
// waits for them up to 5 s, and where the token names a key that is not known up
// to 1 s; where an opaque token was not asked about lately, up to 8 s; but never
// beyond ctx, and not where many wait already. Otherwise it does no I/O.
func (v *Verifier) Verify(ctx context.Context, presented redact.String, req Request) (Result, error) {
	result, err := v.verify(ctx, presented, req)
	if rejection, ok := errors.AsType[*Rejection](err); ok {
		return Result{Rejection: rejection}, nil
	}
	return result, err
}

func (v *Verifier) verify(ctx context.Context, presented redact.String, req Request) (Result, error) {
	issuer, facts, keptUntil, err := v.establish(ctx, presented, &req)
	if err != nil {
		return Result{}, err
	}
	return v.answer(issuer, facts, keptUntil, req, time.Now())
}

func (v *Verifier) establish(ctx context.Context, presented redact.String, req *Request) (*issuer, *Facts, time.Time, error) {
	if len(presented.Reveal()) > v.maxToken {
		return nil, nil, time.Time{}, malformed(fmt.Errorf("it is longer than the %d bytes that limits.token_kib allows", v.maxToken))
	}
	if len(v.opaque) == 0 || req.Caller || !v.introspects(req) || !isOpaque(presented) {
		return v.establishJWT(ctx, presented, req)
	}
	asked, err := v.introspected(req)
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	return asked.establish(ctx, presented)
}

// introspects reports whether one of the issuers that req admits has introspection.
func (v *Verifier) introspects(req *Request) bool {
	for name := range v.opaque {
		if req.admits(name) {
			return true
		}
	}
	return false
}

// introspected returns the issuer to ask about an opaque token. The token does not say
// which issuer that is, and no other issuer may see it: so the request must say it,
// unless there is only one.
func (v *Verifier) introspected(req *Request) (*opaqueTokens, error) {
	name := cmp.Or(req.Issuer, req.OpaqueIssuer)
	if name == "" && len(v.opaque) > 1 {
		return nil, reject(UnknownIssuer, "The token is opaque, several issuers have introspection, and the request does not say which of them issued it: name the issuer in the request.")
	}
	for issuer, asked := range v.opaque {
		if (name == "" || name == issuer) && req.admits(issuer) {
			return asked, nil
		}
	}
	return nil, reject(UnknownIssuer, "The token is opaque, and the issuer that the request names has no introspection.")
}

// Introspecting returns how many issuers have introspection.
func (v *Verifier) Introspecting() int { return len(v.opaque) }

// answer judges established facts.
func (v *Verifier) answer(issuer *issuer, facts *Facts, keptUntil time.Time, req Request, now time.Time) (Result, error) {
	if err := judge(facts, &issuer.cfg, req, now); err != nil {
		return Result{}, err
	}
	until := earliest(facts.ExpiresAt, keptUntil, now.Add(v.maxValidity))
	if age := issuer.cfg.MaxAge; age > 0 {
		until = earliest(until, facts.IssuedAt.Add(age))
	}
	return Result{Facts: facts.clone(), ValidUntil: until}, nil
}

// establishJWT returns the facts that a good signature vouches for, and until when
// the key that made it is known to be its issuer's. They are remembered, and the
// token is not verified again, as long as that very key is trusted.
func (v *Verifier) establishJWT(ctx context.Context, presented redact.String, req *Request) (*issuer, *Facts, time.Time, error) {
	id, known := v.cache.find(presented)
	if known != nil && (req.Issuer == "" || req.Issuer == known.facts.Issuer) && req.admits(known.facts.Issuer) && v.byName[known.facts.Issuer] == known.issuer {
		if keptUntil, trusted := known.issuer.keys.trusts(known.key, !known.facts.keyless); trusted {
			v.cache.hit(known)
			return known.issuer, known.facts, keptUntil, nil
		}
	}
	v.cache.miss()
	issuer, key, facts, keptUntil, err := v.examine(ctx, presented, req)
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	v.cache.put(id, issuer, key, facts)
	return issuer, facts, keptUntil, nil
}

// examine verifies a token up to its claims.
func (v *Verifier) examine(ctx context.Context, presented redact.String, req *Request) (*issuer, *jose.Key, *Facts, time.Time, error) {
	token, header, claims, err := takeApart(presented)
	if err != nil {
		return nil, nil, nil, time.Time{}, err
	}
	issuer, err := v.issuerOf(claims, req)
	if err != nil {
		return nil, nil, nil, time.Time{}, err
	}
	key, keptUntil, err := issuer.keyFor(ctx, header)
	if err != nil {
		return nil, nil, nil, time.Time{}, err
	}
	if err := jose.Verify(header.Algorithm, key, token.SigningInput, token.Signature); err != nil {
		return nil, nil, nil, time.Time{}, badSignature(header)
	}
	// The claims were read from the very bytes that were signed, iss included.
	facts, err := newFacts(&issuer.cfg, header, claims, token.Payload)
	if err != nil {
		return nil, nil, nil, time.Time{}, reject(BadClaims, "The token's claims are not sound: %v.", err)
	}
	return issuer, key, facts, keptUntil, nil
}

// badSignature says more where the token was signed with a key that it brings
// along, or meant to.
func badSignature(header jose.Header) error {
	if header.KeyPlace != "" {
		return reject(Unsupported, "The token asks for what is never accepted: its signature does not hold with the key that its issuer publishes, and keys are never fetched from where its header says (%s).", header.KeyPlace)
	}
	return reject(BadSignature, "The token's signature does not hold.")
}

// takeApart reads the token. Nothing in it is to be believed yet.
func takeApart(presented redact.String) (jose.Compact, jose.Header, jose.Object, error) {
	token, err := jose.Split(presented)
	if err != nil {
		return jose.Compact{}, jose.Header{}, jose.Object{}, malformed(err)
	}
	header, err := jose.ParseHeader(token.Header)
	if err != nil {
		return jose.Compact{}, jose.Header{}, jose.Object{}, malformed(err)
	}
	claims, err := jose.ParseObject(token.Payload)
	if err != nil {
		return jose.Compact{}, jose.Header{}, jose.Object{}, malformed(fmt.Errorf("its payload %w", err))
	}
	return token, header, claims, nil
}

func malformed(err error) error {
	if unsupported, ok := errors.AsType[jose.UnsupportedError](err); ok {
		return reject(Unsupported, "The token asks for what is never accepted: %v.", unsupported)
	}
	return reject(Malformed, "The token is malformed: %v.", err)
}

func (v *Verifier) issuerOf(claims jose.Object, req *Request) (*issuer, error) {
	iss, present, err := claims.Text("iss")
	issuer := v.byName[iss]
	switch {
	case err != nil || !present:
		return nil, reject(UnknownIssuer, "The token names no issuer (iss).")
	case issuer == nil || !req.admits(iss):
		return nil, reject(UnknownIssuer, "The token's issuer (iss) is not one of those configured; they are compared byte by byte.")
	case req.Issuer != "" && iss != req.Issuer:
		return nil, reject(UnknownIssuer, "The token is of another issuer (iss) than the one asked for; they are compared byte by byte.")
	}
	return issuer, nil
}

// keyFor returns the key that the header names, if it may be used with the
// algorithm that the header names.
func (i *issuer) keyFor(ctx context.Context, header jose.Header) (*jose.Key, time.Time, error) {
	if !slices.Contains(i.cfg.Algorithms, header.Algorithm) {
		return nil, time.Time{}, reject(AlgorithmNotAllowed, "The token's algorithm (alg) is not one of those configured for its issuer, %s.",
			strings.Join(i.cfg.Algorithms, ", "))
	}
	key, keptUntil, err := i.findKey(ctx, header)
	if err != nil {
		return nil, time.Time{}, err
	}
	// A key that says EdDSA serves for Ed25519, the other name of the same
	// algorithm, and the reverse, only where both are configured.
	if !key.Permits(header.Algorithm) || !key.DeclaredAmong(i.cfg.Algorithms) {
		return nil, time.Time{}, reject(AlgorithmNotAllowed, "The token's key is not for its algorithm (alg).")
	}
	return key, keptUntil, nil
}

func (i *issuer) findKey(ctx context.Context, header jose.Header) (*jose.Key, time.Time, error) {
	if header.KeyID == "" {
		return i.keys.findSingle(ctx, header.Algorithm)
	}
	return i.keys.find(ctx, header.KeyID, header.Algorithm)
}

func earliest(first time.Time, others ...time.Time) time.Time {
	for _, t := range others {
		if t.Before(first) {
			first = t
		}
	}
	return first
}

// Run keeps the keys of all issuers fresh until ctx ends, and returns when all
// that it started has ended. Keys that this Verifier has in common with the one
// that it takes the place of are kept fresh by one of the two at a time: the other
// waits for its end.
func (v *Verifier) Run(ctx context.Context) {
	var all sync.WaitGroup
	for _, issuer := range v.issuers {
		all.Go(func() { issuer.keys.run(ctx) })
	}
	all.Wait()
}

// Refresh loads an issuer's keys now, whether or not Run is running. It takes
// 5 s at most, after a fetch that is under way.
func (v *Verifier) Refresh(ctx context.Context, name string) error {
	issuer := v.byName[name]
	if issuer == nil {
		return fmt.Errorf("the issuer %q is not configured", name)
	}
	return issuer.keys.refresh(ctx)
}

// IssuerStatus is how an issuer's keys stand.
type IssuerStatus struct {
	Issuer string
	// Keys that are usable, and entries of the JWK set that are not.
	Keys, Skipped int
	// LoadedAt is when the keys were last fetched; zero: never.
	LoadedAt time.Time
	// NextAt is when they will be fetched again; zero: not planned yet.
	NextAt time.Time
	// Err is why the last fetch failed; nil: it did not, or there was none. It
	// shows nothing of what the issuer answered.
	Err error
}

// Status returns how the keys of each issuer stand, in the order of the
// configuration.
func (v *Verifier) Status() []IssuerStatus {
	all := make([]IssuerStatus, len(v.issuers))
	for n, issuer := range v.issuers {
		s := issuer.keys.state.Load()
		all[n] = IssuerStatus{
			Issuer: issuer.cfg.Issuer, Keys: s.keys.Len(), Skipped: len(s.skipped),
			LoadedAt: s.loadedAt, NextAt: s.nextAt, Err: s.err,
		}
	}
	return all
}

// MaxTokenLife is how long after its iat a token of an issuer can be good. False:
// the issuer is not configured.
func (v *Verifier) MaxTokenLife(issuer string) (life time.Duration, configured bool) {
	known := v.byName[issuer]
	if known == nil {
		return 0, false
	}
	return known.cfg.MaxLifetime + known.cfg.Leeway, true
}
