package discovery_test

import (
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/discovery"
)

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestWithAuthorities_trustsThemOnly(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) }))
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.crt")
	write := func(data []byte) {
		t.Helper()
		if err := os.WriteFile(ca, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	good, other := pemOf(server.Certificate().Raw), pemOf(selfSigned(t, "another").Certificate[0])
	network := discovery.NewNetwork(nil)
	get := func(n *discovery.Network) error {
		client := n.ClientFor(server.URL, false)
		client.CloseIdleConnections()
		_, _, err := discovery.Get(t.Context(), client, server.URL, 100)
		return err
	}
	if err := get(network); err == nil || !strings.Contains(err.Error(), `"Acme Co"`) && !strings.Contains(err.Error(), "Acme Co") || !strings.Contains(err.Error(), "tls.ca") {
		t.Errorf("the system's authorities: %v", err)
	}
	write(good)
	trusting, err := network.WithAuthorities(ca)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := network.WithAuthorities(ca); again != trusting || err != nil {
		t.Errorf("another network for the same file: %v", err)
	}
	if err := get(trusting); err != nil || !trusting.AuthoritiesExpire().Equal(server.Certificate().NotAfter) {
		t.Errorf("the authority that is named: %v, until %v", err, trusting.AuthoritiesExpire())
	}
	if get(network) == nil {
		t.Error("the authority is trusted elsewhere, too")
	}
	// A change applies after two equal reads, and a bad file never applies.
	write(other)
	for want := range 2 {
		if changed, err := trusting.ReloadAuthorities(); changed != (want == 1) || err != nil {
			t.Errorf("reload %d: %v %v", want, changed, err)
		}
	}
	if err := get(trusting); err == nil {
		t.Error("an authority is trusted that is not in the file any more")
	}
	for _, bad := range []string{"", "no PEM", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		write([]byte(bad))
		if changed, err := trusting.ReloadAuthorities(); changed || err == nil || strings.Contains(err.Error(), "AAAA") {
			t.Errorf("%q: %v %v", bad, changed, err)
		}
	}
	write(good)
	_, _ = trusting.ReloadAuthorities()
	if changed, err := trusting.ReloadAuthorities(); !changed || err != nil {
		t.Errorf("%v %v", changed, err)
	}
	if err := get(trusting); err != nil {
		t.Errorf("the authority that came back: %v", err)
	}
}

func TestNoNetworkWithoutItsAuthorities(t *testing.T) {
	if _, err := discovery.NewNetwork(nil).WithAuthorities(filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Error("there is no file, and no error")
	}
}

// The environment's proxy is read once for each process, so the request is made in
// another one.
func TestRefusalOfTheProxyIsNamed(t *testing.T) {
	if proxied := os.Getenv("TEST_PROXIED"); proxied != "" {
		_, _, err := discovery.Get(t.Context(), discovery.NewNetwork(nil).ClientFor("https://idp.example.com", false), "https://idp.example.com/x", 100)
		if err == nil || !strings.Contains(err.Error(), proxied) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%v", err)
		}
		return
	}
	for status, says := range map[string]string{"407 Canary": "the proxy requires authentication (HTTP 407)", "502 Canary": "the proxy refuses to connect (HTTP 502)"} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = listener.Close() }()
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Read(make([]byte, 4096))
				_, _ = conn.Write([]byte("HTTP/1.1 " + status + "\r\nContent-Length: 0\r\nX-Echo: canary\r\n\r\n"))
				_ = conn.Close()
			}
		}()
		command := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestRefusalOfTheProxyIsNamed$")
		command.Env = append(os.Environ(), "TEST_PROXIED="+says, "HTTPS_PROXY=http://user:canary@"+listener.Addr().String(), "NO_PROXY=")
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("%s: %s", status, out)
		}
	}
}
