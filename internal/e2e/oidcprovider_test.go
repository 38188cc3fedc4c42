package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// Resources of the IdP, each with the way in which it signs tokens.
const (
	rs256  = "https://rs256.example.com"
	es256  = "https://es256.example.com"
	eddsa  = "https://eddsa.example.com"
	array  = "https://array.example.com"  // aud is an array, of this and another
	short  = "https://short.example.com"  // lives 5 s
	opaque = "https://opaque.example.com" // no JWT
)

// oidcProvider is npm oidc-provider with server.mjs around it.
type oidcProvider struct {
	issuer  string
	state   string // file that server.mjs keeps
	env     []string
	client  *http.Client
	process *process
	clients map[string]registered // by client_id
}

// registered is a client as server.mjs writes it down.
type registered struct {
	ID     string            `json:"client_id"`
	Secret string            `json:"client_secret"`
	Key    map[string]string `json:"private_key"`
}

// startOIDCProvider starts it, with more of the environment that server.mjs
// describes.
func startOIDCProvider(t *testing.T, env ...string) *oidcProvider {
	t.Helper()
	need(t, "node")
	need(t, "oidc-provider")
	port := redistest.FreePort(t)
	state := filepath.Join(t.TempDir(), "state.json")
	p := &oidcProvider{
		issuer: "http://127.0.0.1:" + strconv.Itoa(port),
		state:  state,
		env:    append(env, "PORT="+strconv.Itoa(port), "STATE="+state),
		client: &http.Client{Timeout: patience},
	}
	p.start(t)
	return p
}

