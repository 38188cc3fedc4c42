package idp_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/redact"
)

// mutualServer is an IdP over TLS that wants a certificate and notes what it sees.
type mutualServer struct {
	*httptest.Server

	mu    sync.Mutex
	seen  []string // serial numbers of the certificates
	forms []url.Values
	conns map[string]bool
}

func newMutualServer(t *testing.T, config *tls.Config) *mutualServer {
	t.Helper()
	s := &mutualServer{conns: map[string]bool{}}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		s.mu.Lock()
		s.seen = append(s.seen, r.TLS.PeerCertificates[0].SerialNumber.String())
		s.forms = append(s.forms, r.PostForm)
		s.conns[r.RemoteAddr] = true
		s.mu.Unlock()
		_, _ = io.WriteString(w, good)
	}))
	s.TLS = config
	s.Config.ErrorLog = discard()
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *mutualServer) last() (serial string, form url.Values, conns int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.seen) - 1
	return s.seen[n], s.forms[n], len(s.conns)
}

// with makes clients that trust the server.
func (s *mutualServer) with(certificate tls.Certificate) *http.Client {
	authorities := x509.NewCertPool()
	authorities.AddCert(s.Certificate())
	return discovery.NewHTTPClient(&http.Transport{TLSClientConfig: &tls.Config{
		RootCAs:              authorities,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil },
	}})
}

// pair writes a new certificate and its key, and returns its serial number.
func pair(t *testing.T, files idp.CertificateFiles, life time.Duration) (certificate *x509.Certificate, certPEM, keyPEM string) {
	t.Helper()
	key := newKey(t, "ES256")
	certificate, certPEM = certify(t, key, life)
	keyPEM = pemKey(t, key)
	write(t, files.Cert, certPEM)
	write(t, files.Key, keyPEM)
	return certificate, certPEM, keyPEM
}

func certFiles(t *testing.T) idp.CertificateFiles {
	t.Helper()
	dir := t.TempDir()
	return idp.CertificateFiles{Cert: filepath.Join(dir, "client.crt"), Key: filepath.Join(dir, "client.key")}
}

func TestCertificateIsPresented(t *testing.T) {
	for _, auth := range []idp.AuthMethod{idp.TLS, idp.SelfSignedTLS} {
		server := newMutualServer(t, &tls.Config{ClientAuth: tls.RequireAnyClientCert})
		files := certFiles(t)
		certificate, _, _ := pair(t, files, time.Hour)
		c := client(t, idp.Config{TokenURL: server.URL, Auth: auth, Certificate: files, HTTPWith: server.with})
		grant, err := c.Fetch(t.Context(), c.Credential(), idp.Request{Scopes: []string{"read"}})
		if err != nil {
			t.Fatal(err)
		}
		serial, form, _ := server.last()
		want := url.Values{"grant_type": {"client_credentials"}, "client_id": {clientID}, "scope": {"read"}}
		if diff := cmp.Diff(want, form); diff != "" || serial != certificate.SerialNumber.String() {
			t.Errorf("%s, certificate %s", diff, serial)
		}
		id, notAfter, ok := c.Certificate()
		if !ok || len(id) != 8 || grant.SecretVersion != id || !notAfter.Equal(certificate.NotAfter) {
			t.Errorf("%q, %v, %v; the token says %q", id, notAfter, ok, grant.SecretVersion)
		}
	}
}

