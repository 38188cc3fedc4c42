package jwks_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact/redacttest"
	"github.com/cezzis/tokenbroker/internal/verify/jwks"
)

const keysPath = "/openid/v1/jwks"

// apiServer publishes keys as the API server of Kubernetes does: over TLS with a
// certificate of the cluster's CA, and to clients with a token of the cluster whose
// service account has the ClusterRole.
type apiServer struct {
	*httptest.Server

	ca string // a file

	mu        sync.Mutex
	accepted  string // the token
	forbidden bool
	redirect  string // empty: none
	keys      []byte
	paths     []string
	tokens    []string
}

func startAPIServer(t *testing.T, authority *devca.Authority, accepted string, keys ...josetest.JSON) *apiServer {
	t.Helper()
	pair, err := authority.Issue(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	s := &apiServer{accepted: accepted, keys: josetest.Set(keys...)}
	if s.ca, err = authority.Write(t.TempDir(), "ca"); err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewUnstartedServer(s)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair.TLS()}, MinVersion: tls.VersionTLS12}
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail on purpose
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token := r.Header.Get("Authorization")
	s.paths, s.tokens = append(s.paths, r.URL.Path), append(s.tokens, token)
	status, message := http.StatusOK, ""
	switch {
	case s.redirect != "":
		w.Header().Set("Location", s.redirect)
		status, message = http.StatusTemporaryRedirect, "moved"
	case token != "Bearer "+s.accepted:
		status, message = http.StatusUnauthorized, "Unauthorized"
	case s.forbidden:
		status, message = http.StatusForbidden, `forbidden: User "system:serviceaccount:tokenbroker:broker" cannot get path`
	}
	if status != http.StatusOK {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write(josetest.Marshal(josetest.JSON{"kind": "Status", "message": message, "echo": token}))
		return
	}
	w.Header().Set("Content-Type", "application/jwk-set+json")
	w.Header().Set("Cache-Control", "public, max-age=3600")
	_, _ = w.Write(s.keys)
}

// change changes the server's behaviour.
func (s *apiServer) change(set func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set()
}

// requests returns the paths and the Authorization headers so far.
func (s *apiServer) requests() (paths, tokens []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.paths), slices.Clone(s.tokens)
}

// sourceFor returns the keys of the cluster behind the server. Its HTTP client trusts the
// authorities of a file.
func sourceFor(t *testing.T, s *apiServer, ca, tokenFile string) *jwks.Source {
	t.Helper()
	network, err := discovery.NewNetwork(nil).WithAuthorities(ca)
	if err != nil {
		t.Fatal(err)
	}
	cluster := jwks.Config{URL: s.URL + keysPath, TokenFile: tokenFile}
	cluster.HTTP = network.ClientFor(cluster.URL, false)
	t.Cleanup(cluster.HTTP.CloseIdleConnections)
	return newSource(t, cluster)
}

func newAuthority(t *testing.T, name string) *devca.Authority {
	t.Helper()
	authority, err := devca.New(name)
	if err != nil {
		t.Fatal(err)
	}
	return authority
}

