package app_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	brokerclient "github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// pki is a broker's certificate and the authority of its callers, in files.
type pki struct {
	t       *testing.T
	dir     string
	ca      *devca.Authority // of both
	renewed int
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{t: t, dir: t.TempDir()}
	p.replaceCA()
	p.renew()
	return p
}

func (p *pki) replaceCA() {
	p.t.Helper()
	var err error
	if p.ca, err = devca.New("ca"); err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.ca.Write(p.dir, "ca"); err != nil {
		p.t.Fatal(err)
	}
}

// renew gives the broker another certificate and returns the name that is in it
// beside localhost.
func (p *pki) renew() string {
	p.t.Helper()
	p.renewed++
	name := fmt.Sprintf("broker-%d", p.renewed)
	pair, err := p.ca.Issue(&x509.Certificate{DNSNames: []string{name, "localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		p.t.Fatal(err)
	}
	if _, _, err := pair.Write(p.dir, "tls"); err != nil {
		p.t.Fatal(err)
	}
	return name
}

// config is the key tls of listen.
func (p *pki) config() string {
	return fmt.Sprintf("tls: {cert: %[1]q, key: %[2]q, client_ca: %[3]q}", filepath.Join(p.dir, "tls.crt"), filepath.Join(p.dir, "tls.key"), filepath.Join(p.dir, "ca.crt"))
}

// client trusts the broker; with a SPIFFE ID it has a certificate.
func (p *pki) client(id *url.URL) *tls.Config {
	p.t.Helper()
	config := &tls.Config{RootCAs: p.ca.Pool(), MinVersion: tls.VersionTLS13}
	if id == nil {
		return config
	}
	pair, err := p.ca.Issue(&x509.Certificate{URIs: []*url.URL{id}})
	if err != nil {
		p.t.Fatal(err)
	}
	config.Certificates = []tls.Certificate{pair.TLS()}
	return config
}

// presented is the first name in the certificate that a broker presents now.
func presented(t *testing.T, address string) string {
	t.Helper()
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}}
	conn, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].DNSNames[0]
}

const checkout = "spiffe://example.com/ns/shop/sa/checkout"

func checkoutID() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: "example.com", Path: "/ns/shop/sa/checkout"}
}

// ofCheckout is a configuration with one caller, who has a certificate.
var ofCheckout = strings.Replace(getAndVerify, "{name: everybody, roles: [all], limits: {per_second: 0, concurrent: 0, watches: 0}}", "{name: checkout, spiffe_id: \""+checkout+"\", roles: [all]}", 1)

func startTLS(t *testing.T, pki *pki) *reloadable {
	t.Helper()
	return startListening(t, devIDP(t), `grpc: "127.0.0.1:0", `+pki.config(), ofCheckout)
}

func TestHangupReloadsCertificates(t *testing.T) {
	pki := newPKI(t)
	r := startTLS(t, pki)
	for range 3 {
		name := pki.renew()
		r.hangup <- syscall.SIGHUP
		r.await("new certificates are active\" name="+name, 1)
		if got := presented(t, r.GRPCAddr()); got != name {
			t.Errorf("presented: %s, want %s", got, name)
		}
	}
	good := pki.renewed
	testkit.WriteFile(t, filepath.Join(pki.dir, "tls.key"), "nothing")
	r.hangup <- syscall.SIGHUP
	r.await("the certificates cannot be reloaded", 1)
	if got := presented(t, r.GRPCAddr()); got != fmt.Sprintf("broker-%d", good) {
		t.Errorf("presented: %s", got)
	}
}

func TestCertificatesAreReloadedOnChange(t *testing.T) {
	pki := newPKI(t)
	r := startTLS(t, pki)
	name := pki.renew()
	r.await("new certificates are active\" name="+name, 1)
	if got := presented(t, r.GRPCAddr()); got != name {
		t.Errorf("presented: %s", got)
	}
}

