package devidp

import (
	"crypto/rand"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
)

const (
	tokenExchange = "urn:ietf:params:oauth:grant-type:token-exchange" //nolint:gosec // an identifier, not a credential

	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token" //nolint:gosec // an identifier, not a credential
	typeIDToken     = "urn:ietf:params:oauth:token-type:id_token"     //nolint:gosec // an identifier, not a credential
	typeJWT         = "urn:ietf:params:oauth:token-type:jwt"

	typeIDJAG = "urn:ietf:params:oauth:token-type:id-jag"

	onBehalfOf = "on_behalf_of"
)

// Exchange lets a client exchange the tokens of users for others, by the grant type
// token-exchange (RFC 8693), or by jwt-bearer with requested_token_use=on_behalf_of and
// the user's token as the assertion, as Entra ID does.
type Exchange struct {
	// SubjectAudiences are the audiences of which a subject token must have one. They
	// default to the client_id.
	SubjectAudiences []string
	// RequireActor refuses requests without an actor token.
	RequireActor bool
	// Only refuses the client's own tokens, by the grant client_credentials. Otherwise a
	// client that exchanges may have them as well.
	Only bool
	// Assertions lets the client request assertions for another server: identity assertions
	// (id-jag), or JWTs of identity chaining.
	Assertions bool
	// AssertionsOf makes the client exchange the identity assertions of another server, by
	// the grant type jwt-bearer.
	AssertionsOf *Server
}

// party is the content of a verified subject or actor token.
type party struct {
	subject  string
	audience []string
	expires  int64
	act      map[string]any
}

// exchanges reports whether a request is an exchange by a client that may exchange.
func (c Client) exchanges(f form) bool { return c.Exchange != nil && f.Get("grant_type") == c.Grant }

// exchange serves an exchange of an authenticated client.
func (s *Server) exchange(client Client, f form) (map[string]any, *oauthError) {
	subject, err := s.subjectOf(client, f)
	if err != nil {
		return nil, err
	}
	actor, err := s.actorOf(client, f)
	if err != nil {
		return nil, err
	}
	scopes, err := client.scopesFor(f.Get("scope"))
	if err != nil {
		return nil, err
	}
	audience, err := client.audienceFor(f.Get("audience"), f.Values["resource"])
	if err != nil {
		return nil, err
	}
	if client.Exchange.Assertions {
		return s.assert(client, subject, audience, scopes, f.Get("requested_token_type")), nil
	}
	return s.issueFor(client, subject, actor, audience, scopes), nil
}

// assert issues an assertion of a kind: an identity assertion
// (draft-ietf-oauth-identity-assertion-authz-grant section 4.3), or a JWT
// (draft-ietf-oauth-identity-chaining section 2.3).
func (s *Server) assert(client Client, subject *party, audience, scopes []string, kind string) map[string]any {
	now := time.Now().Unix()
	assertion := s.MintWith(map[string]any{"typ": assertionTypes()[kind]}, map[string]any{
		"iss": s.issuer, "sub": subject.subject, "aud": audience[0], "client_id": client.ID, "jti": rand.Text(),
		"iat": now, "exp": now + 300, "scope": strings.Join(scopes, " "),
	})
	return map[string]any{"access_token": assertion.Reveal(), "issued_token_type": kind, "token_type": "N_A", "expires_in": 300}
}

// assertionTypes are the types in the headers of assertions, by their kinds.
func assertionTypes() map[string]string {
	return map[string]string{typeIDJAG: "oauth-id-jag+jwt", typeJWT: "JWT"}
}

// asserted returns the content of an identity assertion of another server.
func (s *Server) asserted(of *Server, assertion string) (*party, *oauthError) {
	const code = "invalid_grant"
	compact, err := jose.Split(redact.New(assertion))
	if err != nil {
		return nil, badRequest(code, "the assertion is not a JWT")
	}
	header, err := jose.ParseHeader(compact.Header)
	if err != nil || !slices.Contains(slices.Collect(maps.Values(assertionTypes())), header.Type) || !of.signed(header, compact) {
		return nil, badRequest(code, "the assertion is not signed by the other server, or is of another type")
	}
	claims, err := jose.ParseObject(compact.Payload)
	if err != nil {
		return nil, badRequest(code, "the assertion cannot be parsed")
	}
	subject, _, _ := claims.Text("sub")
	audience, _, _ := claims.Text("aud")
	expires, _, _ := claims.Number("exp")
	if audience != s.issuer || time.Now().Unix() >= int64(expires) {
		return nil, badRequest(code, "the assertion is not for this server, or has expired")
	}
	return &party{subject: subject, audience: []string{audience}, expires: time.Now().Unix() + 3600}, nil
}

