package httpapi

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/server"
)

// token is the token endpoint of RFC 6749, for the grant client_credentials of section
// 4.4: client_id names the client that the token is for; the caller authenticates as
// itself.
func (s *Server) token(w http.ResponseWriter, r *http.Request) (int, error) {
	req, p := s.readRequest(w, r)
	if p != nil {
		return refuse(w, r, p)
	}
	defer req.call.Leave()
	switch req.form.Get("grant_type") {
	case "client_credentials":
	case "":
		return refuse(w, r, bad(invalidRequest, "grant_type is required"))
	default:
		return refuse(w, r, bad(unsupportedGrantType, "The only grant_type here is client_credentials"))
	}
	tokenRequest := broker.Ask{
		Client:    req.client,
		Audience:  req.form.Get("audience"),
		Resources: values(req.form, "resource"),
	}
	if scope := req.form.Get("scope"); scope != "" {
		tokenRequest.Scopes = strings.Split(scope, " ")
	}
	if tokenRequest.Client == "" {
		return refuse(w, r, bad(invalidRequest, "client_id is required: the name of a client in the broker's configuration"))
	}
	if invalid := server.CheckTokenRequest(tokenRequest); invalid != nil {
		return refuse(w, r, problemOf(invalid))
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Deadline)
	defer cancel()
	result, err := s.cfg.Broker.Get(ctx, req.call.Caller, tokenRequest)
	if err != nil {
		return refuse(w, r, problemOf(err))
	}
	return http.StatusOK, writeJSON(w, http.StatusOK, tokenResponse(result, time.Now()))
}

// tokenResponse is the response of RFC 6749 section 5.1, with the further fields of the
// IdP's response that callers may see.
func tokenResponse(result broker.Answer, now time.Time) map[string]any {
	response := map[string]any{}
	for name, value := range result.Token.Extras {
		response[name] = value
	}
	response["access_token"] = result.Token.Value.Reveal()
	response["token_type"] = result.Token.Type
	response["expires_in"] = max(0, int(result.Token.ExpiresAt.Sub(now)/time.Second))
	response["scope"] = strings.Join(result.Token.Scopes, " ")
	if len(result.Token.Scopes) == 0 {
		delete(response, "scope")
	}
	return response
}
