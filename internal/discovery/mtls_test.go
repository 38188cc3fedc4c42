package discovery_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

func TestAliasesForMTLS(t *testing.T) {
	s := &site{pages: map[string]string{oidc: `{"issuer":"https://idp.example","token_endpoint":"https://idp.example/token","introspection_endpoint":"https://idp.example/introspect",
		"mtls_endpoint_aliases":{"token_endpoint":"https://mtls.idp.example/token","jwks_uri":5}}`}}
	metadata, err := s.issuer(issuer).Metadata(t.Context())
	want := map[string]string{
		"token": "https://idp.example/token", "keys": "", "introspection": "https://idp.example/introspect",
		"token, mTLS": "https://mtls.idp.example/token", "introspection, mTLS": "https://idp.example/introspect",
	}
	if diff := cmp.Diff(want, urlsOf(metadata)); err != nil || diff != "" {
		t.Errorf("%v, %s", err, diff)
	}
}

func selfSigned(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestClientsWithACertificate: each client presents its own certificate, for any authorities
// that the server names, on connections that no other client uses.
func TestClientsWithACertificate(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := "nobody"
		if len(r.TLS.PeerCertificates) > 0 {
			name = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		_, _ = io.WriteString(w, `{"name":"`+name+`"}`)
	}))
	named := x509.NewCertPool() // sent to the client as the authorities that are welcome
	other := selfSigned(t, "authority")
	authority, err := x509.ParseCertificate(other.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	named.AddCert(authority)
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, ClientCAs: named}
	server.StartTLS()
	t.Cleanup(server.Close)

	network := discovery.NewNetwork(nil)
	clients := map[string]*http.Client{
		"nobody": network.ClientFor(server.URL, false),
		"a":      network.ClientWith(server.URL, false, selfSigned(t, "a")),
		"b":      network.ClientWith(server.URL, false, selfSigned(t, "b")),
	}
	for _, client := range clients {
		discovery.Trust(client, server.Certificate())
	}
	for range 3 {
		for name, client := range clients {
			body, _, err := discovery.Get(t.Context(), client, server.URL, 100)
			if err != nil || string(body) != `{"name":"`+name+`"}` {
				t.Errorf("%s: %s, %v", name, body, err)
			}
		}
	}
	public := network.ClientWith("https://idp.example", false, selfSigned(t, "a"))
	if err := get(t, public, server.URL); !isAddressError(err) {
		t.Errorf("a loopback address: %v", err)
	}
	s := &site{pages: map[string]string{"/x": "{}"}}
	if _, _, err := discovery.Get(t.Context(), discovery.NewNetwork(s).ClientWith(issuer, false, selfSigned(t, "a")), issuer+"/x", 100); err != nil {
		t.Errorf("in place of connections: %v", err)
	}
}

type answering func(*http.Request) (*http.Response, error)

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) { return a(r) }

func TestRequestsWithACertificateHaveSpansToo(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	network := discovery.NewNetwork(answering(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
	}))
	tracer := tracing.New(trace.NewTracerProvider(trace.WithSpanProcessor(spans)))
	network.Observe(tracer, func(tracing.Name) {})
	ctx, _ := tracer.Serve(t.Context(), tracing.ServeToken, nil)
	client := network.ClientWith("https://idp.example", false, selfSigned(t, "client"))
	if _, _, err := discovery.Get(tracing.Named(ctx, tracing.Token), client, "https://idp.example/token", 1); err != nil {
		t.Error(err)
	}
	if got := spans.Ended(); len(got) != 1 || got[0].Name() != "idp token" {
		t.Errorf("spans: %v", got)
	}
}
