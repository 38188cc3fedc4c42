package verify

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose"
)

// Facts are the claims of a JWT with a valid signature, or of an opaque token's
// introspection response. They do not depend on the time or on a request. They are
// immutable, with all that they point to: the cache and all results for the token share
// them. A caller that needs to change a part of them copies it first.
type Facts struct {
	// Issuer is the iss claim, as configured.
	Issuer string
	// Subject is the claim that SubjectType names, never empty. An identity is the
	// triple (Issuer, SubjectType, Subject).
	Subject     string
	SubjectType SubjectType
	// ClientID is the client_id claim; else azp; else cid (Okta) or appid (Entra
	// ID). May be empty.
	ClientID string
	// Audience is the aud claim as a list, or the substitute configured by
	// [IssuerConfig.MissingAudience] if the token has no aud; may be empty.
	Audience []string
	// Scopes are the values of the issuer's scope claim; may be empty.
	Scopes []string
	// IssuedAt and NotBefore are the iat and nbf claims; zero if the token lacks
	// them.
	IssuedAt, NotBefore time.Time
	// ExpiresAt is the exp claim; see also [Introspection].
	ExpiresAt time.Time
	// TokenID is the jti claim; may be empty.
	TokenID string
	// Confirmation is the cnf claim, which binds the token to a key of its holder.
	// This package does not check the binding. Nil for a bearer token.
	Confirmation *Confirmation
	// Claims is the signed payload byte for byte, or the issuer's introspection
	// response: one JSON object.
	Claims []byte

	opaque         bool   // the facts come from introspection
	noKeyID        bool   // the header has no kid
	typ            string // the header's typ, or the token_type of an opaque token
	hasAccessClaim bool   // has a claim that marks access tokens
	otherPurpose   string // describes a token that is not an access token; empty for access tokens
	noAudience     bool   // the token has no aud; Audience is a substitute
}

// SubjectType names the claim that is the subject. The numbers equal the API's.
type SubjectType int

const (
	_ SubjectType = iota
	// SubjectSub says that the subject is the sub claim.
	SubjectSub
	// SubjectClientID says that the token has no sub, and the subject is the client_id
	// claim. A SubjectSub of the same name is a different identity.
	SubjectClientID
)

// String returns the name of the claim.
func (t SubjectType) String() string {
	switch t {
	case SubjectSub:
		return "sub"
	case SubjectClientID:
		return "client_id"
	default:
		return ""
	}
}

// seal removes spare capacity, so that no append to a list of these immutable facts
// changes them, and so that they hold no memory that [factsCost] does not count.
func (f *Facts) seal() *Facts {
	f.Audience, f.Scopes, f.Claims = exact(f.Audience), exact(f.Scopes), exact(f.Claims)
	return f
}

func exact[E any](list []E) []E {
	switch {
	case len(list) == 0:
		return nil
	case len(list) < cap(list):
		return slices.Clip(slices.Clone(list))
	default:
		return list
	}
}

// maxSeconds is the largest number up to which a float64 holds every integer.
const maxSeconds = 1 << 53

// newFacts reads the claims of a token of the issuer c after its signature was
// verified. Some issuers write null for a claim without a value. A null counts as
// absent if no check depends on the claim. Any other null is invalid unless
// [IssuerConfig.AllowNullClaims] allows it; a null sub, aud or cnf is always invalid.
// The error is a clause that names the claim ("its exp is ...").
func newFacts(c *IssuerConfig, header jose.Header, claims jose.Object, payload []byte) (*Facts, error) {
	claims = claims.WithoutNulls("client_id", "azp", "jti", "iat")
	if c.AllowNullClaims {
		claims = claims.WithoutNulls("nbf", c.ScopeClaim[0])
	}
	r := reader{claims: claims}
	f := &Facts{
		Issuer:       c.Issuer,
		Subject:      r.text("sub"),
		SubjectType:  SubjectSub,
		ClientID:     r.text("client_id"),
		Scopes:       r.scopes(c.ScopeClaim...),
		IssuedAt:     r.time("iat"),
		NotBefore:    r.time("nbf"),
		ExpiresAt:    r.expiry(),
		TokenID:      r.text("jti"),
		Confirmation: r.confirmation(""),
		Claims:       payload,
		noKeyID:      header.KeyID == "",
		typ:          header.Type,

		hasAccessClaim: hasAccessClaim(c, claims, c.ScopeClaim...),
		otherPurpose:   otherPurpose(claims, c.IDTokenClaims),
	}
	r.audience(f, c.MissingAudience)
	r.subject(f, c.MissingSubject && !claims.Has("sub"))
	if f.ClientID == "" {
		f.ClientID = r.text("azp")
	}
	for _, name := range [...]string{"cid", "appid"} { // for other issuers these may have any type
		if text, _, err := claims.Text(name); f.ClientID == "" && err == nil {
			f.ClientID = text
		}
	}
	if r.err != nil {
		return nil, r.err
	}
	return f.seal(), nil
}

// reader reads claims and keeps the first error.
type reader struct {
	claims jose.Object
	err    error
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *reader) text(name string) string {
	text, _, err := r.claims.Text(name)
	if err != nil {
		r.fail(err)
	}
	return text
}