func writeToken(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTokenForTheKeysIsReadForEachFetch(t *testing.T) {
	first, second := josetest.New(t, "RS256", "first"), josetest.New(t, "RS256", "second")
	server := startAPIServer(t, newAuthority(t, "cluster"), "token-1", first.JWK())
	file := writeToken(t, filepath.Join(t.TempDir(), "token"), "token-1\n")
	source := sourceFor(t, server, server.ca, file)
	refresh := func() error { return source.Refresh(t.Context()) }
	if err := refresh(); err != nil || find(t, source, first) != nil {
		t.Fatalf("the first fetch: %v", err)
	}

	server.change(func() { server.accepted = "token-2" })
	if err := refresh(); err == nil {
		t.Error("the server accepts an old token")
	}
	writeToken(t, file, "token-2")
	if err := refresh(); err != nil {
		t.Errorf("with the new token: %v", err)
	}

	server.change(func() { server.keys = josetest.Set(second.JWK()) })
	if err := refresh(); err != nil || find(t, source, second) != nil {
		t.Errorf("with the new key: %v", err)
	}
	if err := find(t, source, first); !errors.Is(err, jwks.ErrUnknownKey) {
		t.Errorf("the old key: %v", err)
	}
	if _, tokens := server.requests(); !slices.Equal(tokens, []string{"Bearer token-1", "Bearer token-1", "Bearer token-2", "Bearer token-2"}) {
		t.Errorf("the server received %q", tokens)
	}
}

func TestTokenForTheKeysIsNotCarriedElsewhere(t *testing.T) {
	authority, key := newAuthority(t, "cluster"), josetest.New(t, "RS256", "key")
	other := startAPIServer(t, authority, "token", key.JWK()) // trusted as well
	plain := httptest.NewServer(other)
	defer plain.Close()
	file := writeToken(t, filepath.Join(t.TempDir(), "token"), "token")
	for name, to := range map[string]string{
		"another host": other.URL + keysPath, "plain http": plain.URL + keysPath, "another path": "/elsewhere", "no host": "//",
	} {
		t.Run(name, func(t *testing.T) {
			server := startAPIServer(t, authority, "token", key.JWK())
			server.redirect = to
			err := sourceFor(t, server, server.ca, file).Refresh(t.Context())
			if err == nil || !strings.Contains(err.Error(), "HTTP 307") || !strings.Contains(err.Error(), "follows no redirect") {
				t.Errorf("%v", err)
			}
			if paths, tokens := server.requests(); !slices.Equal(paths, []string{keysPath}) || !slices.Equal(tokens, []string{"Bearer token"}) {
				t.Errorf("the server was asked for %q with %q", paths, tokens)
			}
		})
	}
	if paths, _ := other.requests(); len(paths) > 0 {
		t.Errorf("the other host was asked for %q", paths)
	}
}

// A token goes to a URL of the configuration only, and never unencrypted.
func TestTokenForTheKeysNeedsAURL(t *testing.T) {
	for name, cfg := range map[string]jwks.Config{
		"discovery":  {Discovery: discovery.New(discovery.Config{Issuer: "https://a.example"})},
		"plain http": {URL: "http://127.0.0.1/jwks", AllowHTTP: true},
		"a file":     {File: "jwks.json"},
	} {
		cfg.TokenFile = "token"
		if err := cfg.WithDefaults().Check(); err == nil || !strings.Contains(err.Error(), "https") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestErrorsOfFetchesWithAToken(t *testing.T) {
	canary := redacttest.Canary("token")
	good, dir := "token", t.TempDir()
	authority, key := newAuthority(t, "cluster"), josetest.New(t, "RS256", "key")
	const role = "ClusterRole system:service-account-issuer-discovery"
	for name, tt := range map[string]struct {
		file     string // content
		path     string // in place of a file with that content
		disturb  func(*apiServer)
		ca       *devca.Authority
		says     []string
		requests int
	}{
		"no such file":         {path: filepath.Join(dir, "absent"), says: []string{filepath.Join(dir, "absent") + " does not exist", "automountServiceAccountToken", "jwks_token_file"}},
		"a directory":          {path: dir, says: []string{dir + " cannot be read", "jwks_token_file"}},
		"an empty file":        {file: "\n", says: []string{" is empty", "jwks_token_file"}},
		"two lines":            {file: canary + "\n" + canary, says: []string{"contains no bearer token"}},
		"control characters":   {file: canary + "\x00", says: []string{"contains no bearer token"}},
		"text beyond ASCII":    {file: canary + "é", says: []string{"contains no bearer token"}},
		"a file that is large": {file: canary + strings.Repeat("a", 16<<10), says: []string{"is larger than 16384 bytes"}},
		"401":                  {file: canary, says: []string{keysPath + " answered HTTP 401", "does not accept the token", role}, requests: 1},
		"403":                  {file: good, disturb: func(s *apiServer) { s.forbidden = true }, says: []string{"HTTP 403", "bind the " + role}, requests: 1},
		"no token is sent":     {path: "-", says: []string{"HTTP 401", "configure a file with a bearer token", "jwks_token_file", "preset: kubernetes"}, requests: 1},
		"another CA":           {file: good, ca: newAuthority(t, "another"), says: []string{`"cluster"`, "not trusted", "tls.ca"}},
	} {
		t.Run(name, func(t *testing.T) {
			server := startAPIServer(t, authority, good, key.JWK())
			if tt.disturb != nil {
				server.change(func() { tt.disturb(server) })
			}
			ca, path := server.ca, tt.path
			if tt.ca != nil {
				ca = writeToken(t, filepath.Join(t.TempDir(), "ca.crt"), string(tt.ca.PEM()))
			}
			switch path {
			case "":
				path = writeToken(t, filepath.Join(t.TempDir(), "token"), tt.file)
			case "-":
				path = ""
			}
			source := sourceFor(t, server, ca, path)
			err := source.Refresh(t.Context())
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range append(tt.says, path) {
				if !strings.Contains(err.Error(), want) && (want != path || tt.ca == nil) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
			if strings.Contains(err.Error(), canary) {
				t.Errorf("the token is in: %v", err)
			}
			if paths, _ := server.requests(); len(paths) != tt.requests {
				t.Errorf("the server was asked for %q", paths)
			}
		})
	}
}
