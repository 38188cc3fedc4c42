package httpface

import (
	"net/http"
	"strings"

	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// introspection is the response of RFC 7662 section 2.2. Sub is always there: who
// receives it may take an answer without one for a bad one.
type introspection struct {
	Active    bool              `json:"active"`
	Scope     string            `json:"scope,omitempty"`
	ClientID  string            `json:"client_id,omitempty"`
	TokenType string            `json:"token_type,omitempty"`
	Expires   int64             `json:"exp,omitempty"`
	IssuedAt  int64             `json:"iat,omitempty"`
	NotBefore int64             `json:"nbf,omitempty"`
	Subject   string            `json:"sub,omitempty"`
	Audience  any               `json:"aud,omitempty"`
	Issuer    string            `json:"iss,omitempty"`
	TokenID   string            `json:"jti,omitempty"`
	Confirm   map[string]string `json:"cnf,omitempty"`
}

// introspect is the introspection endpoint of RFC 7662: for a token that is for one
// of the audiences that its issuer is configured with. Of a token that is not good
// nothing is said but that.
func (s *Server) introspect(w http.ResponseWriter, r *http.Request) (int, error) {
	asked, refused := s.ask(w, r)
	if refused != nil {
		return refuse(w, r, refused)
	}
	defer asked.leave()
	presented := asked.form.Get("token")
	if presented == "" {
		return refuse(w, r, bad(invalidRequest, "token is required"))
	}
	result, err := s.cfg.Broker.Verify(r.Context(), asked.caller, redact.New(presented), verify.Request{})
	if err != nil {
		p := problemOf(err)
		if p.code == unauthorizedClient { // section 2.3 leaves no other way to say so
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
	made := introspection{
		Active: true, Scope: strings.Join(f.Scopes, " "), ClientID: f.ClientID, TokenType: "Bearer",
		Expires: f.ExpiresAt.Unix(), Subject: f.Subject, Issuer: f.Issuer, TokenID: f.TokenID,
	}
	switch len(f.Audience) {
	case 0:
	case 1:
		made.Audience = f.Audience[0]
	default:
		made.Audience = f.Audience
	}
	if !f.IssuedAt.IsZero() {
		made.IssuedAt = f.IssuedAt.Unix()
	}
	if !f.NotBefore.IsZero() {
		made.NotBefore = f.NotBefore.Unix()
	}
	if c := f.Confirmation; c != nil {
		made.Confirm = map[string]string{}
		for name, value := range map[string]string{"jkt": c.JKT, "x5t#S256": c.X5TS256} {
			if value != "" {
				made.Confirm[name] = value
			}
		}
	}
	return made
}

// metadata are those of RFC 8414 section 2.
func (s *Server) metadata(w http.ResponseWriter, _ *http.Request) (int, error) {
	byClient := []string{"tls_client_auth", "client_secret_basic", "client_secret_post"}
	return http.StatusOK, writeJSON(w, http.StatusOK, map[string]any{
		"issuer":                                        s.cfg.URL,
		"token_endpoint":                                s.cfg.URL + tokenPath,
		"introspection_endpoint":                        s.cfg.URL + introspectPath,
		"grant_types_supported":                         []string{"client_credentials"},
		"response_types_supported":                      []string{},
		"token_endpoint_auth_methods_supported":         byClient,
		"introspection_endpoint_auth_methods_supported": append(byClient, "Bearer"),
	})
}
