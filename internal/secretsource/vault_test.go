package secretsource_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/secretsource"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// vault imitates the documented HTTP API of Vault and OpenBao: login, renewal and the KV
// engine of version 2. Its tokens last ttl and at most maxTTL after the login.
type vault struct {
	t  *testing.T
	mu sync.Mutex

	status   int // answers every request; 0: it does not
	ttl      time.Duration
	maxTTL   time.Duration
	tokens   map[string]time.Time // the end of each
	born     map[string]time.Time
	versions []string // values, "" for a deleted version
	logins   int
	renewals int
	reads    int
	body     string // answers the read; empty: it does not
}

func newVault(t *testing.T) *vault {
	return &vault{t: t, ttl: time.Hour, maxTTL: 3 * time.Hour, tokens: map[string]time.Time{}, born: map[string]time.Time{}, versions: []string{"one"}}
}

func (v *vault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fail := func(status int) {
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"errors":["%s"]}`, canary)
	}
	if v.status != 0 {
		fail(v.status)
		return
	}
	if r.Header.Get("X-Vault-Request") != "true" || r.Header.Get("X-Vault-Namespace") != "team" {
		v.t.Errorf("headers: %v", r.Header)
	}
	token := r.Header.Get("X-Vault-Token")
	grant := func(token string) {
		v.tokens[token] = time.Now().Add(v.ttl)
		if last := v.born[token].Add(v.maxTTL); v.tokens[token].After(last) {
			v.tokens[token] = last
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"auth": map[string]any{
			"client_token": token, "lease_duration": int(time.Until(v.tokens[token]).Seconds()), "renewable": true,
		}})
	}
	switch {
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/login"):
		var body map[string]string
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			v.t.Error(err)
		}
		switch r.URL.Path + fmt.Sprint(body) {
		case "/v1/auth/kubernetes/loginmap[jwt:sa-jwt role:broker]", "/v1/auth/ci/jwt/loginmap[jwt:ci-jwt role:broker]", "/v1/auth/approle/loginmap[role_id:the-role secret_id:the-secret]":
		default:
			fail(http.StatusBadRequest)
			return
		}
		v.logins++
		token := fmt.Sprintf("token-%d-%s", v.logins, canary)
		v.born[token] = time.Now()
		grant(token)
	case !time.Now().Before(v.tokens[token]):
		fail(http.StatusForbidden)
	case r.Method == http.MethodPost && r.URL.Path == "/v1/auth/token/renew-self":
		v.renewals++
		grant(token)
	case r.Method == http.MethodGet && r.URL.Path == "/v1/kv/team/data/apps/orders api":
		v.reads++
		if v.body != "" {
			_, _ = w.Write([]byte(v.body))
			return
		}
		n := len(v.versions)
		value := v.versions[n-1]
		meta := map[string]any{"version": n, "deletion_time": "", "destroyed": false}
		data := map[string]any{"client_secret": value, "number": 5, "empty": "", "huge": strings.Repeat("x", 16385)}
		if value == "" {
			meta["deletion_time"] = "2026-11-30T00:00:00Z"
			data = nil
			w.WriteHeader(http.StatusNotFound)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"data": data, "metadata": meta}})
	default:
		fail(http.StatusNotFound)
	}
}

// through is an HTTP client that reaches the handler without a network.
func (v *vault) through() *http.Client {
	return &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		if err := r.Context().Err(); err != nil {
			return nil, err
		}
		recorder := httptest.NewRecorder()
		v.ServeHTTP(recorder, r)
		return recorder.Result(), nil
	})}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (v *vault) set(change func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change()
}

func fileRef(t *testing.T, content string) secret.Ref {
	t.Helper()
	path := filepath.Join(t.TempDir(), "credential")
	testkit.WriteFile(t, path, content+"\n")
	ref, err := secret.ParseRef("file:" + path)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// config logs in by Kubernetes.
func (v *vault) config(t *testing.T) secretsource.VaultConfig {
	return secretsource.VaultConfig{
		Address: "https://vault.example.com/", Namespace: "team", Mount: "kv/team", Path: "apps/orders api", Field: "client_secret",
		Auth: secretsource.VaultKubernetes, AuthMount: "kubernetes", Role: "broker", Credential: fileRef(t, "sa-jwt"), Every: 5 * time.Minute, HTTP: v.through(),
	}
}

// expect reads and compares.
func expect(t *testing.T, r secretsource.Reader, value, version string) {
	t.Helper()
	got, err := r.Read(t.Context())
	if err != nil || got.Secret.Reveal() != value || got.Version != version {
		t.Fatalf("%q, %q, %v; want %q, %q", got.Secret.Reveal(), got.Version, err, value, version)
	}
}

func expectError(t *testing.T, r secretsource.Reader, part string) {
	t.Helper()
	got, err := r.Read(t.Context())
	if err == nil || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), canary) || !got.Secret.IsZero() {
		t.Fatalf("error %v, want %q", err, part)
	}
}

func TestVaultLogins(t *testing.T) {
	for name, change := range map[string]func(c *secretsource.VaultConfig){
		"kubernetes": func(*secretsource.VaultConfig) {},
		"jwt": func(c *secretsource.VaultConfig) {
			c.Auth, c.AuthMount, c.Credential = secretsource.VaultJWT, "ci/jwt", fileRef(t, "ci-jwt")
		},
		"approle": func(c *secretsource.VaultConfig) {
			c.Auth, c.AuthMount, c.RoleID, c.Credential = secretsource.VaultAppRole, "approle", fileRef(t, "the-role"), fileRef(t, "the-secret")
		},
		"token_file": func(c *secretsource.VaultConfig) {
			c.Auth, c.Credential = secretsource.VaultTokenFile, fileRef(t, "agents")
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVault(t)
			v.tokens["agents"] = time.Now().Add(time.Hour)
			c := v.config(t)
			change(&c)
			r := secretsource.NewVault(c)
			expect(t, r, "one", "version 1")
			expect(t, r, "one", "version 1")
			if want := 1; name != "token_file" && v.logins != want {
				t.Errorf("%d logins", v.logins)
			}
		})
	}
}

// The token is renewed before its end, and replaced when it cannot be renewed any longer.
func TestVaultRenewsItsToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault(t)
		r := secretsource.NewVault(v.config(t))
		for range 12 * 9 {
			expect(t, r, "one", "version 1")
			time.Sleep(5 * time.Minute)
		}
		if v.logins < 3 || v.logins > 5 || v.renewals < 6 || v.renewals > 20 {
			t.Errorf("%d logins and %d renewals in 9 hours with tokens of 1 to 3 hours", v.logins, v.renewals)
		}
	})
}

// A token that ends before the next read is replaced at each read.
func TestVaultWithShortTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault(t)
		v.ttl = time.Minute
		r := secretsource.NewVault(v.config(t))
		for range 3 {
			expect(t, r, "one", "version 1")
			time.Sleep(5 * time.Minute)
		}
	})
}

// A refused token is replaced once; the error says so if that does not help.
func TestVaultRefusesTheToken(t *testing.T) {
	v := newVault(t)
	r := secretsource.NewVault(v.config(t))
	expect(t, r, "one", "version 1")
	v.set(func() { clear(v.tokens) }) // revoked
	expect(t, r, "one", "version 1")
	if v.logins != 2 {
		t.Errorf("%d logins", v.logins)
	}
	v.set(func() { clear(v.tokens); v.ttl = 0 })
	expectError(t, r, "reading the secret failed: permission denied (HTTP 403): check the role")
	if v.logins != 3 {
		t.Errorf("%d logins", v.logins)
	}
	v.set(func() { v.ttl = time.Hour })
	expect(t, r, "one", "version 1")
}

func TestVaultReportsFailures(t *testing.T) {
	for name, test := range map[string]struct {
		change func(v *vault, c *secretsource.VaultConfig)
		want   string
	}{
		"sealed":          {func(v *vault, _ *secretsource.VaultConfig) { v.status = 503 }, "the login failed: Vault is sealed or in maintenance (HTTP 503)"},
		"rate limit":      {func(v *vault, _ *secretsource.VaultConfig) { v.status = 429 }, "limits the rate of requests"},
		"server error":    {func(v *vault, _ *secretsource.VaultConfig) { v.status = 500 }, "the login failed: HTTP 500"},
		"redirect":        {func(v *vault, _ *secretsource.VaultConfig) { v.status = 307 }, "redirects to another server (HTTP 307)"},
		"wrong role":      {func(_ *vault, c *secretsource.VaultConfig) { c.Role = "x" }, "Vault refuses the login (HTTP 400)"},
		"no credential":   {func(_ *vault, c *secretsource.VaultConfig) { c.Credential = secret.Ref{} }, "the credential for the login cannot be read"},
		"wrong mount":     {func(_ *vault, c *secretsource.VaultConfig) { c.Mount = "x" }, "there is no secret x/apps/orders api"},
		"wrong field":     {func(_ *vault, c *secretsource.VaultConfig) { c.Field = "x" }, `has no field "x"`},
		"number":          {func(_ *vault, c *secretsource.VaultConfig) { c.Field = "number" }, "is not a text, or is empty"},
		"empty":           {func(_ *vault, c *secretsource.VaultConfig) { c.Field = "empty" }, "is not a text, or is empty"},
		"huge field":      {func(_ *vault, c *secretsource.VaultConfig) { c.Field = "huge" }, "has more than 16384 bytes"},
		"huge response":   {func(v *vault, _ *secretsource.VaultConfig) { v.body = strings.Repeat(canary, 1<<17) }, "larger than 1048576 bytes"},
		"no JSON":         {func(v *vault, _ *secretsource.VaultConfig) { v.body = canary }, "is not a secret of a KV engine of version 2"},
		"KV version 1":    {func(v *vault, _ *secretsource.VaultConfig) { v.body = `{"data":{"client_secret":"` + canary + `"}}` }, "is not a secret of a KV engine of version 2"},
		"deleted version": {func(v *vault, _ *secretsource.VaultConfig) { v.versions = []string{"one", ""} }, "version 2 of kv/team/apps/orders api is deleted"},
		"no server": {func(_ *vault, c *secretsource.VaultConfig) {
			c.HTTP = &http.Client{Transport: roundTripper(func(*http.Request) (*http.Response, error) { return nil, context.DeadlineExceeded })}
		}, "https://vault.example.com/: the login failed: "},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVault(t)
			c := v.config(t)
			test.change(v, &c)
			expectError(t, secretsource.NewVault(c), test.want)
		})
	}
}

// A secret engine with delete_version_after names the time of the deletion in advance.
func TestVaultVersionThatWillBeDeleted(t *testing.T) {
	v := newVault(t)
	v.body = `{"data":{"data":{"client_secret":"one"},"metadata":{"version":1,"deletion_time":"2126-11-30T00:00:00Z","destroyed":false}}}`
	expect(t, secretsource.NewVault(v.config(t)), "one", "version 1")
}

// After an outage the next read continues with the newest version, without a new login.
func TestVaultAfterAnOutage(t *testing.T) {
	v := newVault(t)
	r := secretsource.NewVault(v.config(t))
	expect(t, r, "one", "version 1")
	v.set(func() { v.status, v.versions = 503, []string{"one", "two"} })
	expectError(t, r, "reading the secret failed: Vault is sealed")
	v.set(func() { v.status = 0 })
	expect(t, r, "two", "version 2")
	if v.logins != 1 {
		t.Errorf("%d logins", v.logins)
	}
}