func TestCertificateIsReloaded(t *testing.T) {
	server := newMutualServer(t, &tls.Config{ClientAuth: tls.RequireAnyClientCert})
	files := certFiles(t)
	first, firstPEM, firstKey := pair(t, files, time.Hour)
	c := client(t, idp.Config{TokenURL: server.URL, Auth: idp.TLS, Certificate: files, HTTPWith: server.with})
	presents := func(what string, want *x509.Certificate, wantConns int) {
		t.Helper()
		for range 2 {
			if _, err := c.Fetch(t.Context(), c.Credential(), idp.Request{}); err != nil {
				t.Fatal(err)
			}
		}
		if serial, _, conns := server.last(); serial != want.SerialNumber.String() || conns != wantConns {
			t.Errorf("%s: certificate %s, want %s; %d connections, want %d", what, serial, want.SerialNumber, conns, wantConns)
		}
	}
	reload := func(what string, wantChanged bool, wantErr string) {
		t.Helper()
		changed, err := c.ReloadCertificate()
		if changed != wantChanged || (err != nil) != (wantErr != "") || err != nil && !strings.Contains(err.Error(), wantErr) {
			t.Errorf("%s: changed %v, %v; want %v, %q", what, changed, err, wantChanged, wantErr)
		}
	}
	presents("at the start", first, 1)
	reload("no change", false, "")
	before := c.Credential().ID

	second, secondPEM, secondKey := pair(t, files, time.Hour)
	write(t, files.Key, firstKey)
	reload("the certificate alone is new, seen once", false, "")
	reload("the certificate alone is new", false, "are not a certificate and its private key")
	presents("while the two are not of each other", first, 1)
	write(t, files.Key, secondKey)
	reload("both are new, seen once", false, "")
	presents("while they were seen once", first, 1)
	reload("both are new", true, "")
	presents("after the reload", second, 2)
	if c.Credential().ID == before {
		t.Error("the new certificate has the old one's version")
	}

	for what, text := range map[string]string{"empty": "", "half written": secondPEM[:len(secondPEM)/2], "no PEM": "canary", "a key": secondKey} {
		write(t, files.Cert, text)
		reload(what+", seen once", false, "")
		reload(what, false, "are not a certificate and its private key")
		presents(what, second, 2)
	}
	if err := os.Remove(files.Cert); err != nil {
		t.Fatal(err)
	}
	reload("deleted", false, files.Cert+" cannot be read")
	pair(t, files, -time.Minute)
	reload("expired, seen once", false, "")
	reload("expired", false, "expired on")
	presents("after all that", second, 2)
	write(t, files.Cert, firstPEM)
	write(t, files.Key, firstKey)
	reload("the first again, seen once", false, "")
	reload("the first again", true, "")
	presents("the first again", first, 3)
}

func TestBadCertificateIsAnErrorOfNew(t *testing.T) {
	files := certFiles(t)
	_, certPEM, keyPEM := pair(t, files, time.Hour)
	_, otherPEM := certify(t, newKey(t, "ES256"), time.Hour)
	for name, tt := range map[string]struct{ cert, key, says string }{
		"swapped":        {keyPEM, certPEM, "not a certificate and its private key"},
		"of another key": {otherPEM, keyPEM, "not a certificate and its private key"},
		"no PEM":         {"canary", "canary", "not a certificate and its private key"},
		"a large file":   {strings.Repeat("x", 17<<10), keyPEM, files.Cert + " is larger than"},
	} {
		write(t, files.Cert, tt.cert)
		write(t, files.Key, tt.key)
		_, err := idp.New(idp.Config{TokenURL: "https://idp.example/token", ClientID: clientID, Auth: idp.TLS, Certificate: files})
		if err == nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: want %q, got %v", name, tt.says, err)
		}
	}
	pair(t, files, -time.Minute)
	if _, err := idp.New(idp.Config{TokenURL: "https://idp.example/token", ClientID: clientID, Auth: idp.TLS, Certificate: files}); err == nil || !strings.Contains(err.Error(), "expired on") {
		t.Errorf("expired: %v", err)
	}
	if err := os.Remove(files.Key); err != nil {
		t.Fatal(err)
	}
	if _, err := idp.New(idp.Config{TokenURL: "https://idp.example/token", ClientID: clientID, Auth: idp.TLS, Certificate: files}); err == nil || !strings.Contains(err.Error(), files.Key+" cannot be read") {
		t.Errorf("no key: %v", err)
	}
}

