package app_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// A command that prints the secret gives the client its tokens, in memory and in a file. A
// failure of it changes nothing.
func TestExecSuppliesASecret(t *testing.T) {
	for _, kind := range []string{"memory", "bolt"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			kept := filepath.Join(dir, "kept")
			testkit.WriteFile(t, kept, "right\n")
			text := strings.Replace(sampleText(t, 1), "issuers:", fmt.Sprintf(
				"  printed: {issuer: %q, client_id: abc, audience: \"https://orders.example.com\", secret: {exec: {command: [/bin/sh, -c, 'cat \"$1\" || exit 7', sh, %s], every: 10s, environment: [PATH]}}}\nissuers:", idpIssuer, kept), 1)
			if kind == "bolt" {
				ring := filepath.Join(dir, "ring")
				if err := sealed.WriteRing(ring, sealed.GenerateRing()); err != nil {
					t.Fatal(err)
				}
				text += fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(dir, "bolt"), "file:"+ring)
			}
			idp, log := devIDP(t), new(testkit.Log)
			served, err := app.New(parsed(t, text), app.Options{Logger: slog.New(slog.NewJSONHandler(log, nil)), Transport: idp.RoundTripper()})
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- served.Run(ctx) }()
			defer func() { stop(); <-ended }()
			awaitText(t, func() string {
				if _, err := served.Broker().Get(t.Context(), policy.Self(), broker.Ask{Client: "printed"}); err != nil {
					return err.Error()
				}
				return "token"
			}, "token")

			idp.SetSecrets("abc", redact.New("right"), redact.New("newer"))
			testkit.WriteFile(t, kept, "newer\n")
			awaitText(t, func() string {
				status, err := served.Broker().Client(t.Context(), policy.Self(), "printed")
				if err != nil {
					t.Fatal(err)
				}
				return fmt.Sprint(len(status.Versions), status.Versions[0].State, " by ", status.Versions[0].CreatedBy)
			}, "2 current by exec:/bin/sh")

			if err := os.Remove(kept); err != nil {
				t.Fatal(err)
			}
			awaitText(t, func() string { _, page := read(t, "http://"+served.OpsAddr()+"/metrics"); return page },
				`tokenbroker_findings{id="secret-source-failing",severity="warning"} 1`)
			if _, err := served.Broker().Get(t.Context(), policy.Self(), broker.Ask{Client: "printed"}); err != nil {
				t.Error(err)
			}
			testkit.WriteFile(t, kept, "newer\n")
			awaitText(t, log.String, "a secret can be read from its source again")
			if got := log.String(); !strings.Contains(got, "/bin/sh: it ended with exit code 7 (it wrote ") || strings.Count(got, `"msg":"a secret cannot be read from its source`) != 1 {
				t.Errorf("the log does not have the failure once:\n%s", got)
			}
		})
	}
}

// awaitText waits until a text contains a part.
func awaitText(t *testing.T, text func() string, part string) {
	t.Helper()
	testkit.Succeeds(t, part, func() error {
		if got := text(); !strings.Contains(got, part) {
			return errors.New(got)
		}
		return nil
	})
}

// vaultServer imitates the documented HTTP API of Vault and OpenBao as far as this test needs
// it. Its tokens work for a few uses only, as if they expired early.
type vaultServer struct {
	mu      sync.Mutex
	value   string
	version int
	sealed  bool
	logins  int
	uses    int // left for the token of the last login
}

func (v *vaultServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.sealed:
		w.WriteHeader(http.StatusServiceUnavailable)
	case r.URL.Path == "/v1/auth/token_of_test/login":
		v.logins++
		v.uses = 2
		fmt.Fprintf(w, `{"auth":{"client_token":"vault-token-%d","lease_duration":3600,"renewable":true}}`, v.logins)
	case r.Header.Get("X-Vault-Token") != fmt.Sprintf("vault-token-%d", v.logins) || v.uses == 0:
		w.WriteHeader(http.StatusForbidden)
	default:
		v.uses--
		fmt.Fprintf(w, `{"data":{"data":{"password":%q},"metadata":{"version":%d,"deletion_time":"","destroyed":false}}}`, v.value, v.version)
	}
}

func (v *vaultServer) has(value string, version int, sealed bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.value, v.version, v.sealed = value, version, sealed
}

// While callers get tokens, the secret in Vault gets new versions, tokens of Vault end, and
// Vault is sealed for a while: no call fails.
func TestVaultChangesUnderLoad(t *testing.T) {
	vault := &vaultServer{value: "right", version: 1}
	server := httptest.NewServer(vault)
	defer server.Close()
	jwt := filepath.Join(t.TempDir(), "jwt")
	testkit.WriteFile(t, jwt, "a-jwt\n")
	text := strings.Replace(sampleText(t, 1), "issuers:", fmt.Sprintf(
		"  kept: {issuer: %q, client_id: abc, audience: \"https://orders.example.com\", secret: {vault: {address: %q, path: orders, field: password, auth: jwt, auth_mount: token_of_test, role: broker, jwt_file: %q, every: 10s}}}\nissuers:",
		idpIssuer, server.URL, jwt), 1)
	idp, log := devIDP(t), new(testkit.Log)
	idp.SetSecrets("abc", redact.New("right"), redact.New("second"), redact.New("third"))
	idp.SetLifetime(10 * time.Second)
	// Only Vault is on the network.
	transport := roundTripperFunc(func(r *http.Request) (*http.Response, error) {
		if "http://"+r.URL.Host == server.URL {
			return http.DefaultTransport.RoundTrip(r)
		}
		return idp.RoundTripper().RoundTrip(r)
	})
	served, err := app.New(parsed(t, text), app.Options{Logger: slog.New(slog.NewJSONHandler(log, nil)), Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- served.Run(ctx) }()
	defer func() { stop(); <-ended }()
	ask := func() error {
		_, err := served.Broker().Get(t.Context(), policy.Self(), broker.Ask{Client: "kept"})
		return err
	}
	current := func() string {
		if err := ask(); err != nil {
			return err.Error()
		}
		status, err := served.Broker().Client(t.Context(), policy.Self(), "kept")
		if err != nil {
			return err.Error()
		}
		return status.Versions[0].State.String() + " by " + status.Versions[0].CreatedBy
	}
	awaitText(t, current, "current by vault:secret/orders#password, version 1")
	loaded, endLoad := context.WithCancel(context.Background())
	var load sync.WaitGroup
	load.Go(func() {
		for loaded.Err() == nil {
			if err := ask(); err != nil {
				t.Error(err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	vault.has("second", 2, false)
	awaitText(t, current, "current by vault:secret/orders#password, version 2")
	vault.has("third", 3, true)
	awaitText(t, log.String, "Vault is sealed or in maintenance (HTTP 503)")
	vault.has("third", 3, false)
	awaitText(t, current, "current by vault:secret/orders#password, version 3")
	endLoad()
	load.Wait()
	for _, value := range []string{"second", "third", "vault-token", "a-jwt"} {
		if strings.Contains(log.String(), value) {
			t.Errorf("the log has %q", value)
		}
	}
}

type roundTripperFunc func(*http.Request) (*http.Response, error)

func (f roundTripperFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
