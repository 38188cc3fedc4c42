package httpapi

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/server"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// introspection is the response of RFC 7662 section 2.2. Sub is always present: a
// recipient may reject a response without it.
type introspection struct {
	Active    bool            `json:"active"`
	Scope     string          `json:"scope,omitempty"`
	ClientID  string          `json:"client_id,omitempty"`
	TokenType string          `json:"token_type,omitempty"`
	Expires   int64           `json:"exp,omitempty"`
	IssuedAt  int64           `json:"iat,omitempty"`
	NotBefore int64           `json:"nbf,omitempty"`
	Subject   string          `json:"sub,omitempty"`
	Audience  any             `json:"aud,omitempty"`
	Issuer    string          `json:"iss,omitempty"`
	TokenID   string          `json:"jti,omitempty"`
	Confirm   json.RawMessage `json:"cnf,omitempty"`
	// SubjectType is client_id if sub is the client ID, because the token has no sub;
	// else it is absent.
	SubjectType string `json:"subject_type,omitempty"`
}

// introspect is the introspection endpoint of RFC 7662: a token is active only if it is
// for one of the configured audiences of its issuer. The response for any other token
// holds active=false and nothing else. The parameter issuer, which is not part of the
// standard, names the required issuer of the token.
func (s *Server) introspect(w http.ResponseWriter, r *http.Request) (int, error) {
	req, p := s.readRequest(w, r)
	if p != nil {
		return refuse(w, r, p)
	}
	defer req.call.Leave()
	presented := req.form.Get("token")
	if presented == "" {
		return refuse(w, r, bad(invalidRequest, "token is required"))
	}
	needs := verify.Request{Issuer: req.form.Get("issuer"), OpaqueIssuer: s.cfg.Callers.OpaqueIssuer(r.Context())}
	if invalid := server.CheckVerifyRequest(needs); invalid != nil {
		return refuse(w, r, problemOf(invalid))
	}
	result, err := s.cfg.Broker.Verify(r.Context(), req.call.Caller, redact.New(presented), needs)
	if err != nil {
		p = problemOf(err)
		if p.code == unauthorizedClient { // section 2.3 has no other response for it
			p.status, p.code = http.StatusForbidden, accessDenied
		}
		return refuse(w, r, p)
	}
	if result.Facts == nil {
		return http.StatusOK, writeJSON(w, http.StatusOK, introspection{})
	}
	return http.StatusOK, writeJSON(w, http.StatusOK, introspected(result.Facts))
}

func introspected(f *verify.Facts) introspection {
	response := introspection{
		Active: true, Scope: strings.Join(f.Scopes, " "), ClientID: f.ClientID, TokenType: f.TokenType(), Confirm: confirmation(f),
		Expires: f.ExpiresAt.Unix(), Subject: f.Subject, Issuer: f.Issuer, TokenID: f.TokenID,
	}
	if f.SubjectType != verify.SubjectSub {
		response.SubjectType = f.SubjectType.String()
	}
	switch len(f.Audience) {
	case 0:
	case 1:
		response.Audience = f.Audience[0]
	default:
		response.Audience = f.Audience
	}
	if !f.IssuedAt.IsZero() {
		response.IssuedAt = f.IssuedAt.Unix()
	}
	if !f.NotBefore.IsZero() {
		response.NotBefore = f.NotBefore.Unix()
	}
	return response
}

// confirmation is the cnf claim as the issuer wrote it, so that the recipient sees how
// the token is bound even if the broker does not support that method.
func confirmation(f *verify.Facts) json.RawMessage {
	if f.Confirmation == nil {
		return nil
	}
	var claims map[string]json.RawMessage // unlike a struct, it distinguishes cnf from CNF
	if err := json.Unmarshal(f.Claims, &claims); err != nil || claims["cnf"] == nil {
		return json.RawMessage("{}") // an opaque token that its token type binds
	}
	return claims["cnf"]
}

// metadata is the server metadata of RFC 8414 section 2.
func (s *Server) metadata(w http.ResponseWriter, _ *http.Request) (int, error) {
	byClient := []string{"tls_client_auth", "client_secret_basic", "client_secret_post"}
	return http.StatusOK, writeJSON(w, http.StatusOK, map[string]any{
		"issuer":                                        s.cfg.URL,
		"token_endpoint":                                s.cfg.URL + tokenPath,
		"introspection_endpoint":                        s.cfg.URL + introspectPath,
		"grant_types_supported":                         []string{clientCredentials, idp.TokenExchange},
		"response_types_supported":                      []string{},
		"token_endpoint_auth_methods_supported":         byClient,
		"introspection_endpoint_auth_methods_supported": append(byClient, "Bearer"),
	})
}
