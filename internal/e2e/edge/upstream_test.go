package edge

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// edgeAPI is the audience of the gateway in the example of upstream tokens.
const edgeAPI = "https://api.example.com"

// startUpstream starts a broker with the example of upstream tokens, and a service.
func startUpstream(t *testing.T) *delegation {
	t.Helper()
	e := &delegation{users: map[string]string{}, idp: harness.StartIdP(t, time.Hour, devidp.Client{
		ID: "orders-for-user", Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read"}, Audiences: []string{exampleAudience},
		Exchange: &devidp.Exchange{SubjectAudiences: []string{edgeAPI}},
	})}
	e.serve(t)
	e.launch(t, strings.NewReplacer(exampleIssuer, e.idp.Issuer(), exampleHTTP, e.http, exampleGRPC, e.Grpc, "listen:", "listen:\n  ops: "+e.Ops,
		"/run/secrets/orders-for-user", harness.WriteFile(t, "secret", "right"),
	).Replace(readExample(t, "broker-upstream.yaml")))
	return e
}

// user returns the token of a user for the gateway, the same each time.
func (e *delegation) user(subject string) string {
	if e.users[subject] == "" {
		e.users[subject] = e.token(map[string]any{"sub": subject, "aud": edgeAPI})
	}
	return e.users[subject]
}

// refuseExchanges makes the IdP refuse exchanges with a body, or stops that.
func (e *delegation) refuseExchanges(body string) {
	if body == "" {
		e.idp.SetAnswer(nil)
		return
	}
	e.idp.SetAnswer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != devidp.TokenPath {
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, body)
		return true
	})
}

// Each gateway sends a token of the user for the service, and the token of the request does
// not arrive. Without an upstream token the service gets no request.
func TestGatewaysSendUpstreamTokens(t *testing.T) {
	t.Parallel()
	for _, g := range upstreamGateways() {
		t.Run(g.name, func(t *testing.T) {
			e := startUpstream(t)
			e.judgeUpstream(t, g.start(t, e, e.http), 0)
		})
	}
	t.Run("ext_authz", func(t *testing.T) {
		e := startUpstream(t)
		e.judgeUpstream(t, e.startEnvoy(t, "orders.example.com"), http.StatusForbidden)
	})
}

// judgeUpstream tries a gateway. onError is its status if the call of ext_authz fails, by
// Envoy's default; zero: 503.
func (e *delegation) judgeUpstream(t *testing.T, address string, onError int) {
	t.Helper()
	if onError == 0 {
		onError = http.StatusServiceUnavailable
	}
	check := func(name, token string, status int, challenge string) {
		t.Helper()
		got := e.ask(t, address, "/orders/?upstream=other&client=x", "Bearer "+token)
		if got.status != status || !strings.Contains(got.challenge, challenge) || got.passed != nil {
			t.Errorf("%s: %d, %q, the service saw %v; want %d, %q", name, got.status, got.challenge, got.passed, status, challenge)
		}
	}
	for _, subject := range []string{"alice", "bob", "alice"} {
		e.checkSent(t, address, subject)
	}
	if calls := e.idp.Calls(); calls != 2 {
		t.Errorf("%d exchanges for two users", calls)
	}
	if got := e.ask(t, address, "/orders/"); got.status != http.StatusUnauthorized || got.passed != nil {
		t.Errorf("no token: %d", got.status)
	}
	check("another audience", e.token(nil), 401, "invalid_token")
	e.refuseExchanges(`{"error":"invalid_grant"}`)
	check("exchange refused", e.user("carol"), 403, "")
	e.refuseExchanges(`{"error":"interaction_required","claims":"{\"a\":1}"}`)
	check("interaction", e.user("dave"), 401, `error="insufficient_claims"`)
	e.refuseExchanges(`{"error":"invalid_client"}`)
	check("client refused", e.user("erin"), onError, "")
	e.refuseExchanges("")
	e.idp.SetDown(true)
	check("IdP down", e.user("frank"), onError, "")
	e.checkSent(t, address, "alice") // the broker holds the token
	e.idp.SetDown(false)
	e.Process.Stop(t, os.Kill)
	check("broker down", e.user("alice"), onError, "")
	e.Launch(t, "broker")
	e.Await(t)
	testkit.Eventually(t, "the gateway finds the broker again", func() bool {
		return e.ask(t, address, "/orders/", "Bearer "+e.user("alice")).status == http.StatusOK
	})
}

