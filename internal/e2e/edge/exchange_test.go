package edge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
)

// bff is the audience of the users' tokens that are exchanged.
const bff = "https://bff.example.com"

// exchangeBroker starts a broker that exchanges tokens of an issuer for its caller "bff", and
// returns the URL of its HTTP API.
func exchangeBroker(t *testing.T, issuer, clientID, secret, settings string) string {
	t.Helper()
	address := harness.FreeAddress(t)
	b := &harness.Broker{Grpc: harness.FreeAddress(t), Ops: harness.FreeAddress(t)}
	b.File = harness.WriteFile(t, "broker.yaml", fmt.Sprintf(`
listen: {grpc: %q, ops: %q, http: {address: %q, url: "http://%s"}}
clients:
  orders-for-user: {issuer: %q, client_id: %s, secret: "file:%s", audience: %q, %s}
issuers: [{issuer: %q, audiences: [%q], types: [JWT, at+jwt]}]
callers: [{name: bff, issuer: %q, subject: bff, roles: [bff]}]
roles: {bff: {exchange: [{client: orders-for-user, from: {issuers: [%q], audiences: [%q]}}]}}
`, b.Grpc, b.Ops, address, address, issuer, clientID, harness.WriteFile(t, "secret", secret), ordersAPI, settings, issuer, bff, issuer, issuer, bff))
	b.Launch(t, "broker")
	b.Await(t)
	return "http://" + address
}

// checkExchanged checks a response of the token endpoint: the user is the subject, and the
// client the actor.
func checkExchanged(t *testing.T, response []byte, user, client, scope string) {
	t.Helper()
	var answer map[string]any
	if err := json.Unmarshal(response, &answer); err != nil {
		t.Fatalf("%v: %s", err, response)
	}
	text, _ := answer["access_token"].(string)
	claims := claimsOf(t, text)
	act, _, _ := claims.Object("act")
	actor, _, _ := act.Text("sub")
	subject, _, _ := claims.Text("sub")
	if subject != user || actor != client || answer["issued_token_type"] != idp.TypeAccessToken || answer["scope"] != scope {
		t.Errorf("sub %q, act %q, type %v, scope %v", subject, actor, answer["issued_token_type"], answer["scope"])
	}
}

