package harness

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
	RS256  = "https://rs256.example.com"
	ES256  = "https://es256.example.com"
	EdDSA  = "https://eddsa.example.com"
	Array  = "https://array.example.com"  // aud is an array, of this and another
	Short  = "https://short.example.com"  // lives 5 s
	Opaque = "https://opaque.example.com" // no JWT
)

// OIDCProvider is npm oidc-provider with server.mjs around it.
type OIDCProvider struct {
	Issuer  string
	State   string // file that server.mjs keeps
	Env     []string
	Client  *http.Client
	process *testkit.Process
	Clients map[string]registered // by client_id
}

// registered is a client as server.mjs writes it down.
type registered struct {
	ID     string            `json:"client_id"`
	Secret string            `json:"client_secret"`
	Key    map[string]string `json:"private_key"`
}

// StartOIDCProvider starts it, with more of the environment that server.mjs
// describes.
func StartOIDCProvider(t *testing.T, env ...string) *OIDCProvider {
	t.Helper()
	Need(t, "node")
	Need(t, "oidc-provider")
	port := redistest.FreePort(t)
	state := filepath.Join(t.TempDir(), "state.json")
	p := &OIDCProvider{
		Issuer: "http://127.0.0.1:" + strconv.Itoa(port),
		State:  state,
		Env:    append(env, "PORT="+strconv.Itoa(port), "STATE="+state),
		Client: &http.Client{Timeout: Patience},
	}
	p.Start(t)
	return p
}

// Start starts the process; after stop it has the same port, keys and clients.
func (p *OIDCProvider) Start(t *testing.T) {
	t.Helper()
	server, err := filepath.Abs(filepath.Join("..", "oidc-provider", "server.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	p.process = Start(t, filepath.Dir(p.State), p.Env, "node", server)
	p.process.Ready(t, func() bool { return Answers(t, p.Client, p.Issuer+"/control/requests") })
	p.readClients(t)
}

func (p *OIDCProvider) readClients(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile(p.State)
	if err != nil {
		t.Fatal(err)
	}
	var state struct {
		Clients []registered `json:"clients"`
	}
	if err := json.Unmarshal(data, &state); err != nil {
		t.Fatal(err)
	}
	p.Clients = map[string]registered{}
	for _, client := range state.Clients {
		p.Clients[client.ID] = client
	}
}

func (p *OIDCProvider) Stop(t *testing.T) {
	t.Helper()
	p.process.Stop(t, os.Kill)
	p.Client.CloseIdleConnections()
}

func (p *OIDCProvider) Control(t *testing.T, name string, settings map[string]any) {
	t.Helper()
	body, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	response, err := Fetch(t, p.Client, http.MethodPost, p.Issuer+"/control/"+name, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("control %s: %s, %v", name, response.Status, err)
	}
}

// RotateKeys signs with new keys from now on; the old ones stay published if
// keepOld.
func (p *OIDCProvider) RotateKeys(t *testing.T, keepOld bool) {
	t.Helper()
	p.Control(t, "rotate", map[string]any{"keep": keepOld})
}

func (p *OIDCProvider) SetLifetime(t *testing.T, d time.Duration) {
	t.Helper()
	p.Control(t, "lifetime", map[string]any{"seconds": d.Seconds()})
}

// SetDelay makes the token endpoint wait.
func (p *OIDCProvider) SetDelay(t *testing.T, d time.Duration) {
	t.Helper()
	p.Control(t, "delay", map[string]any{"ms": d.Milliseconds()})
}

// FailNext makes the next token requests fail; retryAfter is a header.
func (p *OIDCProvider) FailNext(t *testing.T, times, status int, retryAfter string) {
	t.Helper()
	p.Control(t, "fail", map[string]any{"times": times, "status": status, "error": "temporarily_unavailable", "retryAfter": retryAfter})
}

func (p *OIDCProvider) FailNextJWKS(t *testing.T, times, status int) {
	t.Helper()
	p.Control(t, "fail-jwks", map[string]any{"times": times, "status": status})
}

func (p *OIDCProvider) Reset(t *testing.T) {
	t.Helper()
	p.Control(t, "reset", map[string]any{})
}

// seen is what the IdP counted since its start or reset.
type seen struct {
	// Paths has the requests of each path.
	Paths map[string]int `json:"paths"`
	// Auth has the token requests that authenticated by basic, post, assertion or
	// certificate.
	Auth map[string]int `json:"auth"`
}

func (p *OIDCProvider) Requests(t *testing.T) seen {
	t.Helper()
	var counts seen
	p.GetJSON(t, "/control/requests", &counts)
	return counts
}

// TokenRequests is how often the token endpoint was asked.
func (p *OIDCProvider) TokenRequests(t *testing.T) int {
	t.Helper()
	return p.Requests(t).Paths["/token"]
}

func (p *OIDCProvider) GetJSON(t *testing.T, path string, into any) {
	t.Helper()
	response, err := Fetch(t, p.Client, http.MethodGet, p.Issuer+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		t.Fatalf("%s: %s, %v", path, response.Status, err)
	}
}

// IdPAnswer is an answer of the IdP to a form.
type IdPAnswer struct {
	Status      int
	Header      http.Header
	AccessToken string `json:"access_token"`
	ExpiresIn   int    `json:"expires_in"`
	Scope       string `json:"scope"`
	Error       string `json:"error"`
	Active      bool   `json:"active"`
	ClientID    string `json:"client_id"`
}

// Post sends a form to an endpoint, with basic credentials unless they are nil.
func (p *OIDCProvider) Post(t *testing.T, path string, basic *url.Userinfo, form url.Values) IdPAnswer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.Issuer+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if basic != nil {
		password, _ := basic.Password()
		request.SetBasicAuth(basic.Username(), password)
	}
	response, err := p.Client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	answer := IdPAnswer{Status: response.StatusCode, Header: response.Header}
	if err := json.Unmarshal(body, &answer); err != nil && len(body) > 0 {
		t.Fatalf("%s: %s: %v", path, response.Status, err)
	}
	return answer
}

// Basic is how a client of the IdP authenticates (RFC 6749, section 2.3.1).
func (p *OIDCProvider) Basic(id string) *url.Userinfo {
	return url.UserPassword(url.QueryEscape(id), url.QueryEscape(p.Clients[id].Secret))
}

// Mint gets a token from the IdP past the broker.
func (p *OIDCProvider) Mint(t *testing.T, resource string) string {
	t.Helper()
	answer := p.Post(t, "/token", p.Basic("basic"), Grant(resource))
	if answer.Status != http.StatusOK {
		t.Fatalf("the IdP answered %d %s", answer.Status, answer.Error)
	}
	return answer.AccessToken
}

func Grant(resource string) url.Values {
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {"read write"}}
	if resource != "" {
		form.Set("resource", resource)
	}
	return form
}

