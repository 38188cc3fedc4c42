package edge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// edge is a broker behind TLS, who issues the certificates of its callers, and
// where its files are.
type edge struct {
	*harness.Broker

	dir     string
	ca      *devca.Authority // of the broker and its callers
	renewed int
}

// startEdge starts a broker with a client "orders" and callers whose SPIFFE IDs are
// spiffe://example.com/ and their names. More is configuration.
func startEdge(t *testing.T, more string, callers ...string) *edge {
	t.Helper()
	idp := harness.SimpleIdP(t, time.Hour)
	e := &edge{Broker: &harness.Broker{Grpc: harness.FreeAddress(t), Ops: harness.FreeAddress(t)}, dir: t.TempDir(), ca: harness.Must(devca.New("ca"))}
	e.renew()
	e.trust(e.ca)
	text := fmt.Sprintf("listen: {grpc: %q, ops: %q, tls: {cert: %[3]s/tls.crt, key: %[3]s/tls.key, client_ca: %[3]s/ca.crt}}\n", e.Grpc, e.Ops, e.dir) +
		"roles: {all: {get: [{client: \"*\"}]}}\ncallers:\n"
	for _, name := range callers {
		text += fmt.Sprintf("  - {name: %s, spiffe_id: %q, roles: [all]}\n", name, "spiffe://example.com/"+name)
	}
	e.File = harness.WriteFile(t, "broker.yaml", text+more+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}))
	e.Launch(t, "broker")
	e.Await(t)
	return e
}

// renew gives the broker another certificate, and returns a name that is in it only.
func (e *edge) renew() string {
	e.renewed++
	name := "broker-" + strconv.Itoa(e.renewed)
	pair := harness.Must(e.ca.Issue(&x509.Certificate{DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}))
	if _, _, err := pair.Write(e.dir, "tls"); err != nil {
		panic(err)
	}
	return name
}

// trust replaces the authorities of callers.
func (e *edge) trust(authorities ...*devca.Authority) {
	var text []byte
	for _, authority := range authorities {
		text = append(text, authority.PEM()...)
	}
	e.write("ca.crt", text)
}

func (e *edge) write(name string, data []byte) {
	if err := os.WriteFile(filepath.Join(e.dir, name), data, 0o600); err != nil {
		panic(err)
	}
}

// as is the certificate of a caller; empty: nobody.
func (e *edge) as(by *devca.Authority, name string) *tls.Config {
	config := &tls.Config{RootCAs: e.ca.Pool(), MinVersion: tls.VersionTLS13}
	if name != "" {
		pair := harness.Must(by.Issue(&x509.Certificate{URIs: []*url.URL{{Scheme: "spiffe", Host: "example.com", Path: "/" + name}}}))
		config.Certificates = []tls.Certificate{pair.TLS()}
	}
	return config
}

// connect connects, for a while.
func (e *edge) connect(config *tls.Config) (api tokenbrokerv1.TokenBrokerServiceClient, hangUp func()) {
	conn := harness.Must(grpc.NewClient(e.Grpc, grpc.WithTransportCredentials(credentials.NewTLS(config))))
	return tokenbrokerv1.NewTokenBrokerServiceClient(conn), func() { _ = conn.Close() }
}

// presented is the name in the certificate that the broker presents now.
func (e *edge) presented(t *testing.T) string {
	t.Helper()
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: e.ca.Pool(), NextProtos: []string{"h2"}}}
	conn, err := dialer.DialContext(t.Context(), "tcp", e.Grpc)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].DNSNames[0]
}

func getOrders(ctx context.Context, api tokenbrokerv1.TokenBrokerServiceClient) error {
	ctx, cancel := context.WithTimeout(ctx, harness.Patience)
	defer cancel()
	_, err := api.GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
	return err
}

// tally counts calls by what became of them, and remembers one that failed.
type tally struct {
	calls, failed atomic.Int64
	failure       atomic.Value
}

