package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/exchange"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/server"
)

// token is the token endpoint of RFC 6749, for the grant client_credentials of section
// 4.4, and for token exchange (RFC 8693): client_id names the client that the token is for;
// the caller authenticates as itself.
func (s *Server) token(w http.ResponseWriter, r *http.Request) (int, error) {
	req, p := s.readRequest(w, r)
	if p != nil {
		return refuse(w, r, p)
	}
	defer req.call.Leave()
	grant := req.form.Get("grant_type")
	switch grant {
	case clientCredentials, idp.TokenExchange:
	case "":
		return refuse(w, r, bad(invalidRequest, "grant_type is required"))
	default:
		return refuse(w, r, bad(unsupportedGrantType, "The only values of grant_type here are client_credentials and "+idp.TokenExchange))
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
	if grant == idp.TokenExchange {
		return s.exchange(ctx, w, r, req, tokenRequest)
	}
	result, err := s.cfg.Broker.Get(ctx, req.call.Caller, tokenRequest)
	if err != nil {
		return refuse(w, r, problemOf(err))
	}
	return http.StatusOK, writeJSON(w, http.StatusOK, tokenResponse(result, time.Now()))
}

// exchange is the token endpoint for token exchange (RFC 8693 section 2).
func (s *Server) exchange(ctx context.Context, w http.ResponseWriter, r *http.Request, req *oauthRequest, ask broker.Ask) (int, error) {
	requested := req.form.Get("requested_token_type")
	switch {
	case req.form.Get("subject_token") == "" || req.form.Get("subject_token_type") == "":
		return refuse(w, r, bad(invalidRequest, "subject_token and subject_token_type are required"))
	case req.form.Get("actor_token") != "":
		return refuse(w, r, bad(invalidRequest, "actor_token is not accepted: the broker's configuration of the client names the actor"))
	case requested != "" && requested != idp.TypeAccessToken:
		return refuse(w, r, bad(invalidRequest, "requested_token_type can only be "+idp.TypeAccessToken))
	}
	subject, invalid := server.SubjectOf(req.form.Get("subject_token"), req.form.Get("subject_token_type"))
	if invalid != nil {
		return refuse(w, r, problemOf(invalid))
	}
	result, err := exchange.Get(ctx, s.cfg.Broker, req.call.Caller, ask, subject)
	if err != nil {
		return refuse(w, r, refusedExchange(err))
	}
	response := tokenResponse(result, time.Now())
	response["issued_token_type"] = result.Token.IssuedType
	return http.StatusOK, writeJSON(w, http.StatusOK, response)
}

// refusedExchange is problemOf for an exchange. The refusal of a subject by the IdP reaches
// the caller with its code, because the user may have to do something about it.
func refusedExchange(err error) *problem {
	p := problemOf(err)
	failure, ok := errors.AsType[*apierror.Error](err)
	if !ok || failure.Reason != apierror.ReasonRequestRefused && failure.Reason != apierror.ReasonInteraction {
		return p
	}
	if code := failure.Metadata["oauth_error"]; code != "" {
		p.status, p.code, p.claims = http.StatusBadRequest, code, failure.Metadata["claims"]
	}
	return p
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
