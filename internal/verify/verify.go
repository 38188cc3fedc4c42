// Package verify decides whether to accept a presented access token. It verifies JWTs
// in compact form that a configured issuer signed. Each step runs only if all earlier
// steps succeed:
//
//	form       three parts, canonical, of bounded size; a header without unusual features
//	issuer     iss equals a configured issuer, byte for byte; no network access
//	algorithm  one of the issuer's configured algorithms
//	key        by kid and alg, among that issuer's keys only; without kid, its single key
//	signature  by exactly that algorithm; a bad one never causes a fetch
//	claims     present and of the right JSON types
//	judgement  type, time, audience and scopes, on every call
//
// For an opaque token, the one issuer that the request names introspects the token
// ([Introspection]), and its response takes the place of the claims.
//
// A rejection before the signature reveals nothing that the presenter cannot read in
// the token, and claims are not judged before the signature is verified. The steps
// through claims produce [Facts], which depend on the token and its issuer alone and
// may be cached. The judgement depends on the time and the request, does no I/O, and
// is never cached.
//
// A bad token is a result with a [Rejection], not an error. An error means that the
// token could not be verified: an [*UnavailableError], [ErrNotPermitted], or the error
// of the caller's context.
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
	"github.com/cezzis/tokenbroker/internal/verify/jwks"
)

// Verifier verifies tokens of its configured issuers. It is safe for concurrent use.
type Verifier struct {
	issuers     []*issuer
	byName      map[string]*issuer
	opaque      map[string]*opaqueVerifier // by issuer; only issuers with introspection
	cache       *factsCache
	headers     *headerCache
	cacheBytes  int64
	maxValidity time.Duration
	maxToken    int // bytes
	metrics     *metrics
}

type issuer struct {
	cfg  IssuerConfig // with defaults applied
	keys *jwks.Source
}

// Request states the requirements that a token must meet.
type Request struct {
	// Audience: the token must have one of these audiences. Empty: one of its issuer's
	// configured audiences.
	Audience []string
	// Scopes: the token must have all of these scopes.
	Scopes []string
	// Issuer: the token must come from this issuer. Empty: from any configured issuer.
	Issuer string
	// OpaqueIssuer introspects opaque tokens if Issuer is empty. If both are empty and
	// several issuers have introspection, opaque tokens are rejected.
	OpaqueIssuer string
	// Issuers are the issuers that the caller's policy permits, each with its permitted
	// audiences, sorted; nil audiences permit any. A nil map permits all configured
	// issuers with any audience.
	Issuers map[string][]string
	// Caller is true for a token that identifies the caller of the broker; Audience is
	// then the broker. Opaque tokens are rejected without introspection. A JWT needs no
	// claim that marks access tokens, because the broker is its only recipient, and
	// [IssuerConfig.MissingAudience] does not apply.
	Caller bool
	// RealAudience rejects a token without aud: [IssuerConfig.MissingAudience] does not
	// apply. It is for tokens that grant more than access to their receiver.
	RealAudience bool
	// IDTokenOf is a client_id: the token must be an ID token for this client, instead of an
	// access token, and Audience does not apply. Opaque tokens are rejected.
	IDTokenOf string
}

// ErrNotPermitted means that [Request.Issuers] does not permit the requested audience.
var ErrNotPermitted = errors.New("verify: the audience is not permitted for this caller")

func (r *Request) admits(issuer string) bool {
	_, ok := r.Issuers[issuer]
	return ok || r.Issuers == nil
}

// Result is the result of a verification: either Facts or Rejection is set.
type Result struct {
	// Facts are shared and must not be changed.
	Facts *Facts
	// ValidUntil is the time until which the caller may cache the result. It is the
	// earliest of the token's expiry, the end of [IssuerConfig.MaxAge],
	// [Config.MaxValidity] from now, and the time by which this Verifier would notice
	// that the issuer has removed the key or revoked the opaque token. It may be in the
	// past, within the leeway or while the issuer's keys cannot be fetched; such a
	// result is valid now and must not be cached.
	ValidUntil time.Time
	Rejection  *Rejection
}

// Verify verifies a presented token. It waits up to 5 s if the issuer's keys were never
// loaded, up to 1 s for an unknown kid, and up to 8 s for an opaque token without a
// cached result; never beyond the end of ctx. If too many calls wait already, it returns
// an [*UnavailableError] at once. In all other cases it does no I/O.
func (v *Verifier) Verify(ctx context.Context, presented redact.String, req Request) (Result, error) {
	result, err := v.verify(ctx, presented, req)
	if rejection, ok := errors.AsType[*Rejection](err); ok {
		return Result{Rejection: rejection}, nil
	}
	return result, err
}

func (v *Verifier) verify(ctx context.Context, presented redact.String, req Request) (Result, error) {
	token, err := v.establish(ctx, presented, &req)
	if err != nil {
		return Result{}, err
	}
	return v.judge(token, req, time.Now())
}

