package edge

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// answersWorld is ZITADEL's library as the IdP, and a broker that exchanges its tokens.
type answersWorld struct {
	*harness.Broker

	idp  *foreignIdP
	dir  string // of the IdP
	http string
}

func startAnswers(t *testing.T) *answersWorld {
	t.Helper()
	w := &answersWorld{idp: startZITADEL(t), http: harness.FreeAddress(t), Broker: &harness.Broker{Grpc: harness.FreeAddress(t), Ops: harness.FreeAddress(t)}}
	w.dir = w.idp.dir
	secret := harness.WriteFile(t, "secret", w.idp.secret)
	client := fmt.Sprintf(`{issuer: %q, client_id: orders, secret: "file:%s", audience: %q, scopes: [openid], `, w.idp.issuer, secret, ordersAPI)
	w.File = harness.WriteFile(t, "broker.yaml", fmt.Sprintf(`
listen: {grpc: {address: %q, caller: operator}, ops: %q, http: {address: %q, url: "http://%s"}}
clients:
  orders-for-user: %s exchange: {requested_token_type: access_token}}
  orders-with-actor: %s exchange: {requested_token_type: access_token, actor: client}}
issuers:
  - issuer: %q
    audiences: [%q]
    types: [JWT]
    introspection: {client: orders-for-user, cache: 0s}
callers:
  - {name: bff, issuer: %q, subject: bff, roles: [bff]}
  - {name: operator, roles: [operator]}
roles:
  bff:
    exchange:
      - {client: orders-for-user, from: {issuers: [%q], audiences: [%q]}}
      - {client: orders-with-actor, from: {issuers: [%q], audiences: [%q]}}
  operator: {admin: [{actions: [revoke_tokens]}]}
`, w.Grpc, w.Ops, w.http, w.http, client, client, w.idp.issuer, bff, w.idp.issuer, w.idp.issuer, bff, w.idp.issuer, bff))
	w.Launch(t, "broker")
	w.Await(t)
	return w
}

// post sends a form and returns the JSON of the response.
func (w *answersWorld) post(t *testing.T, target, authorization string, form url.Values) (int, map[string]any) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, target, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	body := map[string]any{}
	if err := json.Unmarshal(data, &body); err != nil && len(data) > 0 {
		t.Fatalf("%d %q: %v", response.StatusCode, data, err)
	}
	return response.StatusCode, body
}

// exchange exchanges a subject token at the broker.
func (w *answersWorld) exchange(t *testing.T, client, kind, subject string) (int, map[string]any) {
	t.Helper()
	return w.post(t, "http://"+w.http+"/oauth2/token", "Bearer "+w.idp.sign(t, userClaims(w.idp.issuer, "bff", "tokenbroker")),
		url.Values{"grant_type": {idp.TokenExchange}, "client_id": {client}, "subject_token": {subject}, "subject_token_type": {kind}})
}

// opaque requests an opaque token of a user at the IdP.
func (w *answersWorld) opaque(t *testing.T) string {
	t.Helper()
	_, body := w.post(t, w.idp.issuer+"/oauth/token", "", url.Values{"grant_type": {"client_credentials"}, "client_id": {"web"}, "client_secret": {w.idp.secret}, "scope": {"openid"}})
	token, _ := body["access_token"].(string)
	if token == "" || strings.Count(token, ".") == 2 {
		t.Fatalf("no opaque token: %v", body)
	}
	return token
}