func (c *tally) count(err error) {
	c.calls.Add(1)
	if err != nil {
		c.failed.Add(1)
		c.failure.Store(err.Error())
	}
}

// Certificates are replaced a hundred times while callers call, over connections
// that stay and over new ones. Now and then what is put there is broken.
func TestReplacedCertificatesFailNoCall(t *testing.T) {
	t.Parallel()
	e := startEdge(t, "", "checkout")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var calls tally
	var callers sync.WaitGroup
	var newest atomic.Pointer[tls.Config] // of a caller whose authority changes
	newest.Store(e.as(e.ca, "checkout"))
	for i := range 6 {
		callers.Go(func() {
			api, hangUp := e.connect(e.as(e.ca, "checkout"))
			for ctx.Err() == nil {
				if i >= 3 { // over a connection of its own
					hangUp()
					api, hangUp = e.connect(newest.Load())
				}
				calls.count(getOrders(t.Context(), api))
			}
			hangUp()
		})
	}
	replacements := 100
	for i := range replacements {
		var next *devca.Authority
		if i%10 == 5 { // the old authority stays: callers need time to get new certificates
			next = harness.Must(devca.New("ca-" + strconv.Itoa(i)))
			e.trust(e.ca, next)
		}
		name := e.renew()
		e.hangup(t)
		testkit.Eventually(t, "the new certificate is presented", func() bool { return e.presented(t) == name })
		if next != nil {
			newest.Store(e.as(next, "checkout"))
		}
		if i%10 == 9 {
			newest.Store(e.as(e.ca, "checkout"))
			e.breakCertificates(t, i/10, name)
		}
	}
	stop()
	callers.Wait()
	if failed := calls.failed.Load(); failed > 0 || calls.calls.Load() < int64(replacements) {
		t.Errorf("%d of %d calls failed, one with: %v", failed, calls.calls.Load(), calls.failure.Load())
	}
	if applied := e.Metric(t, `tokenbroker_tls_reloads_total{result="applied"}`); applied < float64(replacements) {
		t.Errorf("%v replacements were applied", applied)
	}
	t.Logf("%d calls, %d replacements", calls.calls.Load(), replacements)
}