// established has the facts of a verified JWT or an introspected token.
type established struct {
	issuer *issuer
	facts  *Facts
	// freshUntil is the time by which this Verifier would notice that the issuer has
	// removed the key or revoked the opaque token.
	freshUntil time.Time
}

func (v *Verifier) establish(ctx context.Context, presented redact.String, req *Request) (established, error) {
	if len(presented.Reveal()) > v.maxToken {
		return established{}, malformed(fmt.Errorf("it is longer than the %d bytes that limits.token_kib allows", v.maxToken))
	}
	if len(v.opaque) == 0 || req.Caller || req.IDTokenOf != "" || !v.mayIntrospect(req) || !isOpaque(presented) {
		return v.establishJWT(ctx, presented, req)
	}
	opaque, err := v.opaqueVerifier(req)
	if err != nil {
		return established{}, err
	}
	return opaque.establish(ctx, presented)
}

// mayIntrospect reports whether an issuer that req admits has introspection.
func (v *Verifier) mayIntrospect(req *Request) bool {
	for name := range v.opaque {
		if req.admits(name) {
			return true
		}
	}
	return false
}

// opaqueVerifier returns the verifier for an opaque token. The token does not name its
// issuer, and no other issuer may see it: the request must name the issuer unless only
// one has introspection.
func (v *Verifier) opaqueVerifier(req *Request) (*opaqueVerifier, error) {
	name := cmp.Or(req.Issuer, req.OpaqueIssuer)
	if name == "" && len(v.opaque) > 1 {
		return nil, reject(UnknownIssuer, "The token is opaque, several issuers have introspection, and the request does not say which of them issued it: name the issuer in the request.")
	}
	for issuer, opaque := range v.opaque {
		if (name == "" || name == issuer) && req.admits(issuer) {
			return opaque, nil
		}
	}
	return nil, reject(UnknownIssuer, "The token is opaque, and the issuer that the request names has no introspection.")
}

// Introspecting returns the number of issuers with introspection.
func (v *Verifier) Introspecting() int { return len(v.opaque) }

func (v *Verifier) judge(token established, req Request, now time.Time) (Result, error) {
	if err := judge(token.facts, &token.issuer.cfg, req, now); err != nil {
		return Result{}, err
	}
	until := earliest(token.facts.ExpiresAt, token.freshUntil, now.Add(v.maxValidity))
	if age := token.issuer.cfg.MaxAge; age > 0 {
		until = earliest(until, token.facts.IssuedAt.Add(age))
	}
	return Result{Facts: token.facts, ValidUntil: until}, nil
}

// establishJWT returns the facts of a JWT with a valid signature. It caches them, and
// verifies the signature again only if the key that verified it is no longer trusted.
func (v *Verifier) establishJWT(ctx context.Context, presented redact.String, req *Request) (established, error) {
	digest, cached := v.cache.find(presented)
	if cached != nil && (req.Issuer == "" || req.Issuer == cached.facts.Issuer) && req.admits(cached.facts.Issuer) && v.byName[cached.facts.Issuer] == cached.issuer {
		if freshUntil, trusted := cached.issuer.keys.Trusts(cached.key, !cached.facts.noKeyID); trusted {
			v.cache.hit(cached)
			return established{cached.issuer, cached.facts, freshUntil}, nil
		}
	}
	v.cache.miss()
	token, key, err := v.verifyJWT(ctx, presented, req)
	if err != nil {
		return established{}, err
	}
	v.cache.put(digest, token.issuer, key, token.facts)
	return token, nil
}

// verifyJWT verifies a JWT up to its claims. It also returns the key that verified the
// signature.
func (v *Verifier) verifyJWT(ctx context.Context, presented redact.String, req *Request) (established, *jose.Key, error) {
	token, err := v.parseJWT(presented)
	if err != nil {
		return established{}, nil, err
	}
	issuer, err := v.issuerOf(token.claims, req)
	if err != nil {
		return established{}, nil, err
	}
	key, err := issuer.keyFor(ctx, token.header)
	if err != nil {
		return established{}, nil, err
	}
	if err := jose.Verify(token.header.Algorithm, key.Key, token.SigningInput, token.Signature); err != nil {
		return established{}, nil, badSignature(token.header)
	}
	if !token.knownHeader {
		v.headers.put(token.Header, token.header)
	}
	// The signature covers the bytes from which all claims were parsed, iss included.
	facts, err := newFacts(&issuer.cfg, token.header, token.claims, token.Payload)
	if err != nil {
		return established{}, nil, reject(BadClaims, "The token has a missing or invalid claim: %v.", err)
	}
	return established{issuer, facts, key.FreshUntil}, key.Key, nil
}

// badSignature names the header parameter that points to a key, if there is one: the
// token may be signed with that key.
func badSignature(header jose.Header) error {
	if header.KeyPlace != "" {
		return reject(Unsupported, "The token uses a feature that is never accepted: its signature is not valid under the key that its issuer publishes, and the broker never fetches keys from the URL in a header (%s).", header.KeyPlace)
	}
	return reject(BadSignature, "The token's signature is not valid.")
}

