package idp

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/token"
)

// TokenExchange is the grant type of RFC 8693.
const TokenExchange = "urn:ietf:params:oauth:grant-type:token-exchange" //nolint:gosec // an identifier, not a credential

// Types of tokens (RFC 8693 section 3).
const (
	TypeAccessToken = "urn:ietf:params:oauth:token-type:access_token" //nolint:gosec // an identifier, not a credential
	TypeIDToken     = "urn:ietf:params:oauth:token-type:id_token"     //nolint:gosec // an identifier, not a credential
	TypeJWTToken    = "urn:ietf:params:oauth:token-type:jwt"          //nolint:gosec // an identifier, not a credential
	// TypeIDJAG is an identity assertion (draft-ietf-oauth-identity-assertion-authz-grant):
	// another IdP exchanges it for an access token. It is no access token.
	TypeIDJAG = "urn:ietf:params:oauth:token-type:id-jag"
)

const (
	// ParamTokenUse is the parameter by which Entra ID tells an exchange from other uses
	// of the grant JWTBearer.
	ParamTokenUse = "requested_token_use"
	// OnBehalfOf is its value.
	OnBehalfOf = "on_behalf_of"

	// maxClaims bounds [Error.Claims], in bytes: callers receive it in the details of an
	// error, which are a header.
	maxClaims = 2 << 10
)

// Exchange configures a client that requests tokens on behalf of subjects. Config.Grant
// is then TokenExchange, or JWTBearer with the subject token as the assertion.
type Exchange struct {
	// SubjectTypes are the accepted types of subject tokens, TypeAccessToken and TypeIDToken.
	// Empty: TypeAccessToken.
	SubjectTypes []string
	// RequestedTokenType is sent with the grant TokenExchange, unless it is empty. It is
	// TypeAccessToken, TypeJWTToken or TypeIDJAG.
	RequestedTokenType string
	// Assertions: the client requests assertions for another IdP, of the type
	// RequestedTokenType, instead of access tokens.
	Assertions bool
	// Actor names the source of the actor tokens, which [Client.Exchange] is called with.
	// Empty: there is no actor.
	Actor string
}

// Behalf has the tokens of an exchange.
type Behalf struct {
	Subject Subject
	// Actor is the token of the party that acts on behalf of the subject (RFC 8693 section
	// 2.1). Zero: the IdP takes the client as the actor.
	Actor redact.String
	// ActorType is the type of Actor.
	ActorType string
}

// Subject is the token of a user or a service on whose behalf a token is requested.
type Subject struct {
	Token redact.String
	// Type is TypeAccessToken or TypeIDToken. With the grant JWTBearer the IdP does not see it.
	Type string
}

// TokenTypeOf returns the identifier of a type with this short name, such as access_token,
// and "" for no name.
func TokenTypeOf(name string) string {
	if name == "" {
		return ""
	}
	return "urn:ietf:params:oauth:token-type:" + name
}

// SignedGrant returns grant if the client signs an assertion for it, otherwise "". A
// client that exchanges signs none: its assertion is the subject token.
func SignedGrant(grant string, exchanges bool) string {
	if exchanges || grant != JWTBearer {
		return ""
	}
	return grant
}

func (c Config) signedGrant() string { return SignedGrant(c.Grant, c.Exchange != nil) }

func (c Config) checkExchange() error {
	if c.Exchange == nil {
		return nil
	}
	switch requested := c.Exchange.RequestedTokenType; {
	case c.Grant != TokenExchange && c.Grant != JWTBearer:
		return fmt.Errorf("exchange needs the grant type %s or %s", TokenExchange, JWTBearer)
	case requested != "" && c.Grant != TokenExchange:
		return fmt.Errorf("exchange.requested_token_type is for the grant type %s only", TokenExchange)
	case requested != "" && requested != TypeAccessToken && requested != TypeJWTToken && requested != TypeIDJAG:
		return fmt.Errorf("exchange.requested_token_type must be %s, %s or %s", TypeAccessToken, TypeJWTToken, TypeIDJAG)
	case c.Exchange.Assertions != (requested == TypeIDJAG) && requested != TypeJWTToken:
		return fmt.Errorf("exchange.requested_token_type of a client that requests assertions must be %s or %s, and %s is for such clients only", TypeJWTToken, TypeIDJAG, TypeIDJAG)
	case c.Exchange.Actor != "" && c.Grant != TokenExchange:
		return fmt.Errorf("exchange.actor is for the grant type %s only", TokenExchange)
	}
	for _, name := range []string{"subject_token", "subject_token_type", "actor_token", "actor_token_type", "requested_token_type"} {
		if _, ok := c.Params[name]; ok {
			return fmt.Errorf("params must not set %s, which exchange controls", name)
		}
	}
	return nil
}

// ID returns the client_id.
func (c *Client) ID() string { return c.cfg.ClientID }

// Accepts reports whether the client exchanges subject tokens of this type.
func (c *Client) Accepts(subjectType string) bool {
	if c.cfg.Exchange == nil || len(c.cfg.Exchange.SubjectTypes) == 0 {
		return subjectType == TypeAccessToken
	}
	return slices.Contains(c.cfg.Exchange.SubjectTypes, subjectType)
}

// Exchanges reports whether the client requests tokens on behalf of subjects.
func (c *Client) Exchanges() bool { return c.cfg.Exchange != nil }

