package fleet

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// Each query of the dashboards returns data from a Prometheus that scrapes a fleet under
// load. Grafana itself does not run here.
func TestDashboards_queriesReturnData(t *testing.T) {
	t.Parallel()
	harness.Need(t, "prometheus")
	fleet := startObserved(t)
	prometheus := startPrometheus(t, fleet)
	queries := 0
	for _, file := range []string{"fleet.json", "client.json"} {
		for _, expr := range queriesIn(t, filepath.Join("..", "..", "..", "deploy", "grafana", file)) {
			queries++
			testkit.Eventually(t, file+": "+expr, func() bool { return returnsData(t, prometheus, expr) })
		}
	}
	t.Logf("%d queries return data", queries)
}

// startObserved starts two replicas that use every feature that has metrics, and callers
// of all their APIs.
func startObserved(t *testing.T) []*harness.Broker {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tls")
	if res := harness.Run(t, "dev", "--certificates", dir); res.Code != 0 {
		t.Fatalf("dev --certificates: %v", res)
	}
	idp := harness.SimpleIdP(t, time.Hour)
	redis := redistest.Start(t, redisOptions())
	others := fmt.Sprintf("  mutual: {token_url: \"https://127.0.0.1:1/token\", client_id: abc, auth: tls_client_auth, tls: {ca: %[1]s/ca.crt, cert: %[1]s/demo.crt, key: %[1]s/demo.key}}\n", dir) +
		"  printed: {token_url: \"https://127.0.0.1:1/token\", client_id: abc, secret: {exec: {command: [/bin/echo, secret], every: 10s}}}\n" +
		"  made: {token_url: \"https://127.0.0.1:1/token\", client_id: abc, auth: private_key_jwt, key: {}}\n"
	config := `
callers: [{name: demo, spiffe_id: "spiffe://example.com/demo", roles: [all]}]
roles: {all: {get: [{client: orders, audiences: ["*"]}], verify: [{issuer: "*", audiences: ["*"]}]}}
audit: {file: /dev/null}
tracing: {endpoint: "http://127.0.0.1:1"} # the collector is away
` + redisConfig(t, "", redis.Addr()) + harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}) + others +
		fmt.Sprintf("issuers: [{issuer: %q, audiences: [%q], introspection: {client: orders}}]\n", idp.Issuer(), idp.Client.Audiences[0])
	var fleet []*harness.Broker
	for range 2 {
		b := &harness.Broker{Grpc: harness.FreeAddress(t), Ops: harness.FreeAddress(t)}
		web := harness.FreeAddress(t)
		b.File = harness.WriteFile(t, "broker.yaml", fmt.Sprintf(
			"listen: {grpc: %q, http: %q, ops: %q, public_keys: {address: %q, url: \"https://127.0.0.1:1\"}, tls: {cert: %[5]s/broker.crt, key: %[5]s/broker.key, client_ca: %[5]s/ca.crt}}\n",
			b.Grpc, web, b.Ops, harness.FreeAddress(t), dir)+config)
		b.Launch(t, "broker")
		fleet = append(fleet, b)
		use := identity(t, dir)
		b.Await(t)
		c, err := client.New(b.Grpc, client.WithTLS(use))
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		t.Cleanup(func() {
			<-ended
			_ = c.Close()
		})
		go func() {
			defer close(ended)
			call(t, c, &http.Client{Transport: &http.Transport{TLSClientConfig: use}}, "https://"+web+"/verify", idp.Client.Audiences)
		}()
	}
	return fleet
}

// identity is the TLS configuration of the caller in a directory of certificates.
func identity(t *testing.T, dir string) *tls.Config {
	t.Helper()
	own, err := tls.LoadX509KeyPair(filepath.Join(dir, "demo.crt"), filepath.Join(dir, "demo.key"))
	if err != nil {
		t.Fatal(err)
	}
	authority, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	return &tls.Config{Certificates: []tls.Certificate{own}, RootCAs: pool, MinVersion: tls.VersionTLS13}
}

// call requests and verifies tokens until the test ends.
func call(t *testing.T, c *client.Client, web *http.Client, verify string, audiences []string) {
	for i := 0; wait(t.Context(), 200*time.Millisecond); i++ {
		token, err := c.Token(t.Context(), "orders")
		if err != nil {
			continue
		}
		_, _ = c.Token(t.Context(), "orders", client.WithAudience(audiences[1+i%(len(audiences)-1)]))
		_, _ = c.Verify(t.Context(), token.AccessToken())
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, verify, nil)
		if err != nil {
			t.Error(err)
			return
		}
		request.Header.Set("Authorization", token.Authorization())
		if response, err := web.Do(request); err == nil {
			_ = response.Body.Close()
		}
	}
}

// startPrometheus starts a Prometheus that scrapes a fleet every second, and returns its
// address.
func startPrometheus(t *testing.T, fleet []*harness.Broker) string {
	t.Helper()
	var targets []string
	for _, b := range fleet {
		targets = append(targets, fmt.Sprintf("%q", b.Ops))
	}
	config := harness.WriteFile(t, "prometheus.yaml", fmt.Sprintf(
		"global: {scrape_interval: 1s}\nscrape_configs: [{job_name: tokenbroker, static_configs: [{targets: [%s]}]}]\n", strings.Join(targets, ", ")))
	address := harness.FreeAddress(t)
	dir := t.TempDir()
	process := harness.Start(t, dir, nil, "prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	process.Ready(t, func() bool {
		return harness.Answers(t, &http.Client{Timeout: harness.Patience}, "http://"+address+"/-/ready")
	})
	return address
}

// queriesIn returns the queries of a dashboard, as Grafana sends them while all instances
// and clients are chosen, and a query for the values of each variable.
func queriesIn(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
		Templating struct {
			List []struct {
				Query string `json:"query"`
			} `json:"list"`
		} `json:"templating"`
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			all = append(all, strings.NewReplacer("$__rate_interval", "1m", "$instance", ".*", "$client", ".*").Replace(target.Expr))
		}
	}
	for _, variable := range dashboard.Templating.List {
		if values := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`).FindStringSubmatch(variable.Query); values != nil {
			all = append(all, fmt.Sprintf("%s{%s!=\"\"}", values[1], values[2]))
		}
	}
	if len(all) < 5 {
		t.Fatalf("%s has only %d queries", path, len(all))
	}
	return all
}

// returnsData reports whether a query returns at least one number.
func returnsData(t *testing.T, prometheus, expr string) bool {
	t.Helper()
	response, err := harness.Fetch(t, &http.Client{Timeout: harness.Patience}, http.MethodGet, "http://"+prometheus+"/api/v1/query?query="+url.QueryEscape(expr), nil)
	if err != nil {
		return false
	}
	defer func() { _ = response.Body.Close() }()
	var result struct {
		Error string `json:"error"`
		Data  struct {
			Result []struct {
				Value [2]any `json:"value"`
			} `json:"result"`
		} `json:"data"`
	}
	if err := json.NewDecoder(response.Body).Decode(&result); err != nil || result.Error != "" {
		t.Fatalf("%s: %v %s", expr, err, result.Error)
	}
	for _, sample := range result.Data.Result {
		if sample.Value[1] != "NaN" {
			return true
		}
	}
	return false
}