// An open watch ends when its caller's certificate is of nobody who is trusted any
// more, although nothing is sent.
func TestNewAuthoritiesEndUntrustedWatches(t *testing.T) {
	pki := newPKI(t)
	r := startTLS(t, pki)
	stream := watchOrders(t, r.GRPCAddr(), credentials.NewTLS(pki.client(checkoutID())))
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	pki.renew() // the authorities stay
	r.hangup <- syscall.SIGHUP
	r.await("new certificates are active", 1)
	pki.replaceCA()
	r.hangup <- syscall.SIGHUP
	r.await("new certificates are active", 2)
	if _, err := stream.Recv(); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "no longer trusts the authority") {
		t.Errorf("the watch: %v", err)
	}
}

func TestStart_invalidCertificates(t *testing.T) {
	pki := newPKI(t)
	for _, name := range []string{"tls.crt", "ca.crt"} {
		testkit.WriteFile(t, filepath.Join(pki.dir, name), "nothing")
	}
	text := strings.Replace(sampleText(t, 1), "listen: {", "listen: {"+pki.config()+", ", 1)
	_, err := app.New(parsed(t, text), app.Options{Logger: quiet()})
	if err == nil {
		t.Fatal("it started")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "listen.tls: "+pki.dir+"/tls.crt: it holds no certificate") || !strings.HasPrefix(lines[1], "listen.tls: "+pki.dir+"/ca.crt: it holds no certificate") {
		t.Error(err)
	}
}

func TestLiveCheck_certificates(t *testing.T) {
	idp, pki := devIDP(t), newPKI(t)
	config := parsed(t, strings.Replace(sampleText(t, 1), "listen: {", "listen: {"+pki.config()+", ", 1))
	passed, failed := live(t, config, idp.RoundTripper(), false)
	if found := passed["listen.tls"]; failed["listen.tls"] != "" || !strings.HasPrefix(found, "broker-1, until ") || !strings.Contains(found, `callers of "CN=ca", until `) {
		t.Errorf("all well: %q, %q", passed, failed)
	}
	if err := os.WriteFile(filepath.Join(pki.dir, "tls.key"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if passed, failed := live(t, config, idp.RoundTripper(), false); passed["listen.tls"] != "" || failed["listen.tls"] == "" {
		t.Errorf("without a key: %q, %q", passed, failed)
	}
}

// shortDir is a directory whose name leaves room for that of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tb") //nolint:usetesting // the test's own has its name in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// byUser is a configuration with a Unix socket and the caller who runs the test.
func byUser(t *testing.T, socket, more string) string {
	t.Helper()
	text := strings.Replace(sampleText(t, 1), "listen: {", "listen: {unix: {path: "+socket+more+"}, ", 1)
	return strings.Replace(text, "callers: [", fmt.Sprintf("callers: [{name: tester, uid: %d, roles: [all]}, ", os.Getuid()), 1)
}

func TestUnixSocketIdentifiesCallers(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(text string) string
		code   codes.Code
		says   string
	}{
		"the user is a caller": {func(text string) string { return text }, codes.OK, ""},
		"the user is not": {func(text string) string {
			return strings.Replace(text, fmt.Sprintf("uid: %d", os.Getuid()), "uid: 4711", 1)
		}, codes.Unauthenticated, fmt.Sprintf("user %d of this host matches no caller", os.Getuid())},
		"the socket is bound": {func(text string) string {
			text = strings.Replace(text, fmt.Sprintf("uid: %d", os.Getuid()), "uid: 4711", 1)
			return strings.Replace(text, "broker.sock}", "broker.sock, caller: everybody}", 1)
		}, codes.OK, ""},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(shortDir(t), "broker.sock")
			broker, _ := run(t, parsed(t, tt.change(byUser(t, socket, ""))), devIDP(t))
			_ = broker
			c, err := brokerclient.New("unix:"+socket, brokerclient.WithPlaintext())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if _, err := c.Token(t.Context(), "client-0"); status.Code(err) != tt.code || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error = %v", err)
			}
		})
	}
}

