package verify

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose"
)

// Facts are what a token with a good signature says, or its issuer of an opaque
// one, and nothing of whether it is good for anything. Whoever gets them may do
// with them as he likes: nobody else has the same.
type Facts struct {
	// Issuer is the iss claim, as configured.
	Issuer string
	// Subject is the claim that SubjectType names, never empty. An identity is the
	// triple (Issuer, SubjectType, Subject).
	Subject     string
	SubjectType SubjectType
	// ClientID is the client_id claim; else azp; else cid or appid, where Okta and
	// Entra ID have it. May be empty.
	ClientID string
	// Audience is the aud claim as a list, or what [IssuerConfig.MissingAudience]
	// names if the token has no aud; may be empty.
	Audience []string
	// Scopes are those of the issuer's scope claim; may be empty.
	Scopes []string
	// IssuedAt and NotBefore are the iat and nbf claims; zero: there is none.
	IssuedAt, NotBefore time.Time
	// ExpiresAt is the exp claim; see also [Introspection].
	ExpiresAt time.Time
	// TokenID is the jti claim; may be empty.
	TokenID string
	// Confirmation is the cnf claim: the token is bound to a key of its holder,
	// and the binding has not been checked. Nil for a bearer token.
	Confirmation *Confirmation
	// Claims is the payload as it was signed, or the issuer's answer: one JSON
	// object.
	Claims []byte

	opaque  bool   // the issuer said all this itself
	keyless bool   // the header names no key
	typ     string // the header's typ; the token_type of an opaque token
	access  bool   // has a claim that only access tokens have
	purpose string // what the claims show it to be instead; empty: nothing
	noAud   bool   // the token has no aud: Audience stands for it
}

// SubjectType names the claim that is the subject. The numbers are those of the API.
type SubjectType int

const (
	_ SubjectType = iota
	// SubjectSub says that the subject is the sub claim.
	SubjectSub
	// SubjectClientID says that the token has no sub, and the subject is the client_id claim.
	// A user of the same name is somebody else.
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

// clone returns a copy that shares nothing that can be changed.
func (f *Facts) clone() *Facts {
	c := *f
	texts := slices.Concat(f.Audience, f.Scopes) // one allocation for both
	c.Audience, c.Scopes = slices.Clip(texts[:len(f.Audience)]), texts[len(f.Audience):]
	c.Claims = bytes.Clone(f.Claims)
	if f.Confirmation != nil {
		confirmation := *f.Confirmation
		c.Confirmation = &confirmation
	}
	return &c
}

// maxSeconds is where a float64 begins to leave out whole numbers.
const maxSeconds = 1 << 53

// newFacts reads the claims of a token of the issuer whose signature holds. Some
// issuers write null for a claim that they have no value for: that counts as absent
// where an absent claim changes nothing that is judged. A null in another claim is
// unsound, unless the issuer is configured otherwise; a null sub, aud or cnf always
// is. The error is a part of a sentence that names a claim.
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
		keyless:      header.KeyID == "",
		typ:          header.Type,
		access:       accessToken(claims, c.accessTokenClaims(c.ScopeClaim...)),
		purpose:      otherPurpose(claims, c.IDTokenClaims),
	}
	r.audience(f, c.MissingAudience)
	r.subject(f, c.MissingSubject && !claims.Has("sub"))
	if f.ClientID == "" {
		f.ClientID = r.text("azp")
	}
	for _, name := range [...]string{"cid", "appid"} { // others may have anything there
		if text, _, err := claims.Text(name); f.ClientID == "" && err == nil {
			f.ClientID = text
		}
	}
	if r.err != nil {
		return nil, r.err
	}
	return f, nil
}

// reader reads claims until one is not sound, and keeps the error of that one.
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

// subject completes the subject of facts that have the claims sub and client_id. If
// missing is set, client_id stands for sub.
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

// audience sets the audience of f. A token whose aud is null has none, and nothing
// stands for it.
func (r *reader) audience(f *Facts, missing MissingAudience) {
	f.noAud = !r.claims.Has("aud")
	switch {
	case !f.noAud:
		f.Audience = r.audienceIn("aud")
	case missing.Value != "":
		f.Audience = []string{missing.Value}
	case missing.Claim != "" && r.claims.Has(missing.Claim) && !r.claims.IsNull(missing.Claim):
		f.Audience = r.audienceIn(missing.Claim)
	}
}

// audienceIn reads one string, or an array of them (RFC 7519 section 4.1.3).
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

// scopes reads the claim at the path, whose names lead from object to object: one
// string with spaces between the scopes (RFC 6749 section 3.3), or an array of
// strings. Some issuers write several spaces, spaces at the end, or empty strings
// where there are no scopes.
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
		// The claim has another purpose as well, such as naming groups. A value
		// that cannot be a scope grants none.
		return slices.DeleteFunc(list, notScope)
	}
	list = slices.DeleteFunc(list, func(s string) bool { return s == "" })
	if slices.ContainsFunc(list, notScope) {
		r.fail(fmt.Errorf("its %s holds what is not a scope (RFC 6749 section 3.3)", claim))
	}
	return list
}

// isScopeClaim reports whether the claim at the path is one that issuers use for
// scopes and for nothing else.
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

// time reads a NumericDate (RFC 7519 section 2), which may have a fraction; it
// is cut off. Zero: there is none.
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

// accessToken reports whether a token has one of the claims that mark access tokens.
func accessToken(claims jose.Object, marks []string) bool {
	return slices.ContainsFunc(marks, func(name string) bool { return claims.Has(name) && !claims.IsNull(name) })
}

// otherPurpose recognizes tokens that are not access tokens by the claims that only
// they have, a null included, and by the claims in which Cognito (token_use) and Keycloak (typ) say what
// a token is for.
func otherPurpose(claims jose.Object, idTokenClaims []string) string {
	use, hasUse, err := claims.Text("token_use")
	typ, _, _ := claims.Text("typ") // of another kind: it is none of these
	mark := slices.IndexFunc(idTokenClaims, claims.Has)
	switch {
	case mark >= 0:
		return "an ID token (it has the claim " + idTokenClaims[mark] + ")"
	case claims.Has("events"): // RFC 8417
		return "a security event, such as a logout token"
	case claims.Has("htm") || claims.Has("htu"): // RFC 9449
		return "a DPoP proof"
	case hasUse && (err != nil || use != "access_token" && use != "access"):
		return "for another use (token_use)"
	case slices.Contains([]string{"ID", "Refresh", "Offline", "Logout", "InitialAccessToken", "RegistrationAccessToken"}, typ):
		return "for another use (the claim typ)"
	default:
		return ""
	}
}
