package edge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
)

// clientsBroker is a broker that speaks TLS, and knows two callers: one by its
// certificate, one by its JWT.
type clientsBroker struct {
	*harness.Broker

	url  string // of the HTTP listener
	idp  *harness.CountingIdP
	ca   *devca.Authority
	cert tls.Certificate // of the first caller
	// What programs are told, by the way in which they prove who they are.
	env map[string][]string
}

const (
	byCertificate = "by a certificate"
	byJWT         = "by a JWT"
)

func startClientsBroker(t *testing.T) *clientsBroker {
	t.Helper()
	dir := t.TempDir()
	b := &clientsBroker{Broker: &harness.Broker{Grpc: harness.FreeAddress(t), Ops: harness.FreeAddress(t)}, idp: harness.SimpleIdP(t, time.Hour)}
	address := harness.FreeAddress(t)
	b.url = "https://" + address
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	b.ca, err = devca.New("an authority of this test")
	check(err)
	ca, err := b.ca.Write(dir, "ca")
	check(err)
	server, err := b.ca.Issue(&x509.Certificate{DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	check(err)
	cert, key, err := server.Write(dir, "tls")
	check(err)
	checkout, err := b.ca.Issue(&x509.Certificate{URIs: []*url.URL{{Scheme: "spiffe", Host: "example.com", Path: "/checkout"}}})
	check(err)
	b.cert = checkout.TLS()
	checkoutCert, checkoutKey, err := checkout.Write(dir, "checkout")
	check(err)
	b.File = harness.WriteFile(t, "broker.yaml", fmt.Sprintf(`
listen: {grpc: %q, http: {address: %q, url: %q}, ops: %q, tls: {cert: %q, key: %q, client_ca: %q}}
issuers: [{issuer: %q, audiences: [%q], missing_sub: client_id}]
callers:
  - {name: checkout, spiffe_id: "spiffe://example.com/checkout", roles: [orders]}
  - {name: batch, issuer: %q, subject: batch, roles: [orders]}
roles: {orders: {get: [{client: orders}], verify: [{issuer: "*"}]}}
`, b.Grpc, address, b.url, b.Ops, cert, key, ca, b.idp.Issuer(), b.idp.Client.Audiences[0], b.idp.Issuer())+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": b.idp}))
	b.Launch(t, "broker")
	b.Await(t)
	common := []string{"BROKER_URL=" + b.url, "BROKER_GRPC=" + b.Grpc, "BROKER_CA=" + ca}
	jwt := b.idp.Mint(map[string]any{"iss": b.idp.Issuer(), "sub": "batch", "aud": "tokenbroker", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix()})
	b.env = map[string][]string{
		byCertificate: append([]string{"BROKER_CERT=" + checkoutCert, "BROKER_KEY=" + checkoutKey}, common...),
		byJWT:         append([]string{"BROKER_JWT=" + harness.WriteFile(t, "jwt", jwt.Reveal()+"\n")}, common...),
	}
	return b
}

// variable is the value of a variable of env.
func variable(env []string, name string) string {
	for _, entry := range env {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}

// checkToken holds an answer of the token endpoint to what RFC 6749 promises, and
// the token to what it is for.
func (b *clientsBroker) checkToken(t *testing.T, who, text string) {
	t.Helper()
	var got struct {
		AccessToken string `json:"access_token"`
		TokenType   string `json:"token_type"`
		ExpiresIn   int    `json:"expires_in"`
		Scope       string `json:"scope"`
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil || !strings.EqualFold(got.TokenType, "bearer") || got.ExpiresIn < 3000 || got.Scope != "read write" {
		t.Errorf("%s: %v, type %q, expires_in %d, scope %q", who, err, got.TokenType, got.ExpiresIn, got.Scope)
		return
	}
	b.checkGood(t, who, got.AccessToken)
}

// checkGood introspects a token as the caller who has a certificate.
func (b *clientsBroker) checkGood(t *testing.T, who, token string) {
	t.Helper()
	client := b.client(byCertificate)
	defer client.CloseIdleConnections()
	response, err := client.PostForm(b.url+"/oauth2/introspect", url.Values{"token": {token}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var said map[string]any
	if err := json.NewDecoder(response.Body).Decode(&said); err != nil || said["active"] != true || said["sub"] != "abc" || said["scope"] != "read write" {
		t.Errorf("%s: what came is no good token: %v %v", who, err, said)
	}
}

func (b *clientsBroker) client(proof string) *http.Client {
	config := &tls.Config{RootCAs: b.ca.Pool(), MinVersion: tls.VersionTLS13}
	if proof == byCertificate {
		config.Certificates = []tls.Certificate{b.cert}
	}
	return &http.Client{Timeout: harness.Patience, Transport: &http.Transport{TLSClientConfig: config}}
}

// repository is where a file of the project is.
func repository(t *testing.T, path ...string) string {
	t.Helper()
	at, err := filepath.Abs(filepath.Join(append([]string{"..", "..", ".."}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// Libraries and programs that know nothing of the broker get tokens from it.
func TestOAuthClientsGetTokens(t *testing.T) {
	t.Parallel()
	b := startClientsBroker(t)
	for proof, env := range b.env {
		t.Run("curl "+proof, func(t *testing.T) {
			harness.Need(t, "curl")
			args := []string{"--silent", "--show-error", "--fail-with-body", "--cacert", variable(env, "BROKER_CA"), "--data", "grant_type=client_credentials&client_id=orders", b.url + "/oauth2/token"}
			if proof == byJWT {
				// The header is read from a file, which keeps the JWT out of the list of processes.
				jwt, err := os.ReadFile(variable(env, "BROKER_JWT"))
				if err != nil {
					t.Fatal(err)
				}
				args = append(args, "--header", "@"+harness.WriteFile(t, "header", "Authorization: Bearer "+string(jwt)))
			} else {
				args = append(args, "--cert", variable(env, "BROKER_CERT"), "--key", variable(env, "BROKER_KEY"))
			}
			res := harness.Command{Name: "curl"}.Run(t, args...)
			if res.Code != 0 {
				t.Fatal(res)
			}
			b.checkToken(t, "curl", res.Stdout)
		})
		t.Run("node "+proof, func(t *testing.T) {
			harness.Need(t, "node")
			res := harness.Command{Name: "node", Env: env}.Run(t, repository(t, "examples", "node", "token.mjs"), "orders")
			if res.Code != 0 {
				t.Fatal(res)
			}
			b.checkToken(t, "node", res.Stdout)
		})
		t.Run("authlib "+proof, func(t *testing.T) {
			harness.Need(t, "python3-authlib")
			res := harness.Command{Name: "/usr/bin/python3", Env: env}.Run(t, repository(t, "examples", "python", "get_token.py"), "orders")
			if res.Code != 0 {
				t.Fatal(res)
			}
			b.checkToken(t, "authlib", res.Stdout)
			denied := harness.Command{Name: "/usr/bin/python3", Env: env}.Run(t, repository(t, "examples", "python", "get_token.py"), "orders", "admin")
			if denied.Code == 0 || !strings.Contains(denied.Stderr, "unauthorized_client") {
				t.Errorf("a scope that the caller may not have: %v", denied)
			}
		})
		t.Run("x/oauth2 "+proof, func(t *testing.T) {
			client := b.client(proof)
			defer client.CloseIdleConnections()
			config := clientcredentials.Config{ClientID: "orders", TokenURL: b.url + "/oauth2/token", AuthStyle: oauth2.AuthStyleInHeader}
			if proof == byJWT {
				jwt, err := os.ReadFile(variable(env, "BROKER_JWT"))
				if err != nil {
					t.Fatal(err)
				}
				config.ClientSecret = strings.TrimSpace(string(jwt))
			}
			for _, style := range []oauth2.AuthStyle{oauth2.AuthStyleInHeader, oauth2.AuthStyleInParams, oauth2.AuthStyleAutoDetect} {
				config.AuthStyle = style
				token, err := config.Token(context.WithValue(t.Context(), oauth2.HTTPClient, client))
				if err != nil {
					t.Fatalf("style %v: %v", style, err)
				}
				if time.Until(token.Expiry) < time.Minute || token.Extra("scope") != "read write" {
					t.Errorf("style %v: expiry %v, scope %v", style, token.Expiry, token.Extra("scope"))
				}
				b.checkGood(t, "x/oauth2", token.AccessToken)
			}
		})
	}
	if n := b.idp.Calls(); n != 1 {
		t.Errorf("the IdP was asked for a token %d times, want once for all of them", n)
	}
}

// A service in Python, with nothing but authlib, protects an endpoint.
func TestPythonServiceProtectsAnEndpoint(t *testing.T) {
	t.Parallel()
	harness.Need(t, "python3-authlib")
	b := startClientsBroker(t)
	address := harness.FreeAddress(t)
	_, port, _ := net.SplitHostPort(address)
	service := harness.Start(t, t.TempDir(), b.env[byJWT], "/usr/bin/python3", repository(t, "examples", "python", "protect.py"), port, "read")
	client := &http.Client{Timeout: harness.Patience}
	defer client.CloseIdleConnections()
	get := func(token string) (int, string) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := client.Do(request)
		if err != nil {
			return 0, ""
		}
		return response.StatusCode, response.Header.Get("WWW-Authenticate") + fmt.Sprint(response.Body.Close() == nil)
	}
	service.Ready(t, func() bool { status, _ := get(""); return status != 0 })
	minted := func(claims map[string]any) string {
		now := time.Now()
		all := map[string]any{
			"iss": b.idp.Issuer(), "sub": "alice", "aud": b.idp.Client.Audiences[0], "scope": "read", "iat": now.Add(-2 * time.Hour).Unix(), "exp": now.Add(time.Hour).Unix(),
		}
		maps.Copy(all, claims)
		maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
		return b.idp.Mint(all).Reveal()
	}
	mint := func(scope string, life time.Duration) string {
		return minted(map[string]any{"scope": scope, "exp": time.Now().Add(life).Unix()})
	}
	bound := func(cnf map[string]any) string { return minted(map[string]any{"cnf": cnf}) }
	for name, tt := range map[string]struct {
		token  string
		status int
		said   string
	}{
		"good": {mint("read", time.Hour), 200, ""}, "missing": {"", 401, `realm="orders"`}, "expired": {mint("read", -time.Hour), 401, "invalid_token"},
		"without the scope": {mint("write", time.Hour), 403, "insufficient_scope"}, "no token": {"x", 401, "invalid_token"},
		"bound to a DPoP key": {bound(map[string]any{"jkt": "t"}), 401, "invalid_token"}, "bound to a certificate": {bound(map[string]any{"x5t#S256": "t"}), 401, "invalid_token"},
		"of a client without a user": {minted(map[string]any{"sub": nil, "client_id": "alice"}), 403, ""},
		"bound in another way":       {bound(map[string]any{"kid": "k"}), 401, "invalid_token"}, "bound to nothing": {bound(map[string]any{}), 401, "invalid_token"},
	} {
		if status, said := get(tt.token); status != tt.status || !strings.Contains(said, tt.said) {
			t.Errorf("%s: %d %s", name, status, said)
		}
	}
	b.Process.Stop(t, os.Kill)
	if status, _ := get(mint("read", time.Hour)); status != http.StatusServiceUnavailable {
		t.Errorf("without the broker: %d", status)
	}
}

// checkFirstCall runs the example of docs/callers.md as a caller with a JWT.
func checkFirstCall(t *testing.T, b *clientsBroker, stubs string, env []string) {
	t.Helper()
	if !slices.ContainsFunc(env, func(one string) bool { return strings.HasPrefix(one, "BROKER_JWT=") }) {
		return // the example presents no certificate
	}
	rename := strings.NewReplacer("BROKER_GRPC=", "TOKENBROKER_ADDR=", "BROKER_CA=", "TOKENBROKER_CA=", "BROKER_JWT=", "TOKENBROKER_TOKEN_FILE=")
	python := harness.Command{Name: "/usr/bin/python3", Env: []string{"PYTHONPATH=" + stubs}}
	for _, one := range env {
		python.Env = append(python.Env, rename.Replace(one))
	}
	script := repository(t, "examples", "python", "grpc_token.py")
	b.checkGood(t, "the first call", strings.TrimSpace(python.Run(t, script, "orders").Stdout))
	if res := python.Run(t, script, "nosuch"); res.Code != 1 || !strings.Contains(res.Stderr, "there is no such thing") || strings.Contains(res.Stderr, "Traceback") {
		t.Errorf("another client: %v", res)
	}
}

// Stubs that Debian's protoc makes speak with the broker.
func TestPythonStubs(t *testing.T) {
	t.Parallel()
	harness.Need(t, "python3-authlib")
	harness.Need(t, "grpc_python_plugin")
	harness.Need(t, "grpcurl")
	stubs := t.TempDir()
	if res := (harness.Command{Name: repository(t, "examples", "python", "stubs.sh")}).Run(t, stubs); res.Code != 0 {
		t.Fatal(res)
	}
	b := startClientsBroker(t)
	for proof, env := range b.env {
		python := harness.Command{Name: "/usr/bin/python3", Env: append([]string{"PYTHONPATH=" + stubs}, env...)}
		script := repository(t, "examples", "python", "with_stubs.py")
		res := python.Run(t, script, "get", "orders")
		var got map[string]any
		if err := json.Unmarshal([]byte(res.Stdout), &got); err != nil {
			t.Fatalf("%s: %v: %v", proof, err, res)
		}
		python.Input, _ = got["access_token"].(string)
		b.checkGood(t, "stubs "+proof, python.Input)
		checkFirstCall(t, b, stubs, env)
		for scope, want := range map[string]string{"read": `{"active": true, "subject": "abc"}`, "admin": `{"active": false, "subject": ""}`} {
			if res := python.Run(t, script, "verify", scope); res.Stdout != want {
				t.Errorf("%s, scope %s: %v", proof, scope, res)
			}
		}
		minted := func(more map[string]any) string {
			now := time.Now()
			claims := map[string]any{"iss": b.idp.Issuer(), "aud": b.idp.Client.Audiences[0], "scope": "read", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}
			maps.Copy(claims, more)
			return b.idp.Mint(claims).Reveal()
		}
		for name, tt := range map[string]struct{ token, want string }{
			"a bound token":             {minted(map[string]any{"sub": "alice", "cnf": map[string]any{"kid": "k"}}), `{"active": false, "subject": ""}`},
			"a user's token":            {minted(map[string]any{"sub": "alice"}), `{"active": true, "subject": "alice"}`},
			"a client's without a user": {minted(map[string]any{"client_id": "alice"}), `{"active": true, "subject": ""}`},
		} {
			python.Input = tt.token
			if res := python.Run(t, script, "verify", "read"); res.Stdout != tt.want {
				t.Errorf("%s, %s: %v", proof, name, res)
			}
		}
	}
}