// Exchange requests a token on behalf of subject and authenticates with credential. Its
// duration and its errors are those of [Client.Fetch], except for a refusal of the
// subject, or of this request on its behalf: it has the class RequestRefused and says
// nothing about the credential. The token may outlive the subject token.
func (c *Client) Exchange(ctx context.Context, credential secret.Version, behalf Behalf, req Request) (token.Grant, error) {
	if c.cfg.Exchange == nil {
		return token.Grant{}, &Error{Class: Misconfigured, text: "the client received no request, because it is not configured to exchange tokens"}
	}
	return c.obtain(ctx, credential, &behalf, req)
}

// addBehalf adds the tokens of an exchange to form.
func (c *Client) addBehalf(form url.Values, behalf Behalf) {
	if c.cfg.Grant == JWTBearer {
		form.Set("assertion", behalf.Subject.Token.Reveal())
		return
	}
	form.Set("subject_token", behalf.Subject.Token.Reveal())
	form.Set("subject_token_type", behalf.Subject.Type)
	if !behalf.Actor.IsZero() {
		form.Set("actor_token", behalf.Actor.Reveal())
		form.Set("actor_token_type", behalf.ActorType)
	}
	if requested := c.cfg.Exchange.RequestedTokenType; requested != "" {
		form.Set("requested_token_type", requested)
	}
}

// concernsSubject classifies a refused exchange. Whether it is refused depends on the
// subject, so its codes concern this subject only. Those that name the client's
// credential keep their class: the refusal of other requests has to confirm it.
func (r response) concernsSubject(e *Error) *Error {
	e.unclear = false
	code := subjectCode(r.members)
	text := meaningForSubject(code)
	if text == "" || e.Class == Throttled {
		return e
	}
	*e = Error{
		Class: RequestRefused, Code: code, Status: e.Status, RetryAfter: e.RetryAfter,
		Claims: r.members.claimsChallenge(), text: fmt.Sprintf("%s (%s, HTTP %d)", text, code, e.Status),
	}
	return e
}

// Interaction reports whether the IdP requires the user of a subject token to interact.
func (e *Error) Interaction() bool {
	switch e.Code {
	case "interaction_required", "login_required", "consent_required", "mfa_required", "account_selection_required":
		return true
	default:
		return false
	}
}

// subjectCode returns the error code of a response in the spelling of the standards.
func subjectCode(m members) string {
	code, _ := m.text("error")
	return strings.NewReplacer("-", "_", " ", "_").Replace(strings.ToLower(strings.TrimSpace(code)))
}

// RefusesSubject reports whether an error code refuses an exchange because of its subject or
// its target.
func RefusesSubject(code string) bool { return meaningForSubject(code) != "" }

// meaningForSubject returns the predicate of a sentence for a code that refuses an
// exchange because of its subject or its target. It returns "" for other codes.
func meaningForSubject(code string) string {
	switch code {
	case "invalid_request":
		return "refuses the subject token or another parameter of the exchange: check that the token is for this client, and check audience, resources, scopes and params"
	case "invalid_grant", "invalid_token":
		return "refuses the subject token: it has expired, was revoked, or is not for this client"
	case "invalid_target":
		return "refuses the requested audience or resource for this subject: check which of them the client may request at the IdP"
	case "invalid_scope", "insufficient_scope":
		return "refuses the requested scopes for this subject: check which scopes the client may request on behalf of users at the IdP"
	case "access_denied":
		return "denies the exchange for this subject: grant the client or the user access at the IdP"
	case "unauthorized_client":
		return "does not let the client exchange this subject token: check that the client may use this grant at the IdP"
	case "interaction_required", "login_required", "consent_required", "mfa_required", "account_selection_required":
		return "requires the user to interact: send the user to the IdP again, with the claims challenge if there is one"
	default:
		return ""
	}
}

// claimsChallenge returns the member claims if it is an object of printable ASCII that
// is not too long.
func (m members) claimsChallenge() string {
	claims, _ := m.text("claims")
	value := jsontext.Value(claims)
	odd := func(c rune) bool { return c < ' ' || c > '~' }
	if claims == "" || len(claims) > maxClaims || strings.ContainsFunc(claims, odd) || !value.IsValid() || value.Kind() != jsontext.KindBeginObject {
		return ""
	}
	return claims
}

// IssuesAssertions reports whether the client requests assertions for another IdP instead
// of access tokens.
func (c *Client) IssuesAssertions() bool { return c.cfg.Exchange != nil && c.cfg.Exchange.Assertions }

// issuedType returns the type of the token that the IdP issued in an exchange. Without
// the member it is an access token, because the response has an access_token.
func (c *Client) issuedType(r response) (string, *Error) {
	issued, isText := r.members.text("issued_token_type")
	switch {
	case c.IssuesAssertions() && issued == c.cfg.Exchange.RequestedTokenType:
		return issued, nil
	case c.IssuesAssertions():
		return "", &Error{Class: Misconfigured, Status: r.status, text: "issues something other than the requested assertion (issued_token_type): check exchange.requested_token_type, and that the client may request it at the IdP"}
	case absent(r.members["issued_token_type"]), isText && issued == "", issued == TypeAccessToken:
		return TypeAccessToken, nil
	case issued == TypeJWTToken:
		return TypeJWTToken, nil
	default:
		return "", &Error{Class: Misconfigured, Status: r.status, text: "issues something other than an access token (issued_token_type): request access tokens with exchange.requested_token_type"}
	}
}