// subject sets the subject of f. On entry, f.Subject and f.ClientID are the claims sub and
// client_id. If missing is set, client_id takes the place of sub.
func (r *reader) subject(f *Facts, missing bool) {
	if missing {
		f.Subject, f.SubjectType = f.ClientID, SubjectClientID
	}
	switch {
	case f.Subject != "":
	case missing:
		r.fail(errors.New("its sub and client_id are missing or empty"))
	default:
		r.fail(errors.New("its sub is missing or empty"))
	}
}

func (r *reader) list(name string) []string {
	list, _, err := r.claims.List(name)
	if err != nil {
		r.fail(err)
	}
	return list
}

// audience sets the audience of f. A null aud is invalid and gets no substitute.
func (r *reader) audience(f *Facts, missing MissingAudience) {
	f.noAudience = !r.claims.Has("aud")
	switch {
	case !f.noAudience:
		f.Audience = r.audienceIn("aud")
	case missing.Value != "":
		f.Audience = []string{missing.Value}
	case missing.Claim != "" && r.claims.Has(missing.Claim) && !r.claims.IsNull(missing.Claim):
		f.Audience = r.audienceIn(missing.Claim)
	}
}

// audienceIn reads a string or an array of strings (RFC 7519 section 4.1.3).
func (r *reader) audienceIn(claim string) []string {
	var list []string
	if r.claims.IsArray(claim) {
		list = r.list(claim)
	} else {
		list = []string{r.text(claim)}
	}
	if len(list) == 0 || slices.Contains(list, "") {
		r.fail(fmt.Errorf("its %s is empty or contains an empty string", claim))
	}
	return list
}

// scopes reads the claim at a path of member names: a string of scopes separated by
// spaces (RFC 6749 section 3.3), or an array of strings. Extra spaces and empty
// strings are ignored, because some issuers write them.
func (r *reader) scopes(path ...string) []string {
	claims, claim := r.claims, path[len(path)-1]
	for _, name := range path[:len(path)-1] {
		var err error
		if claims, _, err = claims.Object(name); err != nil {
			r.fail(err)
		}
	}
	within := reader{claims: claims}
	var list []string
	if claims.IsArray(claim) {
		list = within.list(claim)
	} else {
		list = strings.FieldsFunc(within.text(claim), func(c rune) bool { return c == ' ' })
	}
	if within.err != nil {
		r.fail(within.err)
	}
	if !isScopeClaim(path) {
		// Such a claim has other purposes too, for example naming groups. A value
		// that is not a valid scope grants nothing.
		return slices.DeleteFunc(list, notScope)
	}
	list = slices.DeleteFunc(list, func(s string) bool { return s == "" })
	if slices.ContainsFunc(list, notScope) {
		r.fail(fmt.Errorf("its %s contains an invalid scope (RFC 6749 section 3.3)", claim))
	}
	return list
}

// isScopeClaim reports whether issuers use the claim at the path for scopes only.
func isScopeClaim(path []string) bool {
	return len(path) == 1 && slices.Contains([]string{"scope", "scp", "permissions"}, path[0])
}

func notScope(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return true
		}
	}
	return s == ""
}

// time reads a NumericDate (RFC 7519 section 2) and drops its fraction. It returns
// the zero time if the claim is absent.
func (r *reader) time(name string) time.Time {
	seconds, present, err := r.claims.Number(name)
	switch {
	case err != nil:
		r.fail(err)
	case present && (seconds < 0 || seconds >= maxSeconds):
		r.fail(fmt.Errorf("its %s is not a time", name))
	case present:
		return time.Unix(int64(math.Floor(seconds)), 0)
	}
	return time.Time{}
}

func (r *reader) expiry() time.Time {
	exp := r.time("exp")
	if exp.Unix() <= 0 {
		r.fail(errors.New("its exp is missing or zero"))
	}
	return exp
}

// otherPurpose describes a token that is not an access token, and returns "" for any
// other. It recognizes such tokens by claims that access tokens never have, even if
// they are null, and by the claims in which Cognito (token_use) and Keycloak (typ)
// state the purpose.
func otherPurpose(claims jose.Object, idTokenClaims []string) string {
	use, hasUse, err := claims.Text("token_use")
	typ, _, _ := claims.Text("typ") // a typ that is not a string names no purpose
	mark := slices.IndexFunc(idTokenClaims, claims.Has)
	switch {
	case mark >= 0:
		return "an ID token (it has the claim " + idTokenClaims[mark] + ")"
	case noToken(claims) != "":
		return noToken(claims)
	case hasUse && (err != nil || use != "access_token" && use != "access"):
		return "for another use (token_use)"
	case slices.Contains([]string{"ID", "Refresh", "Offline", "Logout", "InitialAccessToken", "RegistrationAccessToken"}, typ):
		return "for another use (the claim typ)"
	default:
		return ""
	}
}

// noToken describes a JWT that is neither an access token nor an ID token, and returns ""
// for any other.
func noToken(claims jose.Object) string {
	switch {
	case claims.Has("events"): // RFC 8417
		return "a security event, such as a logout token"
	case claims.Has("htm") || claims.Has("htu"): // RFC 9449
		return "a DPoP proof"
	default:
		return ""
	}
}