func TestUnixSocketModeAndRemoval(t *testing.T) {
	socket := filepath.Join(shortDir(t), "broker.sock")
	for mode, more := range map[os.FileMode]string{0o660: "", 0o600: `, mode: "0600"`} {
		broker, err := app.New(parsed(t, byUser(t, socket, more)), app.Options{Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Lstat(socket); err != nil || info.Mode() != os.ModeSocket|mode {
			t.Errorf("mode %v, want %v (%v)", info.Mode(), mode, err)
		}
		broker.Close()
		if left, err := os.ReadDir(filepath.Dir(socket)); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}

func TestUnixSocketInUseIsNotReplaced(t *testing.T) {
	socket := filepath.Join(shortDir(t), "broker.sock")
	start := func() (*app.App, error) {
		return app.New(parsed(t, byUser(t, socket, "")), app.Options{Logger: quiet()})
	}

	testkit.WriteFile(t, socket, "precious")
	if _, err := start(); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("a file is there: %v", err)
	}
	if data, err := os.ReadFile(socket); err != nil || string(data) != "precious" {
		t.Errorf("the file was touched: %q, %v", data, err)
	}
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}

	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := start(); err == nil || !strings.Contains(err.Error(), "another process serves at") {
		t.Errorf("somebody serves there: %v", err)
	}
	dead.SetUnlinkOnClose(false) // as after kill -9
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	first, err := start()
	if err != nil {
		t.Fatalf("nobody serves there: %v", err)
	}

	// Whoever took its place keeps it.
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	second, err := start()
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("the first broker removed the second one's socket: %v", err)
	}
	second.Close()
	third, err := start()
	if err != nil {
		t.Fatalf("after the second is gone: %v", err)
	}
	third.Close()
}

func TestUnidentifiableCallersAreWarnedOf(t *testing.T) {
	const roles = `roles: {all: {verify: [{issuer: "*"}]}}` + "\n" + `issuers: [{issuer: https://a.example.com, audiences: [a]}]` + "\n"
	pki := newPKI(t)
	for name, tt := range map[string]struct{ text, says string }{
		"a certificate that nobody asks for":  {"callers: [{name: a, dns_san: a, roles: [all]}]\n", "give listen.tls with client_ca"},
		"TLS without client_ca":               {"callers: [{name: a, dns_san: a, roles: [all]}]\nlisten: {tls: {cert: a, key: b}}\n", "give listen.tls with client_ca"},
		"a user without a socket":             {"callers: [{name: a, uid: 1, roles: [all]}]\n", "give listen.unix"},
		"JWTs in the clear":                   {"callers: [{name: a, issuer: https://a.example.com, subject: s, roles: [all]}]\nlisten: {grpc: {address: ':1', plaintext: true}}\n", "unencrypted"},
		"JWTs in the clear, on loopback only": {"callers: [{name: a, issuer: https://a.example.com, subject: s, roles: [all]}]\n", ""},
		"nothing is wrong":                    {"callers: [{name: a, dns_san: a, roles: [all]}]\nlisten: {" + pki.config() + "}\n", ""},
		"a DNS name by SPIFFE":                {"callers: [{name: a, dns_san: a, roles: [all]}]\nlisten: {tls: {spiffe: {socket: 'unix:///a'}}}\n", "uses only the SPIFFE ID of a certificate"},
		"a trust domain that is refused":      {"callers: [{name: a, spiffe_id: 'spiffe://b.org/a', roles: [all]}]\nlisten: {tls: {spiffe: {socket: 'unix:///a', trust_domains: [a.org]}}}\n", "add it to listen.tls.spiffe.trust_domains"},
		"a trust domain that is configured":   {"callers: [{name: a, spiffe_id: 'spiffe://a.org/a', roles: [all]}]\nlisten: {tls: {spiffe: {socket: 'unix:///a', trust_domains: [a.org]}}}\n", ""},
		"the broker's own trust domain":       {"callers: [{name: a, spiffe_id: 'spiffe://a.org/a', roles: [all]}]\nlisten: {tls: {spiffe: {socket: 'unix:///a'}}}\n", ""},
	} {
		warnings := parsed(t, roles+tt.text).Warnings
		if (len(warnings) == 0) != (tt.says == "") || len(warnings) > 0 && !strings.Contains(warnings[0].String(), tt.says) {
			t.Errorf("%s: %v", name, warnings)
		}
	}
}
