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
	asked, refused := s.ask(w, r)
	if refused != nil {
		return refuse(w, r, refused)
	}
	defer asked.call.Leave()
	switch asked.form.Get("grant_type") {
	case "client_credentials":
	case "":
		return refuse(w, r, bad(invalidRequest, "grant_type is required"))
	default:
		return refuse(w, r, bad(unsupportedGrantType, "The only grant_type here is client_credentials"))
	}
	ask := broker.Ask{
		Client:    asked.client,
		Audience:  asked.form.Get("audience"),
		Resources: values(asked.form, "resource"),
	}
	if scope := asked.form.Get("scope"); scope != "" {
		ask.Scopes = strings.Split(scope, " ")
	}
	if ask.Client == "" {
		return refuse(w, r, bad(invalidRequest, "client_id is required: the name of a client in the broker's configuration"))
	}
	if invalid := server.CheckTokenRequest(ask); invalid != nil {
		return refuse(w, r, problemOf(invalid))
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Deadline)
	defer cancel()
	answer, err := s.cfg.Broker.Get(ctx, asked.call.Caller, ask)
	if err != nil {
		return refuse(w, r, problemOf(err))
	}
	return http.StatusOK, writeJSON(w, http.StatusOK, tokenResponse(answer, time.Now()))
}

// tokenResponse is the response of RFC 6749 section 5.1, with the further fields of the
// IdP's response that callers may see.
func tokenResponse(answer broker.Answer, now time.Time) map[string]any {
	made := map[string]any{}
	for name, value := range answer.Token.Extras {
		made[name] = value
	}
	made["access_token"] = answer.Token.Value.Reveal()
	made["token_type"] = answer.Token.Type
	made["expires_in"] = max(0, int(answer.Token.ExpiresAt.Sub(now)/time.Second))
	made["scope"] = strings.Join(answer.Token.Scopes, " ")
	if len(answer.Token.Scopes) == 0 {
		delete(made, "scope")
	}
	return made
}
