package httpapi_test

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/idp"
)

// exchangeForm is a request as RFC 8693 section 2.1 has it.
func exchangeForm(token string, more ...string) url.Values {
	form := with("grant_type", idp.TokenExchange, "client_id", apitest.OnBehalf, "subject_token", token, "subject_token_type", idp.TypeAccessToken)
	for pair := range slices.Chunk(more, 2) {
		form.Set(pair[0], pair[1])
	}
	return form
}

func TestTokenEndpoint_exchangesTokens(t *testing.T) {
	f := serveFixture(t, apitest.NewExchanging(t), "", nil)
	jwt, user := f.CallerJWT(apitest.Shop), f.Token(map[string]any{"aud": apitest.BFF})
	for name, tt := range map[string]struct {
		header http.Header
		form   url.Values
	}{
		"Bearer":              {bearer(jwt), exchangeForm(user)},
		"client_secret_basic": {basicAuth(apitest.OnBehalf, jwt), exchangeForm(user, "client_id", "")},
		"the requested type":  {bearer(jwt), exchangeForm(user, "requested_token_type", idp.TypeAccessToken, "scope", "read", "audience", apitest.Audience)},
	} {
		got := f.post(t, tokenPath, tt.header, tt.form)
		if got.status != 200 || got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %s", name, got.status, got.body)
			continue
		}
		answer := got.json(t)
		if answer["issued_token_type"] != idp.TypeAccessToken || answer["token_type"] != "Bearer" || answer["scope"] != "read" || answer["access_token"] == user {
			t.Errorf("%s: %v", name, answer)
		}
	}
	if n := f.IdP.Requests("/token"); n != 1 {
		t.Errorf("%d exchanges, want 1", n)
	}
}

func TestTokenEndpoint_refusesExchanges(t *testing.T) {
	f := serveFixture(t, apitest.NewExchanging(t), "", nil)
	jwt, user := f.CallerJWT(apitest.Shop), f.Token(map[string]any{"aud": apitest.BFF})
	const types = "urn:ietf:params:oauth:token-type:"
	for name, tt := range map[string]struct {
		form   url.Values
		status int
		code   string
	}{
		"no subject":              {exchangeForm(""), 400, "invalid_request"},
		"no type":                 {exchangeForm(user, "subject_token_type", ""), 400, "invalid_request"},
		"a refresh token":         {exchangeForm(user, "subject_token_type", types+"refresh_token"), 400, "invalid_request"},
		"SAML":                    {exchangeForm(user, "subject_token_type", types+"saml2"), 400, "invalid_request"},
		"an ID token":             {exchangeForm(user, "subject_token_type", idp.TypeIDToken), 400, "invalid_request"},
		"an actor token":          {exchangeForm(user, "actor_token", user, "actor_token_type", idp.TypeAccessToken), 400, "invalid_request"},
		"a requested ID token":    {exchangeForm(user, "requested_token_type", idp.TypeIDToken), 400, "invalid_request"},
		"a token for others":      {exchangeForm(f.Token(nil)), 400, "invalid_request"},
		"no such client":          {exchangeForm(user, "client_id", "orders"), 400, "unauthorized_client"},
		"another audience":        {exchangeForm(user, "audience", "https://x.example.com"), 400, "unauthorized_client"},
		"no exchange, no subject": {with("grant_type", "client_credentials", "client_id", apitest.OnBehalf), 400, "unauthorized_client"},
	} {
		got := f.post(t, tokenPath, bearer(jwt), tt.form)
		if got.status != tt.status || got.json(t)["error"] != tt.code || strings.Contains(got.body, user) {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	if n := f.IdP.Requests("/token"); n != 0 {
		t.Errorf("%d requests to the IdP", n)
	}
	if f.Log.Contains(user) {
		t.Error("the log has the user's token")
	}
}

// What the IdP says of the user reaches the caller: it may have to send the user back.
func TestTokenEndpoint_passesOnTheRefusalOfAUser(t *testing.T) {
	for _, tt := range []struct {
		body   string
		status int
		code   string
		claims any
	}{
		{`{"error":"interaction_required","claims":"{\"a\":1}"}`, 400, "interaction_required", `{"a":1}`},
		{`{"error":"invalid_grant"}`, 400, "invalid_grant", nil},
		{`{"error":"invalid_target"}`, 400, "invalid_target", nil},
		{`{"error":"something_else"}`, 502, "server_error", nil},
	} {
		f := serveFixture(t, apitest.NewExchanging(t), "", nil)
		jwt, user := f.CallerJWT(apitest.Shop), f.Token(map[string]any{"aud": apitest.BFF})
		f.IdP.SetAnswer(func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(tt.body))
			return true
		})
		got := f.post(t, tokenPath, bearer(jwt), exchangeForm(user))
		if answer := got.json(t); got.status != tt.status || answer["error"] != tt.code || answer["claims"] != tt.claims {
			t.Errorf("%s: %d %s", tt.body, got.status, got.body)
		}
	}
}
