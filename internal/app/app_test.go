package app_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	brokerclient "github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// everybody is a caller who may everything.
const everybody = `callers: [{name: everybody, roles: [all], limits: {per_second: 0, concurrent: 0, watches: 0}}]
roles: {all: {get: [{client: "*", audiences: ["*"], resources: ["*"], scopes: ["*"]}], verify: [{issuer: "*", audiences: ["*"]}], admin: [{actions: ["*"]}]}}
`

const idpIssuer = "https://idp.example.com"

func devIDP(t testing.TB) *devidp.Server {
	t.Helper()
	idp, err := devidp.New(devidp.Config{Issuer: idpIssuer, Algorithm: "EdDSA", Clients: []devidp.Client{
		{ID: "abc", Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read"}, Audiences: []string{"https://orders.example.com"}},
		{ID: "opaque", Secrets: []redact.String{redact.New("another")}, Scopes: []string{"read"}, Audiences: []string{"https://orders.example.com"}, Opaque: true},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return idp
}

// sample is a configuration with n clients, in memory.
func sample(t testing.TB, n int) *config.Config {
	t.Helper()
	return parsed(t, sampleText(t, n))
}

func parsed(t testing.TB, text string) *config.Config {
	t.Helper()
	config, err := config.Parse("sample.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func sampleText(t testing.TB, n int) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	testkit.WriteFile(t, file, "right\n")
	var text strings.Builder
	text.WriteString("listen: {grpc: {address: \"127.0.0.1:0\", caller: everybody}, ops: \"127.0.0.1:0\"}\n" + everybody + "clients:\n")
	for i := range n {
		fmt.Fprintf(&text, "  client-%d: {issuer: %q, client_id: abc, secret: %q, audience: \"https://orders.example.com\"}\n", i, idpIssuer, "file:"+file)
	}
	fmt.Fprintf(&text, "issuers: [{issuer: %q, audiences: [\"https://orders.example.com\"], introspection: {client: client-0, cache: 1s}}]\n", idpIssuer)
	return text.String()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// run runs a broker until the test ends, and connects to it: in plaintext, unless
// told otherwise.
func run(t *testing.T, config *config.Config, idp *devidp.Server, connect ...brokerclient.Option) (*app.App, *brokerclient.Client) {
	t.Helper()
	broker, err := app.New(config, app.Options{Logger: quiet(), Transport: idp.RoundTripper()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- broker.Run(ctx) }()
	if len(connect) == 0 {
		connect = []brokerclient.Option{brokerclient.WithPlaintext()}
	}
	c, err := brokerclient.New(broker.GRPCAddr(), connect...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	if addr := broker.OpsAddr(); addr != "" {
		testkit.Eventually(t, "the broker is ready", func() bool {
			status, _ := read(t, "http://"+addr+"/readyz")
			return status == http.StatusOK
		})
	}
	return broker, c
}

func read(t *testing.T, url string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

func TestBrokerServesAPIsAndMetrics(t *testing.T) {
	idp := devIDP(t)
	broker, c := run(t, sample(t, 1), idp)
	token, err := c.Token(t.Context(), "client-0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Verify(t.Context(), token.AccessToken()); err != nil {
		t.Errorf("Verify: %v", err)
	}
	idp.SetDown(true) // ready does not depend on an IdP
	for _, path := range []string{"/livez", "/readyz"} {
		if status, _ := read(t, "http://"+broker.OpsAddr()+path); status != http.StatusOK {
			t.Errorf("%s: %d", path, status)
		}
	}
	if status, _ := read(t, "http://"+broker.OpsAddr()+"/debug/pprof/"); status != http.StatusNotFound {
		t.Errorf("profiles are served though nobody asked for them: %d", status)
	}
}

// Every metric that is served stands in docs/metrics.md, and the other way
// round. Every counter has a series before the first event, so that increase() sees it.
func TestMetricsAreDocumented(t *testing.T) {
	idp := devIDP(t)
	ring := filepath.Join(t.TempDir(), "ring.json")
	if err := os.WriteFile(ring, sealed.GenerateRing().Reveal(), 0o600); err != nil {
		t.Fatal(err)
	}
	redis := redistest.Start(t, redistest.Options{})
	files := redistest.NewCertificates(t)
	mutual := fmt.Sprintf("  mutual: {issuer: %q, client_id: abc, auth: tls_client_auth, tls: {ca: %q, cert: %q, key: %q}}\n"+
		"  made: {issuer: %q, client_id: def, auth: private_key_jwt, key: {url: \"https://keys.example.com/jwks.json\"}}\n"+
		"  printed: {issuer: %[1]q, client_id: abc, secret: {exec: {command: [/bin/echo, value]}}}\nissuers:", idpIssuer, files.ClientCert, files.ClientCert, files.ClientKey, idpIssuer)
	pki := newPKI(t)
	config := strings.NewReplacer("listen: {", "listen: {http: \"127.0.0.1:0\", "+pki.config()+", ", "issuers:", mutual).Replace(sampleText(t, 1)) +
		fmt.Sprintf("store: {redis: {addresses: [%q]}, sealing_keys: %q}\naudit: {file: /dev/null}\ntracing: {endpoint: \"http://127.0.0.1:1\"}\n", redis.Addr(), "file:"+ring)
	broker, c := run(t, parsed(t, config), idp, brokerclient.WithTLS(pki.client(nil)))
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	_, served := read(t, "http://"+broker.OpsAddr()+"/metrics")
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| counter \\|").FindAllStringSubmatch(string(page), -1) {
		if !strings.Contains(served, "\n"+row[1]+"{") && !strings.Contains(served, "\n"+row[1]+" ") {
			t.Errorf("%s has no series before the first event", row[1])
		}
	}
	token, err := c.Token(t.Context(), "client-0")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Verify(t.Context(), token.AccessToken()) // whatever it says is counted
	testkit.Eventually(t, "the source is read in the background", func() bool {
		_, served = read(t, "http://"+broker.OpsAddr()+"/metrics")
		return strings.Contains(served, "\ntokenbroker_secret_source_read_timestamp_seconds{")
	})
	names := map[string]bool{}
	for _, line := range regexp.MustCompile(`(?m)^# TYPE ((?:tokenbroker|grpc)_\w+) `).FindAllStringSubmatch(served, -1) {
		names[line[1]] = true
		if !strings.Contains(string(page), "| `"+line[1]+"` |") {
			t.Errorf("%s is served and not documented", line[1])
		}
	}
	if len(names) < 10 {
		t.Errorf("only %d metrics are served", len(names))
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+_\\w+)` \\|").FindAllStringSubmatch(string(page), -1) {
		if !names[row[1]] {
			t.Errorf("%s is documented and not served", row[1])
		}
	}
}

func TestMetrics_clientsAndCallersOfAReloadStartAtZero(t *testing.T) {
	idp := devIDP(t)
	broker, _ := run(t, sample(t, 1), idp)
	series := func(client, caller string) []string {
		return []string{
			fmt.Sprintf("tokenbroker_idp_fetches_total{client=%q,result=%q} 0", client, "credential_refused"),
			fmt.Sprintf("tokenbroker_idp_fetches_total{client=%q,result=%q} 0", client, "request_refused"),
			fmt.Sprintf("tokenbroker_limited_calls_total{caller=%q,limit=%q} 0", caller, "rate"),
			fmt.Sprintf("tokenbroker_limited_calls_total{caller=%q,limit=%q} 0", caller, "watches"),
		}
	}
	expect := func(want bool, all []string) {
		t.Helper()
		_, served := read(t, "http://"+broker.OpsAddr()+"/metrics")
		for _, one := range all {
			if strings.Contains(served, "\n"+one+"\n") != want {
				t.Errorf("%s is served: %v", one, !want)
			}
		}
	}
	expect(true, series("client-0", "everybody"))
	text := strings.NewReplacer("client-0", "renamed", "everybody", "newcomer").Replace(sampleText(t, 1))
	if err := broker.Reload(parsed(t, text)); err != nil {
		t.Fatal(err)
	}
	expect(true, series("renamed", "newcomer"))
	expect(false, series("client-0", "everybody"))
}

func TestStart_namesEachUnreadableSecret(t *testing.T) {
	config, err := config.Parse("x.yaml", []byte(`
clients:
  one: {token_url: "https://idp.example.com/token", client_id: abc, secret: "file:/nowhere/one"}
  two: {token_url: "https://idp.example.com/token", client_id: abc, secret: "env:TOKENBROKER_TEST_UNSET"}
`))
	if err != nil {
		t.Fatal(err)
	}
	_, err = app.New(config, app.Options{Logger: quiet()})
	if err == nil || !strings.Contains(err.Error(), "clients.one: secret: ") || !strings.Contains(err.Error(), "clients.two: secret: ") {
		t.Errorf("error = %v", err)
	}
}

func TestStart_addressInUse(t *testing.T) {
	var network net.ListenConfig
	taken, err := network.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	config := sample(t, 1)
	config.Listen.GRPC.Address = taken.Addr().String()
	_, err = app.New(config, app.Options{Logger: quiet(), Transport: devIDP(t).RoundTripper()})
	if err == nil || !strings.Contains(err.Error(), "listen.grpc") {
		t.Errorf("error = %v", err)
	}
}

func TestLiveCheck_reportsEachServer(t *testing.T) {
	idp := devIDP(t)
	config := parsed(t, strings.Replace(sampleText(t, 1), `get: [{client: "*"`, `get: [{client: client-0`, 1))
	check := func() (passed, failed map[string]string) {
		t.Helper()
		return live(t, config, idp.RoundTripper(), true)
	}
	endpoint, minted, keys, introspection := "clients.client-0: token endpoint", "clients.client-0: token", "issuers "+idpIssuer+": keys", "issuers "+idpIssuer+": introspection"
	expect := func(what string, bad ...string) {
		t.Helper()
		passed, failed := check()
		for _, subject := range []string{endpoint, minted, keys, introspection} {
			if _, ok := passed[subject]; ok == slices.Contains(bad, subject) || ok == (failed[subject] != "") {
				t.Errorf("%s: %s: passed %q, failed %q", what, subject, passed, failed)
			}
		}
	}
	expect("all well")
	if passed, _ := check(); passed[endpoint] != idpIssuer+"/token" {
		t.Errorf("passed %q", passed)
	}
	idp.SetIntrospection(func(w http.ResponseWriter, _ *http.Request) bool {
		_, _ = io.WriteString(w, `{"active":true}`)
		return true
	})
	expect("every token is active", introspection)
	idp.SetIntrospection(nil)
	idp.SetSecrets("abc", redact.New("another"))
	expect("a refused secret", minted, introspection)
	idp.SetDown(true)
	expect("the IdP down", endpoint, minted, keys, introspection)
}

// A client that no role names serves introspection only: the IdP may refuse it a
// token, and count that against it.
func TestLiveCheck_introspectionOnlyClient(t *testing.T) {
	idp := devIDP(t)
	passed, failed := live(t, sample(t, 1), idp.RoundTripper(), true)
	if !strings.HasPrefix(passed["clients.client-0: token"], "not tried") || idp.Requests(devidp.TokenPath) != 0 {
		t.Errorf("%q, %q, %d token requests", passed, failed, idp.Requests(devidp.TokenPath))
	}
}

func TestTenThousandClientsFitInMemory(t *testing.T) {
	const clients = 10_000
	idp := devIDP(t)
	begun := time.Now()
	broker, err := app.New(sample(t, clients), app.Options{Logger: quiet(), Transport: idp.RoundTripper()})
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	t.Logf("assembled in %v", time.Since(begun).Round(time.Millisecond))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	if err := broker.WarmUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	held := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("warm tokens for %d clients take %d KiB of heap", clients, held>>10)
	if held > 100<<20 {
		t.Errorf("warm tokens take %d MiB", held>>20)
	}
}

func TestRunEndsWhenAListenerFails(t *testing.T) {
	config := sample(t, 1)
	broker, err := app.New(config, app.Options{Logger: quiet(), Transport: devIDP(t).RoundTripper()})
	if err != nil {
		t.Fatal(err)
	}
	broker.CloseOps()
	if err := broker.Run(t.Context()); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v", err)
	}
}
