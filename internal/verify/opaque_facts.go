package verify

import (
	"container/list"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose"
)

// newOpaqueFacts reads what the issuer says of an active token, as strictly as
// the claims of a JWT (RFC 7662 section 2.2). Members that are null count as
// absent, as many servers write them; a null sub, aud or cnf is unsound all the
// same, so that nothing stands in for it. The error is a [*Rejection].
func newOpaqueFacts(c *IssuerConfig, members []byte, askedAt time.Time, defaultLifetime time.Duration) (*Facts, error) {
	claims, err := jose.ParseObject(members)
	if err != nil {
		return nil, reject(BadClaims, "What the issuer says of the token %v.", err)
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
		access:      accessToken(claims, c.accessTokenClaims("scope")),
		purpose:     otherPurpose(claims, c.IDTokenClaims),
	}
	r.audience(f, c.MissingAudience)
	// A client's own token is the client's (RFC 9068 section 2.2).
	r.subject(f, f.Subject == "" && !claims.IsNull("sub"))
	f.Confirmation = r.confirmation(f.typ)
	if claims.Has("exp") || defaultLifetime == 0 {
		f.ExpiresAt = r.expiry()
	} else {
		f.ExpiresAt = askedAt.Add(defaultLifetime)
	}
	iss := r.text("iss")
	switch {
	case r.err != nil:
		return nil, reject(BadClaims, "What the issuer says of the token is not sound: %v.", r.err)
	case claims.Has("iss") && iss != c.Issuer:
		return nil, reject(UnknownIssuer, "The issuer that was asked says that the token is of another issuer (iss); they are compared byte by byte.")
	}
	return f, nil
}

// judgeTokenType is judgeType for opaque tokens. Their issuer says bearer tokens
// from others by token_type; refresh tokens, which are just as active, have none.
func judgeTokenType(f *Facts, types []string) error {
	switch {
	case f.purpose != "":
		return reject(WrongType, "The token is %s, not an access token.", f.purpose)
	case strings.EqualFold(f.typ, "Bearer"), strings.EqualFold(f.typ, "DPoP"):
		return nil
	case f.typ != "":
		return reject(WrongType, "The token's token_type is %s; accepted: Bearer, DPoP.", shorten(f.typ))
	case !admitsUntyped(types):
		return reject(WrongType, "The issuer does not say what type the token is of (token_type): it may be a refresh token. JWT among the issuer's types admits such tokens.")
	case !f.access:
		return reject(WrongType, "The issuer says nothing of the token that only access tokens have, such as scope or client_id.")
	}
	return nil
}

// opinions remembers opinions until they are not to be used any more, and drops
// the oldest where they would take up more bytes than it may hold. It is not
// safe for concurrent use.
type opinions struct {
	most, bytes int64
	queue       list.List // of *remembered, the oldest first
	byID        map[cacheKey]*list.Element
}

type remembered struct {
	id      cacheKey
	opinion *opinion
	cost    int64
}

func newOpinions(most int64) *opinions {
	return &opinions{most: most, byID: map[cacheKey]*list.Element{}}
}

func (o *opinions) find(id cacheKey, now time.Time) *opinion {
	element := o.byID[id]
	if element == nil {
		return nil
	}
	if known := valueOf(element).opinion; now.Before(known.until) {
		return known
	}
	return nil
}

func valueOf(element *list.Element) *remembered {
	return element.Value.(*remembered) //nolint:forcetypeassert // the queue holds nothing else
}

func (o *opinions) forget(id cacheKey) {
	if element := o.byID[id]; element != nil {
		o.drop(element)
	}
}

func (o *opinions) put(id cacheKey, made *opinion, now time.Time) {
	o.forget(id)
	if !now.Before(made.until) {
		return
	}
	added := &remembered{id, made, opinionCost(made)}
	o.byID[id] = o.queue.PushBack(added)
	o.bytes += added.cost
	for element := o.queue.Front(); element != nil; element = o.queue.Front() {
		if o.bytes <= o.most && now.Before(valueOf(element).opinion.until) {
			return
		}
		o.drop(element)
	}
}

func (o *opinions) drop(element *list.Element) {
	dropped := valueOf(element)
	o.queue.Remove(element)
	delete(o.byID, dropped.id)
	o.bytes -= dropped.cost
}

// opinionCost is how many bytes an opinion takes up in memory, or a little more.
func opinionCost(o *opinion) int64 {
	const place = 512 // in the queue and the index; a rejection, most of whose text is constant
	if o.facts == nil {
		return place
	}
	return place + cacheCost(o.facts)
}