// claimsOf returns the claims of a JWT.
func claimsOf(t *testing.T, token string) jose.Object {
	t.Helper()
	compact, err := jose.Split(redact.New(token))
	if err != nil {
		t.Fatalf("%v: %q", err, token)
	}
	claims, err := jose.ParseObject(compact.Payload)
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

// userClaims are those of a user's token, or of a caller's JWT.
func userClaims(issuer, subject, audience string) map[string]any {
	now := time.Now().Unix()
	return map[string]any{"iss": issuer, "sub": subject, "client_id": "web", "aud": audience, "iat": now, "exp": now + 600}
}

// openid-client, as npm publishes it, finds the broker's token endpoint by its metadata and
// exchanges a user's token there.
func TestOpenIDClientExchangesTokens(t *testing.T) {
	t.Parallel()
	harness.Need(t, "node")
	harness.Need(t, "openid-client")
	server := harness.StartIdP(t, time.Hour, devidp.Client{
		ID: "obo", Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read"}, Audiences: []string{ordersAPI}, Exchange: &devidp.Exchange{SubjectAudiences: []string{bff}},
	})
	broker := exchangeBroker(t, server.Issuer(), "obo", "right", "scopes: [read], exchange: {}")
	mint := func(subject, audience string) string {
		return server.Mint(userClaims(server.Issuer(), subject, audience)).Reveal()
	}
	exchange := func(user string) ([]byte, string, error) {
		var stderr bytes.Buffer
		command := exec.CommandContext(t.Context(), "node", filepath.Join("..", "openid-client", "exchange.mjs"), broker, "orders-for-user", mint("bff", "tokenbroker"), user)
		command.Stderr = &stderr
		out, err := command.Output()
		return out, stderr.String(), err
	}
	out, stderr, err := exchange(mint("alice", bff))
	if err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	checkExchanged(t, out, "alice", "obo", "read")
	if _, stderr, err := exchange(mint("alice", ordersAPI)); err == nil || !strings.Contains(stderr, "invalid_request") {
		t.Errorf("a token for another audience: %v %s", err, stderr)
	}
}

// The OpenID provider library of ZITADEL exchanges the token of a user: others understand the
// broker's request, and the broker understands their response.
func TestZITADELExchangesTokens(t *testing.T) {
	t.Parallel()
	server := startZITADEL(t)
	broker := exchangeBroker(t, server.issuer, server.clientID, server.secret, "scopes: [openid], exchange: {requested_token_type: access_token}")
	exchange := func(user string) (int, []byte) {
		form := url.Values{"grant_type": {idp.TokenExchange}, "client_id": {"orders-for-user"}, "subject_token": {user}, "subject_token_type": {idp.TypeAccessToken}}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, broker+"/oauth2/token", strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		request.Header.Set("Authorization", "Bearer "+server.sign(t, userClaims(server.issuer, "bff", "tokenbroker")))
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, body
	}
	status, body := exchange(server.sign(t, userClaims(server.issuer, "alice", bff)))
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	checkExchanged(t, body, "alice", server.clientID, "openid")
	if status, body := exchange(server.sign(t, userClaims(server.issuer, "alice", ordersAPI))); status != http.StatusBadRequest || !bytes.Contains(body, []byte("invalid_request")) {
		t.Errorf("a token for another audience: %d %s", status, body)
	}
}

// documented returns a snippet of docs/delegation.md, which begins after a sentence and is
// indented, with the addresses of a test in it.
func documented(t *testing.T, after, broker string) string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "delegation.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(page), after)
	_, text, _ = strings.Cut(text, "\n\n")
	text, _, _ = strings.Cut(text, "\n\n")
	if !found || !strings.HasPrefix(text, "    ") {
		t.Fatalf("docs/delegation.md has no snippet after %q", after)
	}
	text = strings.ReplaceAll("\n"+text, "\n    ", "\n")
	return strings.NewReplacer("https://broker.example.com:8444", broker, "{ algorithm: 'oauth2' }", "{ algorithm: 'oauth2', execute: [client.allowInsecureRequests] }").Replace(text)
}

// The snippets of the documentation run as they are written, in plaintext.
func TestDocumentedExchangesRun(t *testing.T) {
	t.Parallel()
	for _, peer := range []string{"node", "openid-client", "python3-authlib"} {
		harness.Need(t, peer)
	}
	server := harness.StartIdP(t, time.Hour, devidp.Client{
		ID: "obo", Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read"}, Audiences: []string{ordersAPI}, Exchange: &devidp.Exchange{SubjectAudiences: []string{bff}},
	})
	broker := exchangeBroker(t, server.Issuer(), "obo", "right", "scopes: [read], exchange: {}")
	env := []string{
		"CALLER_JWT=" + server.Mint(userClaims(server.Issuer(), "bff", "tokenbroker")).Reveal(),
		"USER_TOKEN=" + server.Mint(userClaims(server.Issuer(), "alice", bff)).Reveal(),
	}
	for name, tt := range map[string]struct {
		dir     string
		command []string
	}{
		"node": {"../openid-client", []string{"node", "--input-type=module", "-e", "import * as client from 'openid-client'\n" +
			"const callerJWT = process.env.CALLER_JWT, userToken = process.env.USER_TOKEN\n" + documented(t, "**Node**", broker) + "\nconsole.log(JSON.stringify(response))"}},
		"python": {".", []string{"/usr/bin/python3", "-c", "import os, requests\n" +
			"caller_jwt, user_token = os.environ['CALLER_JWT'], os.environ['USER_TOKEN']\nresponse = (" + strings.TrimSpace(documented(t, "**Python**", broker)) + ")\nprint(response.text)"}},
	} {
		var stderr bytes.Buffer
		command := exec.CommandContext(t.Context(), tt.command[0], tt.command[1:]...)
		command.Dir, command.Env, command.Stderr = filepath.FromSlash(tt.dir), append(os.Environ(), env...), &stderr
		out, err := command.Output()
		if err != nil {
			t.Errorf("%s: %v: %s", name, err, stderr.String())
			continue
		}
		checkExchanged(t, out, "alice", "obo", "read")
	}
}