func TestCertificateThatTheServerDoesNotKnow(t *testing.T) {
	trusted, _ := certify(t, newKey(t, "ES256"), time.Hour)
	authorities := x509.NewCertPool()
	authorities.AddCert(trusted)
	// With TLS 1.3 the alert comes after the handshake, and may be lost with the
	// connection.
	server := newMutualServer(t, &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: authorities, MaxVersion: tls.VersionTLS12})
	files := certFiles(t)
	pair(t, files, time.Hour)
	c := client(t, idp.Config{TokenURL: server.URL, Auth: idp.TLS, Certificate: files, HTTPWith: server.with})
	_, err := c.Fetch(t.Context(), c.Credential(), idp.Request{})
	isFault(t, err, idp.CredentialRefused, "refuses the client's certificate (remote error: tls: ")
}

func TestAliasesAreForCertificatesAlone(t *testing.T) {
	server := newMutualServer(t, &tls.Config{ClientAuth: tls.RequireAnyClientCert})
	files := certFiles(t)
	pair(t, files, time.Hour)
	usual, requests := idpServer(t, grants(good))
	var base string
	document := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		grants(fmt.Sprintf(`{"issuer":%q,"token_endpoint":%q,"introspection_endpoint":%q,"mtls_endpoint_aliases":{"token_endpoint":%q,"introspection_endpoint":%q}}`,
			base, usual, usual, server.URL+"/token", server.URL+"/introspect"))(w, r)
	}))
	t.Cleanup(document.Close)
	base = document.URL
	issuer := discovery.New(discovery.Config{Issuer: base})

	c := client(t, idp.Config{Issuer: issuer, Auth: idp.TLS, Certificate: files, HTTPWith: server.with})
	if _, err := c.Fetch(t.Context(), c.Credential(), idp.Request{}); err != nil {
		t.Error(err)
	}
	_, err := c.Introspect(t.Context(), c.Credential(), redact.New("presented"))
	isFault(t, err, idp.Transient, "a member active that is neither")
	if _, form, _ := server.last(); form.Get("token") != "presented" || form.Get("client_id") != clientID || len(requests()) != 0 {
		t.Errorf("%v", form)
	}
	if _, err := client(t, idp.Config{Issuer: issuer}).Fetch(t.Context(), version, idp.Request{}); err != nil || len(requests()) != 1 {
		t.Errorf("without a certificate: %v", err)
	}
}

func TestCertificateIsNotTriedOverPlainHTTP(t *testing.T) {
	files := certFiles(t)
	pair(t, files, time.Hour)
	tokenURL, requests := idpServer(t, grants(good))
	c := client(t, idp.Config{TokenURL: tokenURL, Auth: idp.TLS, Certificate: files})
	_, err := c.Fetch(t.Context(), c.Credential(), idp.Request{})
	isFault(t, err, idp.Misconfigured, "is plain http")
	if len(requests()) != 0 {
		t.Error("the IdP was asked")
	}
}

func TestCertificateExpiresWhileRunning(t *testing.T) {
	files := certFiles(t)
	synctest.Test(t, func(t *testing.T) {
		pair(t, files, time.Minute)
		requests := 0
		answer := func(tls.Certificate) *http.Client {
			return discovery.NewHTTPClient(transport(func(*http.Request) (*http.Response, error) {
				requests++
				answer := httptest.NewRecorder()
				grants(good)(answer, nil)
				return answer.Result(), nil
			}))
		}
		c := client(t, idp.Config{TokenURL: "https://idp.example/token", Auth: idp.TLS, Certificate: files, HTTPWith: answer})
		if _, err := c.Fetch(t.Context(), c.Credential(), idp.Request{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		_, err := c.Fetch(t.Context(), c.Credential(), idp.Request{})
		isFault(t, err, idp.CredentialRefused, "received no request, because the certificate in "+files.Cert+" expired on")
		pair(t, files, time.Hour)
		_, _ = c.ReloadCertificate()
		if changed, err := c.ReloadCertificate(); !changed || err != nil {
			t.Errorf("%v, %v", changed, err)
		}
		if _, err := c.Fetch(t.Context(), c.Credential(), idp.Request{}); err != nil || requests != 2 {
			t.Errorf("after the renewal: %v, %d requests", err, requests)
		}
	})
}

func discard() *log.Logger { return log.New(io.Discard, "", 0) }
