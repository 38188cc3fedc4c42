package verify

import (
	"container/list"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose"
)

// newOpaqueFacts reads the introspection response for an active token (RFC 7662 section
// 2.2), as strictly as the claims of a JWT. A null member counts as absent, because many
// servers write null for a missing value. A null sub, aud or cnf is invalid, so that
// nothing is substituted for it. The error is a [*Rejection].
func newOpaqueFacts(c *IssuerConfig, members []byte, requestedAt time.Time, defaultLifetime time.Duration) (*Facts, error) {
	claims, err := jose.ParseObject(members)
	if err != nil {
		return nil, reject(BadClaims, "The issuer's introspection response %v.", err)
	}
	claims = claims.WithoutNulls("client_id", "scope", "iat", "nbf", "exp", "jti", "token_type", "iss")
	r := reader{claims: claims}
	f := &Facts{
		Issuer:      c.Issuer,
		Subject:     r.text("sub"),
		SubjectType: SubjectSub,
		ClientID:    r.text("client_id"),
		Scopes:      r.scopes("scope"),
		IssuedAt:    r.time("iat"),
		NotBefore:   r.time("nbf"),
		TokenID:     r.text("jti"),
		Claims:      members,
		opaque:      true,
		typ:         r.text("token_type"),

		hasAccessClaim: hasAccessClaim(c, claims, "scope"),
		otherPurpose:   otherPurpose(claims, c.IDTokenClaims),
	}
	r.audience(f, c.MissingAudience)
	// The subject of a token that a client obtained for itself is the client (RFC 9068
	// section 2.2).
	r.subject(f, f.Subject == "" && !claims.IsNull("sub"))
	f.Confirmation = r.confirmation(f.typ)
	if claims.Has("exp") || defaultLifetime == 0 {
		f.ExpiresAt = r.expiry()
	} else {
		f.ExpiresAt = requestedAt.Add(defaultLifetime)
	}
	iss := r.text("iss")
	switch {
	case r.err != nil:
		return nil, reject(BadClaims, "The issuer's introspection response has an invalid claim: %v.", r.err)
	case claims.Has("iss") && iss != c.Issuer:
		return nil, reject(UnknownIssuer, "The introspection response names another issuer (iss) than the introspected one; issuers are compared byte by byte.")
	}
	return f.seal(), nil
}

// judgeTokenType is judgeType for opaque tokens. The token_type distinguishes access
// tokens from refresh tokens, which are active too but have no token_type.
func judgeTokenType(f *Facts, types []string) error {
	switch {
	case f.otherPurpose != "":
		return reject(WrongType, "The token is %s, not an access token.", f.otherPurpose)
	case strings.EqualFold(f.typ, "Bearer"), strings.EqualFold(f.typ, "DPoP"):
		return nil
	case f.typ != "":
		return reject(WrongType, "The token's token_type is %s; accepted: Bearer, DPoP.", quote(f.typ))
	case !admitsUntyped(types):
		return reject(WrongType, "The issuer does not state the token's type (token_type): it may be a refresh token. Add JWT to the issuer's types to admit such tokens.")
	case !f.hasAccessClaim:
		return reject(WrongType, "The introspection response has no claim that only access tokens have, such as scope or client_id.")
	}
	return nil
}

// resultCache caches introspection results until they expire. It evicts the oldest when
// it exceeds its bound. It is not safe for concurrent use.
type resultCache struct {
	maxBytes, bytes int64
	queue           list.List // of *cachedResult, the oldest first
	entries         map[tokenDigest]*list.Element
}

type cachedResult struct {
	digest tokenDigest
	result *introspectionResult
	cost   int64 // bytes
}

func newResultCache(maxBytes int64) *resultCache {
	return &resultCache{maxBytes: maxBytes, entries: map[tokenDigest]*list.Element{}}
}

func (c *resultCache) find(digest tokenDigest, now time.Time) *introspectionResult {
	element := c.entries[digest]
	if element == nil {
		return nil
	}
	if result := entryOf(element).result; now.Before(result.until) {
		return result
	}
	return nil
}

func entryOf(element *list.Element) *cachedResult {
	return element.Value.(*cachedResult) //nolint:forcetypeassert // the queue holds nothing else
}

func (c *resultCache) delete(digest tokenDigest) {
	if element := c.entries[digest]; element != nil {
		c.remove(element)
	}
}

// put replaces the result of a token, and removes the oldest results while they have
// expired or the bound is exceeded.
func (c *resultCache) put(digest tokenDigest, result *introspectionResult, now time.Time) {
	c.delete(digest)
	if !now.Before(result.until) {
		return
	}
	added := &cachedResult{digest, result, resultCost(result)}
	c.entries[digest] = c.queue.PushBack(added)
	c.bytes += added.cost
	for element := c.queue.Front(); element != nil; element = c.queue.Front() {
		if c.bytes <= c.maxBytes && now.Before(entryOf(element).result.until) {
			return
		}
		c.remove(element)
	}
}

func (c *resultCache) remove(element *list.Element) {
	entry := entryOf(element)
	c.queue.Remove(element)
	delete(c.entries, entry.digest)
	c.bytes -= entry.cost
}

// resultCost estimates the memory of a cached result, in bytes. It errs on the high
// side.
func resultCost(result *introspectionResult) int64 {
	const overhead = 512 // queue, index, and a rejection with a mostly constant text
	if result.facts == nil {
		return overhead
	}
	return overhead + factsCost(result.facts)
}