// The answers for each kind of subject token, with an IdP that others wrote: the broker
// itself refuses the token, and the IdP gets no request, or it exchanges the token.
func TestZITADELAnswersForSubjects(t *testing.T) {
	t.Parallel()
	w := startAnswers(t)
	foreign := startZITADEL(t)
	mint := func(changes map[string]any) string {
		claims := userClaims(w.idp.issuer, "alice", bff)
		claims["scope"] = "openid"
		maps.Copy(claims, changes)
		maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
		return w.idp.sign(t, claims)
	}
	if res := w.Run(t, "revocations", "add", "--issuer", w.idp.issuer, "--token-id", "revoked-1", "--reason", "a test"); res.Code != 0 {
		t.Fatalf("%d: %s", res.Code, res.Stderr)
	}
	revokedOpaque := w.opaque(t)
	if status, body := w.post(t, w.idp.issuer+"/revoke", "", url.Values{"token": {revokedOpaque}, "client_id": {"web"}, "client_secret": {w.idp.secret}}); status != http.StatusOK {
		t.Fatalf("revoke: %d %v", status, body)
	}
	idToken := map[string]any{"aud": "orders", "azp": "orders", "nonce": "n", "at_hash": "x", "client_id": nil, "scope": nil}
	past := time.Now().Add(-time.Minute).Unix()
	access := idp.TypeAccessToken
	for name, tt := range map[string]struct {
		kind, token string
		want        string // in the description of the refusal; empty: exchanged
	}{
		"access token":                  {access, mint(nil), ""},
		"opaque access token":           {access, w.opaque(t), ""},
		"another audience":              {access, mint(map[string]any{"aud": ordersAPI}), "it must be for 'https://bff.example.com'"},
		"no audience":                   {access, mint(map[string]any{"aud": nil}), "names no audience"},
		"expired":                       {access, mint(map[string]any{"exp": past}), "expired"},
		"revoked at the broker":         {access, mint(map[string]any{"jti": "revoked-1"}), "revoked"},
		"opaque, revoked at the issuer": {access, revokedOpaque, "not active"},
		"opaque, of no one":             {access, "2YotnFZFEjr1zCsicMWpAA", "not active"},
		"foreign issuer":                {access, foreign.sign(t, userClaims(foreign.issuer, "alice", bff)), "not a configured issuer"},
		"foreign key":                   {access, foreign.sign(t, userClaims(w.idp.issuer, "alice", bff)), "key (kid) is not among"},
		"ID token":                      {access, mint(idToken), "is an ID token"},
		"ID token by its type":          {idp.TypeIDToken, mint(idToken), "exchanges no tokens of the type"},
		"refresh token":                 {access, "9b2f1c7e-4a55-4a0e-9a33-6c1d53cbb1f0", "not active"},
		"refresh token by its type":     {"urn:ietf:params:oauth:token-type:refresh_token", "9b2f1c7e-4a55-4a0e-9a33-6c1d53cbb1f0", "a refresh token is a credential"},
		"bound to a key":                {access, mint(map[string]any{"cnf": map[string]any{"jkt": "x"}}), "bound"},
		"bound to a certificate":        {access, mint(map[string]any{"cnf": map[string]any{"x5t#S256": "x"}}), "bound"},
	} {
		before := w.tokenRequests(t)
		status, body := w.exchange(t, "orders-for-user", tt.kind, tt.token)
		sent := w.tokenRequests(t) - before
		description, _ := body["error_description"].(string)
		switch {
		case tt.want == "" && (status != http.StatusOK || sent != 1 || actorOf(t, body) != "orders"):
			t.Errorf("%s: %d %v, %v requests to the IdP", name, status, body, sent)
		case tt.want != "" && (status != http.StatusBadRequest || body["error"] != "invalid_request" || !strings.Contains(description, tt.want) || sent != 0):
			t.Errorf("%s: %d %v, %v requests to the IdP, want %s", name, status, body, sent, tt.want)
		case strings.Contains(description, tt.token):
			t.Errorf("%s: the description repeats the token", name)
		}
	}
}

// tokenRequests is the number of requests of the broker to the token endpoint.
func (w *answersWorld) tokenRequests(t *testing.T) float64 {
	t.Helper()
	return w.Metric(t, `tokenbroker_idp_calls_total{operation="token"}`)
}

// actorOf returns the actor in a token, with the client that presented a token of the actor.
func actorOf(t *testing.T, body map[string]any) string {
	t.Helper()
	token, _ := body["access_token"].(string)
	act, _, _ := claimsOf(t, token).Object("act")
	actor, _, _ := act.Text("sub")
	if presented, _, _ := act.Text("presented_by"); presented != "" {
		actor += ", presented by " + presented
	}
	return actor
}

// An IdP that requires an actor token refuses an exchange without one, and names the actor
// in the token otherwise. The refusal condemns neither the secret nor other subjects.
func TestZITADELRequiresAnActor(t *testing.T) {
	t.Parallel()
	w := startAnswers(t)
	testkit.WriteFile(t, filepath.Join(w.dir, "actor"), "")
	alice := w.idp.sign(t, userClaims(w.idp.issuer, "alice", bff))
	status, body := w.exchange(t, "orders-for-user", idp.TypeAccessToken, alice)
	if status != http.StatusBadRequest || body["error"] != "invalid_request" {
		t.Errorf("without an actor: %d %v", status, body)
	}
	status, body = w.exchange(t, "orders-with-actor", idp.TypeAccessToken, alice)
	if status != http.StatusOK || actorOf(t, body) != "orders, presented by orders" {
		t.Errorf("with an actor: %d %v", status, body)
	}
}