// subjectOf returns the content of the subject token. RFC 8693 section 2.2.2 requires
// invalid_request for one that is invalid or unacceptable, and RFC 7523 section 3.1
// invalid_grant.
func (s *Server) subjectOf(client Client, f form) (*party, *oauthError) {
	token, code := f.Get("subject_token"), "invalid_request"
	switch {
	case client.Exchange.AssertionsOf != nil:
		return s.asserted(client.Exchange.AssertionsOf, f.Get("assertion"))
	case client.Grant == jwtBearer && f.Get("requested_token_use") != onBehalfOf:
		return nil, badRequest("invalid_request", "requested_token_use is missing or unknown")
	case client.Grant == jwtBearer:
		token, code = f.Get("assertion"), "invalid_grant"
	case f.Get("subject_token_type") == "":
		return nil, badRequest(code, "subject_token_type is missing")
	case f.Get("subject_token_type") != typeAccessToken && f.Get("subject_token_type") != typeIDToken:
		return nil, badRequest(code, "the subject_token_type is not supported")
	case client.Exchange.Assertions:
		if _, ok := assertionTypes()[f.Get("requested_token_type")]; !ok {
			return nil, badRequest(code, "the requested_token_type is no assertion")
		}
	case !slices.Contains([]string{"", typeAccessToken, typeJWT}, f.Get("requested_token_type")):
		return nil, badRequest(code, "the requested_token_type is not supported")
	}
	if token == "" {
		return nil, badRequest("invalid_request", "the subject token is missing")
	}
	subject, problem := s.read(token, f.Get("subject_token_type") == typeIDToken)
	if problem != "" {
		return nil, badRequest(code, "the subject token "+problem)
	}
	accepted := client.Exchange.SubjectAudiences
	if len(accepted) == 0 {
		accepted = []string{client.ID}
	}
	if !slices.ContainsFunc(subject.audience, func(a string) bool { return slices.Contains(accepted, a) }) {
		return nil, badRequest(code, "the subject token is not for this client")
	}
	return subject, nil
}

// actorOf returns the content of the actor token, or nil if there is none.
func (s *Server) actorOf(client Client, f form) (*party, *oauthError) {
	token, kind := f.Get("actor_token"), f.Get("actor_token_type")
	switch {
	case (token == "") != (kind == ""):
		return nil, badRequest("invalid_request", "actor_token and actor_token_type belong together")
	case token == "" && client.Exchange.RequireActor:
		return nil, badRequest("invalid_request", "actor_token is missing")
	case token == "":
		return nil, nil // there is no actor
	case kind != typeAccessToken && kind != typeJWT:
		return nil, badRequest("invalid_request", "the actor_token_type is not supported")
	}
	actor, problem := s.read(token, false)
	if problem != "" {
		return nil, badRequest("invalid_request", "the actor token "+problem)
	}
	return actor, nil
}

// read verifies a token that this server issued. problem is the predicate of a sentence
// about the token.
func (s *Server) read(token string, idToken bool) (read *party, problem string) {
	claims, problem := s.claimsOf(token, idToken)
	if problem != "" {
		return nil, problem
	}
	issuer, _, _ := claims.Text("iss")
	subject, _, _ := claims.Text("sub")
	expires, _, _ := claims.Number("exp")
	switch {
	case issuer != s.issuer || subject == "":
		return nil, "is of another issuer, or has no subject"
	case time.Now().Unix() >= int64(expires):
		return nil, "has expired"
	case claims.Has("cnf"):
		return nil, "is bound to a key"
	}
	read = &party{subject: subject, expires: int64(expires), act: actOf(claims)}
	if claims.IsArray("aud") {
		read.audience, _, _ = claims.List("aud")
	} else {
		one, _, _ := claims.Text("aud")
		read.audience = []string{one}
	}
	return read, ""
}

// claimsOf returns the claims of a JWT that this server signed, or of an opaque token.
func (s *Server) claimsOf(token string, idToken bool) (claims jose.Object, problem string) {
	if stored := s.opaque.find(token); stored != nil && !idToken {
		data, _ := json.Marshal(stored) // MintOpaque takes values for JSON only
		claims, err := jose.ParseObject(data)
		if err != nil {
			return claims, "has claims that cannot be parsed"
		}
		return claims, ""
	}
	compact, err := jose.Split(redact.New(token))
	if err != nil {
		return claims, "is not a JWT"
	}
	header, err := jose.ParseHeader(compact.Header)
	if err != nil || !s.signed(header, compact) {
		return claims, "is not signed by this server"
	}
	if (header.Type == "at+jwt") == idToken {
		return claims, "is not of the type that the request names"
	}
	if claims, err = jose.ParseObject(compact.Payload); err != nil {
		return claims, "has claims that cannot be parsed"
	}
	return claims, ""
}

// actOf returns the claim act, with its nested actors, or nil.
func actOf(claims jose.Object) map[string]any {
	act, present, err := claims.Object("act")
	if err != nil || !present {
		return nil
	}
	subject, _, _ := act.Text("sub")
	members := map[string]any{"sub": subject}
	if inner := actOf(act); inner != nil {
		members["act"] = inner
	}
	return members
}

func (s *Server) signed(header jose.Header, compact jose.Compact) bool {
	set, err := json.Marshal(map[string]any{"keys": s.published()})
	if err != nil {
		return false
	}
	keys, err := keysOf(set)
	return err == nil && slices.ContainsFunc(keys, func(key *jose.Key) bool {
		return key.ID() == header.KeyID && jose.Verify(header.Algorithm, key, compact.SigningInput, compact.Signature) == nil
	})
}

// issueFor issues a token of which the subject is that of the subject token, and the
// client or the actor is the actor (RFC 8693 section 4.1). It does not outlive the
// subject token.
func (s *Server) issueFor(client Client, subject, actor *party, audience, scopes []string) map[string]any {
	act := map[string]any{"sub": client.ID}
	if actor != nil {
		act["sub"] = actor.subject
	}
	if subject.act != nil {
		act["act"] = subject.act
	}
	further := map[string]any{"sub": subject.subject, "act": act}
	members := s.issue(client.ID, audience, strings.Join(scopes, " "), further, subject.expires)
	if client.Grant == tokenExchange {
		members["issued_token_type"] = typeAccessToken
	}
	return members
}
