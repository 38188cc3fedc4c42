package edge

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// privateIdP is an IdP of a company: its certificate is issued by an authority of its
// own, and can be replaced by one of another authority.
type privateIdP struct {
	*devidp.Server

	certificate atomic.Pointer[tls.Certificate]
}

func startPrivateIdP(t *testing.T, by *devca.Authority) *privateIdP {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	issuer := "https://" + server.Listener.Addr().String()
	p := &privateIdP{Server: harness.Must(devidp.New(devidp.Config{Issuer: issuer, Lifetime: time.Hour, Algorithm: "EdDSA", Clients: []devidp.Client{{
		ID: "abc", Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read"}, Audiences: harness.Audiences(10),
	}}}))}
	p.present(by)
	server.Config.Handler, server.Config.ErrorLog = p.Server, log.New(io.Discard, "", 0) // handshakes fail on purpose
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{*p.certificate.Load()}, MinVersion: tls.VersionTLS12}, nil
	}}
	server.StartTLS()
	t.Cleanup(server.Close)
	return p
}

// present replaces the certificate.
func (p *privateIdP) present(by *devca.Authority) {
	pair := harness.Must(by.Issue(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})).TLS()
	p.certificate.Store(&pair)
}

// TestPrivateAuthorityIsReloaded: discovery, the token endpoint and
// the keys are behind a private authority, which gives way to another one.
func TestPrivateAuthorityIsReloaded(t *testing.T) {
	t.Parallel()
	first, second := harness.Must(devca.New("first")), harness.Must(devca.New("second"))
	idp := startPrivateIdP(t, first)
	dir := t.TempDir()
	ca := harness.Must(first.Write(dir, "ca"))
	b := harness.StartBroker(t, fmt.Sprintf("clients:\n  orders: {issuer: %q, client_id: abc, secret: %q, tls: {ca: %q}}\n",
		idp.Issuer(), "file:"+harness.WriteFile(t, "secret", "right"), ca)+
		fmt.Sprintf("  untrusting: {issuer: %q, client_id: abc, secret: %q}\n", idp.Issuer(), "file:"+harness.WriteFile(t, "secret", "right"))+
		fmt.Sprintf("issuers: [{issuer: %q, audiences: [%s], tls: {ca: %q}}]\n", idp.Issuer(), strings.Join(harness.Audiences(10), ", "), ca))
	next := 0
	get := func(client string) (harness.Given, harness.Result) { // another token each time
		t.Helper()
		next++
		return b.TryGet(t, client, "--audience", harness.Audiences(10)[next%10])
	}
	refused := func(what string, authority string, res harness.Result) {
		t.Helper()
		if res.Code == 0 || !strings.Contains(res.Stderr, authority) || !strings.Contains(res.Stderr, "tls.ca") {
			t.Errorf("%s: %v", what, res)
		}
	}

	got, res := get("orders")
	if res.Code != 0 {
		t.Fatalf("get: %v", res)
	}
	b.MustVerify(t, "a token of the IdP", got.AccessToken, harness.Active)
	_, res = get("untrusting")
	refused("a client without tls.ca", "first", res)

	// The file is replaced before the certificate, which new connections then refuse.
	harness.Must(second.Write(dir, "ca"))
	testkit.Eventually(t, "the second authority is trusted", func() bool {
		return strings.Contains(b.Process.Output.String(), "the new CAs of an IdP are trusted")
	})
	_, res = get("orders")
	refused("the first authority", "first", res)

	idp.present(second)
	idp.RotateKeys(false) // so that the keys must be fetched as well
	testkit.Eventually(t, "the IdP is reached again", func() bool { got, res = get("orders"); return res.Code == 0 })
	b.MustVerify(t, "a token from behind the second authority", got.AccessToken, harness.Active)
}
