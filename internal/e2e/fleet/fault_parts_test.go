package fleet

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

func redisBehindProxy(t *testing.T, f *faultFleet) {
	t.Helper()
	f.redis = redistest.Start(t, redisOptions())
	f.proxy = startProxy(t, f.redis.Addr())
	f.store = redisConfig(t, "", f.proxy.addr)
}

func idpBehindProxy(t *testing.T, f *faultFleet) {
	t.Helper()
	f.proxy = startProxy(t, hostOf(t, f.idp.Issuer()))
	f.tokenURL = "http://" + f.proxy.addr + devidp.TokenPath
}

func hostOf(t *testing.T, address string) string {
	t.Helper()
	parsed, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Host
}

// shard returns the server with the tokens of the client.
func (f *faultFleet) shard(t *testing.T) *redistest.Server {
	t.Helper()
	for _, server := range f.cluster.Servers {
		if len(tokenKeys(server)) > 0 {
			f.dead = server
			return server
		}
	}
	t.Fatal("no server has a token")
	return nil
}

// tlsFront is the IdP with TLS.
type tlsFront struct {
	server        *httptest.Server
	certificate   atomic.Pointer[tls.Certificate]
	own, stranger *tls.Certificate // of the authority that the client trusts, and of another
}

func idpWithTLS(t *testing.T, f *faultFleet) {
	t.Helper()
	issue := func(authority *devca.Authority) *tls.Certificate {
		pair, err := authority.Issue(&x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "idp"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		})
		if err != nil {
			t.Fatal(err)
		}
		certificate := pair.TLS()
		return &certificate
	}
	trusted := harness.Must(devca.New("the IdP's authority"))
	f.front = &tlsFront{own: issue(trusted), stranger: issue(harness.Must(devca.New("another authority")))}
	upstream, err := url.Parse(f.idp.Issuer())
	if err != nil {
		t.Fatal(err)
	}
	f.front.server = httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(upstream))
	f.front.server.TLS = &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{Certificates: []tls.Certificate{*f.front.certificate.Load()}}, nil
		},
	}
	f.front.certificate.Store(f.front.own)
	f.front.server.StartTLS()
	t.Cleanup(f.front.server.Close)
	ca := filepath.Join(t.TempDir(), "idp-ca.crt")
	testkit.WriteFile(t, ca, string(trusted.PEM()))
	f.tokenURL = f.front.server.URL + devidp.TokenPath
	f.client = fmt.Sprintf(", tls: {ca: %q}", ca)
}

// serve presents a certificate from now on, and ends the connections with another one.
func (f *tlsFront) serve(certificate *tls.Certificate) {
	f.certificate.Store(certificate)
	f.server.CloseClientConnections()
}

// hostNames is the file in which the brokers of a fleet look up host names.
type hostNames struct{ path string }

const idpName = "idp.example.com"

// idpByName gives the IdP a name that only the brokers of this fleet can resolve. Their
// processes have another /etc/hosts, and no DNS server.
func idpByName(t *testing.T, f *faultFleet) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "unshare", "--mount", "true").CombinedOutput(); err != nil {
		t.Skipf("files cannot be mounted here (it takes root): %v: %s", err, out)
	}
	idpBehindProxy(t, f)
	_, port, err := net.SplitHostPort(f.proxy.addr)
	if err != nil {
		t.Fatal(err)
	}
	f.tokenURL = "http://" + net.JoinHostPort(idpName, port) + devidp.TokenPath
	f.client = ", allow_http: true, allow_private: true"
	dir := t.TempDir()
	f.names = &hostNames{filepath.Join(dir, "hosts")}
	f.names.publish(t)
	resolver, binary := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "broker")
	testkit.WriteFile(t, resolver, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
	script := fmt.Sprintf("#!/bin/sh\nexec unshare --mount sh -c 'mount --bind %s /etc/hosts && mount --bind %s /etc/resolv.conf && exec broker \"$@\"' broker \"$@\"\n", f.names.path, resolver)
	if err := os.WriteFile(binary, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	f.binary = binary
}

func (n *hostNames) publish(t *testing.T) {
	t.Helper()
	n.write(t, "127.0.0.1 localhost "+idpName+"\n")
}

// forget removes the name, waits until the brokers have noticed, and ends their connections.
func (n *hostNames) forget(t *testing.T, f *faultFleet) {
	t.Helper()
	n.write(t, "127.0.0.1 localhost\n")
	rest(t, 6*time.Second) // Go reads the file every 5 s
	f.proxy.enable(false)
	f.proxy.enable(true)
}

// write writes into the file that is mounted, which must stay the same one.
func (n *hostNames) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(n.path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