func (e *edge) hangup(t *testing.T) {
	t.Helper()
	if err := e.Process.Cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// breakCertificates puts something there that is no good, and waits until the
// broker has seen that; name is in the certificate that must stay in force.
func (e *edge) breakCertificates(t *testing.T, way int, name string) {
	t.Helper()
	old := time.Now().Add(-time.Hour)
	expired := harness.Must(e.ca.Issue(&x509.Certificate{NotBefore: old.Add(-time.Hour), NotAfter: old}))
	foreign := harness.Must(harness.Must(devca.New("other")).Issue(&x509.Certificate{}))
	ways := []func(){
		func() { e.write("tls.crt", nil) },
		func() { e.write("tls.key", []byte("-----BEGIN PRIVATE KEY-----\n")) },
		func() { e.write("tls.crt", expired.CertPEM()); e.write("tls.key", harness.Must(expired.KeyPEM())) },
		func() { e.write("tls.key", harness.Must(foreign.KeyPEM())) },
		func() { _ = os.Remove(filepath.Join(e.dir, "tls.crt")) },
	}
	ways[way%len(ways)]()
	e.hangup(t)
	testkit.Eventually(t, "the broken file is noticed", func() bool { return e.Metric(t, "tokenbroker_tls_reload_failing") == 1 })
	if got := e.presented(t); got != name {
		t.Errorf("with a broken file %s is presented, not %s", got, name)
	}
}

// Without being told, the broker sees another certificate within some seconds.
func TestReplacedRedisCertificates(t *testing.T) {
	t.Parallel()
	e := startEdge(t, "", "checkout")
	begun := time.Now()
	name := e.renew()
	testkit.Eventually(t, "the new certificate is presented", func() bool { return e.presented(t) == name })
	t.Logf("presented after %v", time.Since(begun).Round(time.Millisecond))
	if expiry := e.Metric(t, "tokenbroker_tls_certificate_expiry_timestamp_seconds"); time.Until(time.Unix(int64(expiry), 0)) < 364*24*time.Hour {
		t.Errorf("the metric says that it ends at %v", expiry)
	}
}

// quantiles of latencies.
func quantiles(took []time.Duration) (p50, p99 time.Duration) {
	slices.Sort(took)
	if len(took) == 0 {
		return 0, 0
	}
	return took[len(took)/2], took[len(took)*99/100]
}

// steady calls so often in a second, whether or not answers come, for a while.
func steady(ctx context.Context, api tokenbrokerv1.TokenBrokerServiceClient, perSecond int, d time.Duration, each func(err error, took time.Duration)) {
	ticker := time.NewTicker(time.Second / time.Duration(perSecond))
	defer ticker.Stop()
	var running sync.WaitGroup
	for end := time.Now().Add(d); time.Now().Before(end); <-ticker.C {
		running.Go(func() {
			begun := time.Now()
			err := getOrders(ctx, api)
			each(err, time.Since(begun))
		})
	}
	running.Wait()
}

// A caller that floods at ten times its limit is refused what is beyond it, and the
// others are served as before.
func TestFloodFailsNoOtherCaller(t *testing.T) {
	t.Parallel()
	const limit, length = 50, 4 * time.Second
	e := startEdge(t, fmt.Sprintf("limits: {per_second: %d}\n", limit), "flooder", "other")
	flooder, hangUpFlooder := e.connect(e.as(e.ca, "flooder"))
	defer hangUpFlooder()
	other, hangUpOther := e.connect(e.as(e.ca, "other"))
	defer hangUpOther()
	for _, api := range []tokenbrokerv1.TokenBrokerServiceClient{flooder, other} {
		if err := getOrders(t.Context(), api); err != nil {
			t.Fatal(err)
		}
	}
	measure := func() (p50, p99 time.Duration) {
		t.Helper()
		var mu sync.Mutex
		var took []time.Duration
		steady(t.Context(), other, limit/2, length, func(err error, d time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			took = append(took, d)
			if err != nil {
				t.Errorf("another caller: %v", err)
			}
		})
		if len(took) < limit {
			t.Errorf("another caller made only %d calls", len(took))
		}
		return quantiles(took)
	}
	p50, p99 := measure()
	t.Logf("undisturbed:    p50 %v, p99 %v", p50, p99)

	var served, refused, wrong atomic.Int64
	var flood sync.WaitGroup
	begun := time.Now()
	flood.Go(func() {
		steady(t.Context(), flooder, 10*limit, length, func(err error, _ time.Duration) {
			switch {
			case err == nil:
				served.Add(1)
			case status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), `caller "flooder" exceeds its limit of 50 calls per second`):
				refused.Add(1)
			default:
				wrong.Add(1)
			}
		})
	})
	p50, p99 = measure()
	flood.Wait()
	took := time.Since(begun)
	t.Logf("beside a flood: p50 %v, p99 %v; of the flood %d served, %d refused in %v", p50, p99, served.Load(), refused.Load(), took.Round(time.Millisecond))
	if most := int64(limit*took.Seconds()) + limit + 1; served.Load() > most || served.Load() < limit || refused.Load() < limit || wrong.Load() > 0 {
		t.Errorf("of the flood %d were served (at most %d are right), %d refused, %d ended otherwise", served.Load(), most, refused.Load(), wrong.Load())
	}
	if counted := e.Metric(t, `tokenbroker_limited_calls_total{caller="flooder",limit="rate"}`); counted != float64(refused.Load()) {
		t.Errorf("%v refusals are counted, %d were made", counted, refused.Load())
	}
}