// parsedJWT is a JWT before the verification of its signature.
type parsedJWT struct {
	jose.Compact

	header      jose.Header
	knownHeader bool // a token with the same header was verified before
	claims      jose.Object
}

func (v *Verifier) parseJWT(presented redact.String) (parsedJWT, error) {
	token, err := jose.Split(presented)
	if err != nil {
		return parsedJWT{}, malformed(err)
	}
	header, known := v.headers.find(token.Header)
	if !known {
		if header, err = jose.ParseHeader(token.Header); err != nil {
			return parsedJWT{}, malformed(err)
		}
	}
	claims, err := jose.ParseObject(token.Payload)
	if err != nil {
		return parsedJWT{}, malformed(fmt.Errorf("its payload %w", err))
	}
	return parsedJWT{token, header, known, claims}, nil
}

func malformed(err error) error {
	if unsupported, ok := errors.AsType[jose.UnsupportedError](err); ok {
		return reject(Unsupported, "The token uses a feature that is never accepted: %v.", unsupported)
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
		return nil, reject(UnknownIssuer, "The token's issuer (iss) is not a configured issuer; issuers are compared byte by byte.")
	case req.Issuer != "" && iss != req.Issuer:
		return nil, reject(UnknownIssuer, "The token's issuer (iss) is not the requested issuer; issuers are compared byte by byte.")
	}
	return issuer, nil
}

// keyFor returns the key that the header names by kid, if the issuer's configuration
// and the key permit the header's algorithm.
func (i *issuer) keyFor(ctx context.Context, header jose.Header) (jwks.Key, error) {
	if !slices.Contains(i.cfg.Algorithms, header.Algorithm) {
		return jwks.Key{}, reject(AlgorithmNotAllowed, "The token's algorithm (alg) is not one of its issuer's configured algorithms, %s.",
			strings.Join(i.cfg.Algorithms, ", "))
	}
	key, err := i.findKey(ctx, header)
	if err != nil {
		return jwks.Key{}, err
	}
	// EdDSA and Ed25519 name one algorithm, so a key that declares one of them permits
	// both. Both names must be configured for that.
	if !key.Permits(header.Algorithm) || !key.DeclaredAmong(i.cfg.Algorithms) {
		return jwks.Key{}, reject(AlgorithmNotAllowed, "The token's key does not permit its algorithm (alg).")
	}
	return key, nil
}

func (i *issuer) findKey(ctx context.Context, header jose.Header) (jwks.Key, error) {
	key, err := i.keys.Find(ctx, header.KeyID, header.Algorithm)
	unavailable, ok := errors.AsType[*jwks.UnavailableError](err)
	switch {
	case ok:
		err = &UnavailableError{Issuer: i.cfg.Issuer, RetryAfter: unavailable.RetryAfter, Err: unavailable.Err}
	case errors.Is(err, jwks.ErrUnknownKey) && header.KeyID == "":
		err = reject(UnknownKey, "The token's header names no key (kid), and its issuer does not have exactly one usable key.")
	case errors.Is(err, jwks.ErrUnknownKey):
		err = reject(UnknownKey, "The token's key (kid) is not among the usable keys that its issuer publishes.")
	}
	return key, err
}

func earliest(first time.Time, others ...time.Time) time.Time {
	for _, t := range others {
		if t.Before(first) {
			first = t
		}
	}
	return first
}

// Run keeps the keys of all issuers fresh until ctx ends, and returns after all its
// goroutines have ended. If a Verifier shares an issuer's keys with its predecessor
// (see [New]), only one of their Runs fetches these keys; the other waits for its end.
func (v *Verifier) Run(ctx context.Context) {
	var all sync.WaitGroup
	for _, issuer := range v.issuers {
		all.Go(func() { issuer.keys.Run(ctx) })
	}
	all.Wait()
}

// Refresh fetches an issuer's keys now, whether or not Run is running. It takes at most
// 5 s, and first waits for a fetch in progress.
func (v *Verifier) Refresh(ctx context.Context, name string) error {
	issuer := v.byName[name]
	if issuer == nil {
		return fmt.Errorf("the issuer %q is not configured", name)
	}
	return issuer.keys.Refresh(ctx)
}

// Status returns the status of each issuer's keys, in the order of the configuration.
func (v *Verifier) Status() []jwks.Status {
	all := make([]jwks.Status, len(v.issuers))
	for n, issuer := range v.issuers {
		all[n] = issuer.keys.Status()
	}
	return all
}

// MaxTokenLife returns how long after its iat a token of an issuer can be accepted, and
// false if the issuer is not configured.
func (v *Verifier) MaxTokenLife(name string) (life time.Duration, configured bool) {
	issuer := v.byName[name]
	if issuer == nil {
		return 0, false
	}
	return issuer.cfg.MaxLifetime + issuer.cfg.Leeway, true
}