// checkSent sends a request of a user, and checks what the service gets.
func (e *delegation) checkSent(t *testing.T, address, subject string) {
	t.Helper()
	inbound := e.user(subject)
	got := e.ask(t, address, "/orders/", "Bearer "+inbound)
	values := got.passed["Authorization"]
	if got.status != http.StatusOK || len(values) != 1 {
		t.Fatalf("%s: %d, the service saw %q", subject, got.status, values)
	}
	parts := strings.Split(strings.TrimPrefix(values[0], "Bearer "), ".")
	if len(parts) != 3 {
		t.Fatalf("%s: the service saw %q", subject, values)
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Sub, Aud string
		Act      struct{ Sub string }
	}
	if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Sub != subject || claims.Aud != exampleAudience || claims.Act.Sub != "orders-for-user" {
		t.Errorf("%s: the service's token has %s", subject, payload)
	}
	for name, values := range got.passed {
		if strings.Contains(strings.Join(values, " "), inbound) {
			t.Errorf("%s: the token of the request arrives in %s", subject, name)
		}
	}
	if identity := got.passed["X-Auth-Subject"]; len(identity) != 1 || identity[0] != subject {
		t.Errorf("%s: the service sees the subject %q", subject, identity)
	}
}

// startEnvoy starts a gateway that treats requests for a host as Envoy does with ext_authz: Envoy itself
// is not installed. It sets headers, then removes others, and a failed call is 403.
func (e *delegation) startEnvoy(t *testing.T, host string) (address string) {
	t.Helper()
	conn, err := grpc.NewClient(e.Grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	service, err := url.Parse(e.upstream.URL)
	if err != nil {
		t.Fatal(err)
	}
	envoy, forward := authv3.NewAuthorizationClient(conn), httputil.NewSingleHostReverseProxy(service)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		headers := map[string]string{":method": r.Method, ":path": r.RequestURI}
		for name, values := range r.Header {
			headers[strings.ToLower(name)] = strings.Join(values, ",")
		}
		answer, err := envoy.Check(r.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Method: r.Method, Path: r.RequestURI, Host: host, Headers: headers}},
		}})
		allowed, denied := answer.GetOkResponse(), answer.GetDeniedResponse()
		switch {
		case err != nil || allowed == nil && denied == nil:
			w.WriteHeader(http.StatusForbidden)
		case denied != nil:
			for _, option := range denied.GetHeaders() {
				w.Header().Set(option.GetHeader().GetKey(), option.GetHeader().GetValue())
			}
			w.WriteHeader(int(denied.GetStatus().GetCode()))
			_, _ = io.Copy(w, bytes.NewBufferString(denied.GetBody()))
		default:
			for _, option := range allowed.GetHeaders() {
				r.Header.Set(option.GetHeader().GetKey(), option.GetHeader().GetValue())
			}
			for _, name := range allowed.GetHeadersToRemove() {
				r.Header.Del(name)
			}
			forward.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// TestEgressGatewayAddsAServiceToken runs the documented configuration for outgoing requests:
// its gateway adds a token to requests that have none, or another one.
func TestEgressGatewayAddsAServiceToken(t *testing.T) {
	t.Parallel()
	const host = "api.partner.example.com"
	page, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "gateways.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "### Outgoing requests\n")
	_, text, _ = strings.Cut(text, "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	e := &delegation{idp: harness.StartIdP(t, time.Hour, devidp.Client{ID: "shop", Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read"}, Audiences: []string{"partner"}})}
	e.serve(t)
	e.launch(t, strings.NewReplacer(
		"https://login.partner.example.com", e.idp.Issuer(), "/run/secrets/partner", harness.WriteFile(t, "secret", "right"), "dns_san: egress.example.com, ", "",
	).Replace(text)+"listen: {ops: \""+e.Ops+"\", grpc: {address: \""+e.Grpc+"\", caller: egress}, http: {address: \""+e.http+"\", caller: egress}}\n")
	address := e.startEnvoy(t, host)
	for _, inbound := range [][]string{nil, {"Bearer inbound"}, {"Basic aW5ib3VuZDp4"}, {"Bearer a", "Bearer b"}} {
		got := e.ask(t, address, "/", inbound...)
		values := got.passed["Authorization"]
		if got.status != http.StatusOK || len(values) != 1 || !strings.HasPrefix(values[0], "Bearer ey") {
			t.Errorf("%q: %d, the service saw %q", inbound, got.status, values)
		}
		for _, name := range identityHeaders() {
			if value := got.passed.Get(name); value != "" {
				t.Errorf("%q: the service saw %s %q", inbound, name, value)
			}
		}
	}
	response, err := harness.Fetch(t, http.DefaultClient, http.MethodGet, "http://"+e.http+"/verify?upstream=partner", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil || response.StatusCode != http.StatusOK || !strings.HasPrefix(response.Header.Get("Authorization"), "Bearer ey") || response.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("/verify: %v, %d", err, response.StatusCode)
	}
	if got := e.ask(t, e.startEnvoy(t, "other.example.com"), "/"); got.status != http.StatusForbidden || got.passed != nil {
		t.Errorf("another host: %d", got.status)
	}
	if calls := e.idp.Calls(); calls != 1 {
		t.Errorf("%d requests for tokens", calls)
	}
}
