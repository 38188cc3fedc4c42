package edge

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// front ends TLS before the IdP and demands a client certificate, as a load
// balancer does. It tells the IdP which one was presented.
type front struct {
	*httptest.Server

	mu   sync.Mutex
	seen []string // serial numbers of the certificates, each time one was presented
}

// newFront listens, and serves once it knows the IdP behind it.
func newFront(t *testing.T, files *redistest.Certificates) *front {
	t.Helper()
	own, err := tls.LoadX509KeyPair(files.ServerCert, files.ServerKey)
	if err != nil {
		t.Fatal(err)
	}
	f := &front{Server: httptest.NewUnstartedServer(nil)}
	f.TLS = &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12}
	return f
}

func (f *front) url() string { return "https://" + f.Listener.Addr().String() }

func (f *front) serve(t *testing.T, idp *harness.OIDCProvider, files *redistest.Certificates) {
	t.Helper()
	behind, err := url.Parse(idp.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	authorities := files.Anonymous().RootCAs
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(behind)
		certificate := r.In.TLS.PeerCertificates[0]
		f.note(certificate)
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})
		r.Out.Header.Set("X-Client-Certificate", url.PathEscape(string(text)))
		r.Out.Header.Del("X-Client-Subject")
		if _, err := certificate.Verify(x509.VerifyOptions{Roots: authorities, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
			r.Out.Header.Set("X-Client-Subject", certificate.Subject.String())
		}
	}}
	f.Config.Handler, f.Config.ErrorLog = proxy, log.New(io.Discard, "", 0) // a certificate that is missing is what is tested
	f.StartTLS()
	t.Cleanup(f.Close)
}

func (f *front) note(certificate *x509.Certificate) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, certificate.SerialNumber.String())
}

// last is the serial number of the certificate that was presented last.
func (f *front) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.seen) == 0 {
		return ""
	}
	return f.seen[len(f.seen)-1]
}

func serialOf(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate.SerialNumber.String()
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// mutual is an IdP behind a front, with a broker of clients that present
// certificates.
type mutual struct {
	idp               *harness.OIDCProvider
	front             *front
	files             *redistest.Certificates
	selfCert, selfKey string // the first; the second is registered as well
	nextCert, nextKey string
	broker            *harness.Broker
}

func startMutual(t *testing.T) *mutual {
	t.Helper()
	m := &mutual{files: redistest.NewCertificates(t)}
	m.selfCert, m.selfKey = selfSigned(t)
	m.nextCert, m.nextKey = selfSigned(t)
	first, err := os.ReadFile(m.selfCert)
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(m.nextCert)
	if err != nil {
		t.Fatal(err)
	}
	m.front = newFront(t, m.files)
	m.idp = harness.StartOIDCProvider(t, "MTLS="+m.front.url(), "MTLS_CERTIFICATES="+harness.WriteFile(t, "certificates", string(first)+string(second)))
	m.front.serve(t, m.idp, m.files)

	foreignCert, foreignKey := selfSigned(t)
	certificate := func(cert, key string) string { return fmt.Sprintf("tls: {cert: %q, key: %q}", cert, key) }
	m.broker = harness.NewBroker(t, "clients:\n"+
		m.idp.YAML("tls", "tls", "tls_client_auth", certificate(m.files.ClientCert, m.files.ClientKey))+
		m.idp.YAML("bound", "bound", "tls_client_auth", certificate(m.files.ClientCert, m.files.ClientKey))+
		m.idp.YAML("self-signed", "self-signed", "self_signed_tls_client_auth", certificate(m.selfCert, m.selfKey))+
		m.idp.YAML("foreign", "tls", "tls_client_auth", certificate(foreignCert, foreignKey))+
		fmt.Sprintf("issuers: [{issuer: %q, audiences: [%q, %q], introspection: {client: tls, cache: 0s}}]\n", m.idp.Issuer, harness.RS256, harness.Opaque))
	m.broker.Launch(t, "broker", "SSL_CERT_FILE="+m.files.CA)
	m.broker.Await(t)
	return m
}

// TestCertificatesAuthenticate at the endpoints that the metadata names for them.
func TestCertificatesAuthenticate(t *testing.T) {
	t.Parallel()
	m := startMutual(t)
	b := m.broker
	for name, file := range map[string]string{"tls": m.files.ClientCert, "self-signed": m.selfCert} {
		got := b.Get(t, name)
		if presented := m.front.last(); presented != serialOf(t, file) {
			t.Errorf("%s presented the certificate %s", name, presented)
		}
		b.MustVerify(t, "a token of "+name, got.AccessToken, harness.Active)
	}
	b.MustVerify(t, "an opaque token, asked about with a certificate", b.Get(t, "tls", "--resource", harness.Opaque).AccessToken, harness.Active, "--audience", harness.Opaque)
	if counts := m.idp.Requests(t); counts.Auth["certificate"] != 3 || counts.Paths["/token"] != 3 || counts.Paths["/token/introspection"] != 1 {
		t.Errorf("%+v", counts)
	}
	if res := b.Run(t, "get", "bound"); res.Code == 0 || !strings.Contains(res.Stderr, "FailedPrecondition") || !strings.Contains(res.Stderr, "bound to a certificate or a key (cnf)") {
		t.Errorf("bound tokens: %v", res)
	}
	if res := b.Run(t, "get", "foreign"); res.Code == 0 || !strings.Contains(res.Stderr, "check the certificate") {
		t.Errorf("a certificate that the IdP does not know: %v", res)
	}
	// Nobody gets past the front without one.
	bare := &http.Client{Transport: &http.Transport{TLSClientConfig: m.files.Anonymous()}, Timeout: harness.Patience}
	defer bare.CloseIdleConnections()
	if response, err := harness.Fetch(t, bare, http.MethodGet, m.front.url()+"/jwks", nil); err == nil {
		_ = response.Body.Close()
		t.Errorf("without a certificate: %s", response.Status)
	} else if _, dialed := err.(*net.OpError); dialed { //nolint:errorlint // it is the refusal that is wanted
		t.Errorf("the front is not there: %v", err)
	}
}

// TestCertificatesAreReloaded without a restart, both the one of an authority and
// the one that is registered itself.
func TestCertificatesAreReloaded(t *testing.T) {
	t.Parallel()
	m := startMutual(t)
	b := m.broker
	for _, name := range []string{"tls", "self-signed"} {
		b.Get(t, name)
	}
	m.files.RenewClient(t)
	copyFile(t, m.nextCert, m.selfCert)
	copyFile(t, m.nextKey, m.selfKey)
	const changed = "a new client certificate is active"
	testkit.Eventually(t, "the new certificates are active", func() bool { // of the four clients, and of introspection
		return strings.Count(b.Process.Output.String(), changed) == 4
	})
	for name, file := range map[string]string{"tls": m.files.ClientCert, "self-signed": m.nextCert} {
		b.Get(t, name, "--resource", harness.ES256) // what was asked before is held
		if presented := m.front.last(); presented != serialOf(t, file) {
			t.Errorf("%s presented the certificate %s", name, presented)
		}
	}
	b.MustVerify(t, "an opaque token, asked about with the new certificate", b.Get(t, "tls", "--resource", harness.Opaque).AccessToken, harness.Active, "--audience", harness.Opaque)
	if presented := m.front.last(); presented != serialOf(t, m.files.ClientCert) {
		t.Errorf("introspection presented the certificate %s", presented)
	}
	if strings.Contains(b.Process.Output.String(), "PRIVATE KEY") {
		t.Error("a key was printed")
	}
}