// start starts the process; after stop it has the same port, keys and clients.
func (p *oidcProvider) start(t *testing.T) {
	t.Helper()
	server, err := filepath.Abs(filepath.Join("oidc-provider", "server.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	p.process = start(t, filepath.Dir(p.state), p.env, "node", server)
	p.process.ready(t, func() bool { return answers(t, p.client, p.issuer+"/control/requests") })
	p.readClients(t)
}

func (p *oidcProvider) readClients(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile(p.state)
	if err != nil {
		t.Fatal(err)
	}
	var state struct {
		Clients []registered `json:"clients"`
	}
	if err := json.Unmarshal(data, &state); err != nil {
		t.Fatal(err)
	}
	p.clients = map[string]registered{}
	for _, client := range state.Clients {
		p.clients[client.ID] = client
	}
}

func (p *oidcProvider) stop(t *testing.T) {
	t.Helper()
	p.process.stop(t, os.Kill)
	p.client.CloseIdleConnections()
}

func (p *oidcProvider) control(t *testing.T, name string, settings map[string]any) {
	t.Helper()
	body, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	response, err := fetch(t, p.client, http.MethodPost, p.issuer+"/control/"+name, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("control %s: %s, %v", name, response.Status, err)
	}
}

// rotateKeys signs with new keys from now on; the old ones stay published if
// keepOld.
func (p *oidcProvider) rotateKeys(t *testing.T, keepOld bool) {
	t.Helper()
	p.control(t, "rotate", map[string]any{"keep": keepOld})
}

func (p *oidcProvider) setLifetime(t *testing.T, d time.Duration) {
	t.Helper()
	p.control(t, "lifetime", map[string]any{"seconds": d.Seconds()})
}

// setDelay makes the token endpoint wait.
func (p *oidcProvider) setDelay(t *testing.T, d time.Duration) {
	t.Helper()
	p.control(t, "delay", map[string]any{"ms": d.Milliseconds()})
}

// failNext makes the next token requests fail; retryAfter is a header.
func (p *oidcProvider) failNext(t *testing.T, times, status int, retryAfter string) {
	t.Helper()
	p.control(t, "fail", map[string]any{"times": times, "status": status, "error": "temporarily_unavailable", "retryAfter": retryAfter})
}

func (p *oidcProvider) failNextJWKS(t *testing.T, times, status int) {
	t.Helper()
	p.control(t, "fail-jwks", map[string]any{"times": times, "status": status})
}

func (p *oidcProvider) reset(t *testing.T) {
	t.Helper()
	p.control(t, "reset", map[string]any{})
}

// seen is what the IdP counted since its start or reset.
type seen struct {
	// Paths has the requests of each path.
	Paths map[string]int `json:"paths"`
	// Auth has the token requests that authenticated by basic, post, assertion or
	// certificate.
	Auth map[string]int `json:"auth"`
}

func (p *oidcProvider) requests(t *testing.T) seen {
	t.Helper()
	var counts seen
	p.getJSON(t, "/control/requests", &counts)
	return counts
}

// tokenRequests is how often the token endpoint was asked.
func (p *oidcProvider) tokenRequests(t *testing.T) int {
	t.Helper()
	return p.requests(t).Paths["/token"]
}

func (p *oidcProvider) getJSON(t *testing.T, path string, into any) {
	t.Helper()
	response, err := fetch(t, p.client, http.MethodGet, p.issuer+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		t.Fatalf("%s: %s, %v", path, response.Status, err)
	}
}

// idpAnswer is an answer of the IdP to a form.
type idpAnswer struct {
	status      int
	header      http.Header
	AccessToken string `json:"access_token"`
	ExpiresIn   int    `json:"expires_in"`
	Scope       string `json:"scope"`
	Error       string `json:"error"`
	Active      bool   `json:"active"`
	ClientID    string `json:"client_id"`
}

// post sends a form to an endpoint, with basic credentials unless they are nil.
func (p *oidcProvider) post(t *testing.T, path string, basic *url.Userinfo, form url.Values) idpAnswer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.issuer+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if basic != nil {
		password, _ := basic.Password()
		request.SetBasicAuth(basic.Username(), password)
	}
	response, err := p.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	answer := idpAnswer{status: response.StatusCode, header: response.Header}
	if err := json.Unmarshal(body, &answer); err != nil && len(body) > 0 {
		t.Fatalf("%s: %s: %v", path, response.Status, err)
	}
	return answer
}

// basic is how a client of the IdP authenticates (RFC 6749, section 2.3.1).
func (p *oidcProvider) basic(id string) *url.Userinfo {
	return url.UserPassword(url.QueryEscape(id), url.QueryEscape(p.clients[id].Secret))
}

// mint gets a token from the IdP past the broker.
func (p *oidcProvider) mint(t *testing.T, resource string) string {
	t.Helper()
	answer := p.post(t, "/token", p.basic("basic"), grant(resource))
	if answer.status != http.StatusOK {
		t.Fatalf("the IdP answered %d %s", answer.status, answer.Error)
	}
	return answer.AccessToken
}

func grant(resource string) url.Values {
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {"read write"}}
	if resource != "" {
		form.Set("resource", resource)
	}
	return form
}

// config is the broker's configuration for this IdP: clients basic, odd and
// post, and the IdP as an issuer.
func (p *oidcProvider) config(t *testing.T) string {
	t.Helper()
	var clients strings.Builder
	for name, client := range map[string]struct{ id, auth string }{
		"basic": {"basic", "client_secret_basic"},
		"odd":   {"odd:%+/=& id", "client_secret_basic"},
		"post":  {"post", "client_secret_post"},
	} {
		fmt.Fprintf(&clients, "  %s:\n    issuer: %s\n    client_id: %q\n    secret: file:%s\n    auth: %s\n    resources: [%s]\n    scopes: [read, write]\n",
			name, p.issuer, client.id, writeFile(t, "secret", p.clients[client.id].Secret), client.auth, rs256)
	}
	return fmt.Sprintf("clients:\n%sissuers:\n  - issuer: %s\n    audiences: [%s]\n    algorithms: [RS256, ES256, EdDSA]\n",
		&clients, p.issuer, strings.Join([]string{rs256, es256, eddsa, array, short}, ", "))
}

// writeFile writes a file into a directory of its own and returns its path.
func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	testkit.WriteFile(t, path, content)
	return path
}
