package devidp_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redact"
)

func introspect(t *testing.T, idp *devidp.Server, client *http.Client, token, secret string) answer {
	t.Helper()
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}, "client_id": {"any"}, "client_secret": {secret}}
	if secret == "" {
		form = url.Values{"token": {token}}
	}
	r := tokenRequest(t, idp, form.Encode())
	r.URL.Path = strings.Replace(r.URL.Path, devidp.TokenPath, devidp.IntrospectionPath, 1)
	return send(t, client, r)
}

func TestOpaqueTokensAreIntrospected(t *testing.T) {
	cfg := config()
	cfg.Clients[0].Opaque = true
	overBoth(t, cfg, func(t *testing.T, idp *devidp.Server, client *http.Client) {
		if got := get(t, client, idp.Issuer()+"/.well-known/openid-configuration").body["introspection_endpoint"]; got != idp.Issuer()+devidp.IntrospectionPath {
			t.Errorf("the metadata names %v", got)
		}
		token, _ := ask(t, idp, client, "scope=read").body["access_token"].(string)
		if token == "" || strings.Contains(token, ".") {
			t.Fatal("the token is not opaque")
		}
		body := introspect(t, idp, client, token, secret).body
		if life := body["exp"].(float64) - body["iat"].(float64); life != 3600 || body["jti"] == "" {
			t.Errorf("%v", body)
		}
		for _, member := range []string{"iat", "exp", "jti"} {
			delete(body, member)
		}
		want := map[string]any{
			"active": true, "iss": idp.Issuer(), "sub": "any", "client_id": "any", "aud": orders, "scope": "read", "token_type": "Bearer",
		}
		if diff := cmp.Diff(want, body); diff != "" {
			t.Error(diff)
		}
		inactive := map[string]any{"active": false}
		idp.Revoke(redact.New(token))
		for _, other := range []string{token, "unknown", idp.Mint(map[string]any{"sub": "me"}).Reveal()} {
			if diff := cmp.Diff(inactive, introspect(t, idp, client, other, secret).body); diff != "" {
				t.Error(diff)
			}
		}
		for name, tt := range map[string]struct {
			token, secret, code string
			status              int
		}{
			"no authentication": {token, "", "invalid_client", 401}, "wrong secret": {token, "wrong", "invalid_client", 401}, "no token": {"", secret, "invalid_request", 400},
		} {
			if got := introspect(t, idp, client, tt.token, tt.secret); got.status != tt.status || got.body["error"] != tt.code {
				t.Errorf("%s: %d %v", name, got.status, got.body)
			}
		}
		if n := idp.Requests(devidp.IntrospectionPath); n != 7 {
			t.Errorf("%d requests were counted", n)
		}
	})
}

func TestMintedOpaqueTokensExpireAndAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Issuer = "https://idp.example.com"
		idp := newServer(t, cfg)
		client := &http.Client{Transport: idp.RoundTripper()}
		active := func(token redact.String) bool {
			return introspect(t, idp, client, token.Reveal(), secret).body["active"] == true
		}
		token := idp.MintOpaque(map[string]any{"exp": time.Now().Add(time.Minute).Unix()})
		ever := idp.MintOpaque(map[string]any{"sub": "me"})
		if !active(token) || !active(ever) {
			t.Error("fresh tokens are not active")
		}
		time.Sleep(time.Minute)
		if active(token) || !active(ever) {
			t.Error("it is not exp that ends a token")
		}
		for range 1<<15 - 2 {
			idp.MintOpaque(map[string]any{"exp": time.Now().Add(time.Minute).Unix()})
		}
		time.Sleep(time.Minute)
		if last := idp.MintOpaque(map[string]any{}); !active(last) || !active(ever) {
			t.Error("good tokens went before those that had expired")
		}
		for range 1 << 15 {
			idp.MintOpaque(map[string]any{})
		}
		if last := idp.MintOpaque(map[string]any{}); !active(last) {
			t.Error("the latest token is not active")
		}
	})
}

func TestSetIntrospectionStandsBeforeTheEndpoint(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		idp.SetIntrospection(func(w http.ResponseWriter, r *http.Request) bool {
			if r.PostForm.Get("token") == "teapot" {
				w.WriteHeader(http.StatusTeapot)
				return true
			}
			return false
		})
		if got := introspect(t, idp, client, "teapot", secret); got.status != http.StatusTeapot {
			t.Errorf("taken over: %d", got.status)
		}
		if got := introspect(t, idp, client, "other", secret); got.status != http.StatusOK {
			t.Errorf("passed on: %d", got.status)
		}
		idp.SetIntrospection(nil)
		if got := introspect(t, idp, client, "teapot", secret); got.status != http.StatusOK {
			t.Errorf("taken away: %d", got.status)
		}
	})
}