// Config is the broker's configuration for this IdP: clients basic, odd and
// post, and the IdP as an issuer.
func (p *OIDCProvider) Config(t *testing.T) string {
	t.Helper()
	var clients strings.Builder
	for name, client := range map[string]struct{ id, auth string }{
		"basic": {"basic", "client_secret_basic"},
		"odd":   {"odd:%+/=& id", "client_secret_basic"},
		"post":  {"post", "client_secret_post"},
	} {
		fmt.Fprintf(&clients, "  %s:\n    issuer: %s\n    client_id: %q\n    secret: file:%s\n    auth: %s\n    resources: [%s]\n    scopes: [read, write]\n",
			name, p.Issuer, client.id, WriteFile(t, "secret", p.Clients[client.id].Secret), client.auth, RS256)
	}
	return fmt.Sprintf("clients:\n%sissuers:\n  - issuer: %s\n    audiences: [%s]\n    algorithms: [RS256, ES256, EdDSA]\n",
		&clients, p.Issuer, strings.Join([]string{RS256, ES256, EdDSA, Array, Short}, ", "))
}

// WriteFile writes a file into a directory of its own and returns its path.
func WriteFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	testkit.WriteFile(t, path, content)
	return path
}

// YAML is a client of the configuration.
func (p *OIDCProvider) YAML(name, id, auth string, keys ...string) string {
	return fmt.Sprintf("  %s:\n    issuer: %s\n    client_id: %q\n    auth: %s\n    resources: [%s]\n    scopes: [read, write]\n    %s\n",
		name, p.Issuer, id, auth, RS256, strings.Join(keys, "\n    "))
}
