package server_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/test/bufconn"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/certs"
	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/server"
)

// Who may everything in a world: by SPIFFE ID, by DNS name, by JWT.
const (
	checkout = "spiffe://example.com/ns/shop/sa/checkout"
	gateway  = "gateway.example.com"
	robot    = "system:serviceaccount:shop:robot"
)

func callersOfTheWorld() []policy.CallerConfig {
	return []policy.CallerConfig{
		{Name: "caller-checkout", Match: policy.Match{SPIFFEID: checkout}},
		{Name: "caller-gateway", Match: policy.Match{DNSSAN: gateway}},
		{Name: "caller-robot", Match: policy.Match{Issuer: issuer, Subject: robot}},
	}
}

// world is a broker behind TLS, with an authority of its own and one whom nobody
// trusts.
type world struct {
	*apitest.Fixture

	t             testing.TB
	dir           string
	ca, strangers *devca.Authority
	source        *certs.Source
	server        *server.Server
	listener      *bufconn.Listener
	registry      *prometheus.Registry
}

// must makes what cannot fail where tests run.
func must[T any](made T, err error) T {
	if err != nil {
		panic(err)
	}
	return made
}

func newWorld(t testing.TB, change ...func(*server.Config)) *world {
	t.Helper()
	return newWorldOf(t, allowing(callersOfTheWorld()...), change...)
}

func newWorldOf(t testing.TB, who *policy.Policy, change ...func(*server.Config)) *world {
	t.Helper()
	w := &world{
		Fixture: apitest.NewFor(t, who),
		t:       t, dir: t.TempDir(), ca: must(devca.New("ca")), strangers: must(devca.New("strangers")),
		registry: prometheus.NewRegistry(), listener: bufconn.Listen(1 << 20),
	}
	cert, key, err := must(w.ca.Issue(&x509.Certificate{DNSNames: []string{"broker"}})).Write(w.dir, "tls")
	if err != nil {
		t.Fatal(err)
	}
	w.source = must(certs.Open(certs.Config{Cert: cert, Key: key, ClientCA: must(w.ca.Write(w.dir, "ca"))}))
	cfg := server.Config{Broker: w.Broker, TLS: w.source, Logger: w.Logger, Registerer: w.registry, Reflection: true}
	for _, c := range change {
		c(&cfg)
	}
	w.server = server.New(cfg)
	ended := make(chan error, 1)
	go func() { ended <- w.server.Serve(w.listener) }()
	t.Cleanup(func() {
		w.server.Shutdown(0, time.Second)
		<-ended
	})
	return w
}

// trust replaces the authorities of callers.
func (w *world) trust(authorities ...*devca.Authority) {
	w.t.Helper()
	var text []byte
	for _, a := range authorities {
		text = append(text, a.PEM()...)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "ca.crt"), text, 0o600); err != nil {
		w.t.Fatal(err)
	}
	if changed, err := w.source.Reload(); !changed || err != nil {
		w.t.Fatal(changed, err)
	}
}

// template is a certificate with URIs and DNS names.
func template(names ...string) *x509.Certificate {
	made := &x509.Certificate{Subject: pkix.Name{CommonName: gateway}}
	for _, name := range names {
		if uri, err := url.Parse(name); err == nil && uri.Scheme != "" {
			made.URIs = append(made.URIs, uri)
			continue
		}
		made.DNSNames = append(made.DNSNames, name)
	}
	return made
}

// with presents a certificate, whatever the broker asks for.
func (w *world) with(by *devca.Authority, like *x509.Certificate) *tls.Config {
	return presenting(w, must(by.Issue(like)))
}

func (w *world) anonymous() *tls.Config {
	return &tls.Config{RootCAs: w.ca.Pool(), ServerName: "broker"}
}

// connect connects over TLS.
func (w *world) connect(config *tls.Config) *grpc.ClientConn {
	w.t.Helper()
	conn, err := grpc.NewClient("passthrough:///broker",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return w.listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// api connects over TLS, for one service.
func (w *world) api(config *tls.Config) tokenbrokerv1.TokenBrokerServiceClient {
	w.t.Helper()
	return tokenbrokerv1.NewTokenBrokerServiceClient(w.connect(config))
}

// jwt is a token of the robot; claims change it, and nil leaves one out.
func (w *world) jwt(claims map[string]any) string {
	all := map[string]any{"sub": robot, "aud": caller.DefaultAudience}
	maps.Copy(all, claims)
	return w.Token(all)
}

// count is the value of a counter.
func (w *world) count(name string, labels map[string]string) float64 {
	w.t.Helper()
	for _, family := range must(w.registry.Gather()) {
		if family.GetName() != name {
			continue
		}
	metrics:
		for _, m := range family.GetMetric() {
			for _, pair := range m.GetLabel() {
				if want, ok := labels[pair.GetName()]; ok && want != pair.GetValue() {
					continue metrics
				}
			}
			return m.GetCounter().GetValue()
		}
	}
	return 0
}
