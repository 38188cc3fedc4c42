package discovery_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/discovery"
)

// local is a client that may connect to this host, as for an issuer that is
// here.
func local() *http.Client { return discovery.NewNetwork(nil).ClientFor("http://127.0.0.1", false) }

func isAddressError(err error) bool {
	_, ok := errors.AsType[*discovery.AddressError](err)
	return ok
}

// D2: the reach that each kind of address needs.
func TestReach_addresses(t *testing.T) {
	for needs, addresses := range map[string][]string{
		"nothing": {
			"93.184.216.34", "8.8.8.8", "172.15.255.255", "172.32.0.1", "100.63.255.255", "100.128.0.1", "169.253.1.1", "198.17.0.1", "223.255.255.255",
			"2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1",
		},
		"a loopback host": {
			"127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1", "2002:7f00:1::1", "::127.0.0.1",
		},
		"allow_private": {
			"10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "fc00::1", "fd00:ec2::254", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::1",
			"2002:a00:1::1", "::10.0.0.1", "100.64.0.1", "100.100.100.200", "100.127.255.255", "192.0.0.1", "198.18.0.1", "198.19.255.255", "fec0::1", "fec0::1%eth0", "::ffff:100.64.0.1",
		},
		"more than there is": {
			"169.254.169.254", "169.254.170.2", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "64:ff9b::169.254.169.254", "2002:a9fe:a9fe::1", "::169.254.169.254",
			"0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "239.255.255.250", "ff02::1", "ff05::2", "ff0e::1", "240.0.0.1", "255.255.255.255", "::ffff:240.0.0.1",
		},
	} {
		for _, addr := range addresses {
			for name, tt := range map[string]struct {
				configured   string
				allowPrivate bool
				reaches      []string
			}{
				"public":   {"https://idp.example", false, []string{"nothing"}},
				"loopback": {"http://localhost:9000", false, []string{"nothing", "a loopback host"}},
				"private":  {"https://idp.example", true, []string{"nothing", "a loopback host", "allow_private"}},
			} {
				err := discovery.CheckAddress(tt.configured, tt.allowPrivate, addr)
				if admitted := strings.Contains(fmt.Sprint(tt.reaches), needs); (err == nil) != admitted {
					t.Errorf("%s, which needs %s, by the client for a %s configuration: %v", addr, needs, name, err)
				}
				if err != nil && (!isAddressError(err) || strings.Contains(err.Error(), "allow_private") != (needs != "more than there is")) {
					t.Errorf("%s: %v", addr, err)
				}
			}
		}
	}
}

func TestCheckAddress_loopback(t *testing.T) {
	for configured, want := range map[string]bool{
		"http://localhost:1": true, "http://LOCALHOST": true, "http://127.0.0.2:8080/x": true, "http://[::1]": true,
		"https://localhost.example": false, "https://127.0.0.1.nip.example": false, "https://idp.example/127.0.0.1": false, "https://idp.example@127.0.0.1.example": false, "%zz": false,
	} {
		if err := discovery.CheckAddress(configured, false, "127.0.0.1"); (err == nil) != want {
			t.Errorf("%s: %v", configured, err)
		}
	}
}

func TestCheckHost(t *testing.T) {
	for configured, want := range map[string]bool{
		"https://idp.example": true, "http://127.0.0.1:9000": true, "http://localhost": true, "https://8.8.8.8": true, "%zz": true,
		"https://10.0.0.1": false, "https://[fd00::1]/x": false, "https://169.254.169.254": false, "https://0.0.0.0": false,
	} {
		if err := discovery.CheckHost(configured, false); (err == nil) != want || err != nil && !isAddressError(err) {
			t.Errorf("%s: %v", configured, err)
		}
	}
	if err := discovery.CheckHost("https://10.0.0.1", true); err != nil {
		t.Errorf("private and allowed: %v", err)
	}
	if discovery.CheckHost("https://169.254.169.254", true) == nil {
		t.Error("link-local became allowed with private")
	}
}

// server counts the requests and connections that reach it.
func server(t *testing.T) (url string, requests func() int) {
	t.Helper()
	var mu sync.Mutex
	count := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		count++
		_, _ = io.WriteString(w, "{}")
	}))
	t.Cleanup(s.Close)
	return s.URL, func() int {
		mu.Lock()
		defer mu.Unlock()
		return count
	}
}

func get(t *testing.T, client *http.Client, url string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, _, err := discovery.Get(ctx, client, url, 100)
	return err
}

// D2: addresses are refused in every notation, and behind names.
func TestPrivateServersAreNotReached(t *testing.T) {
	server, requests := server(t)
	port := server[strings.LastIndexByte(server, ':'):]
	client := discovery.NewNetwork(nil).ClientFor("https://idp.example", false)
	for _, host := range []string{"127.0.0.1", "localhost", "LocalHost", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0", "[::]", "127.1", "2130706433", "10.0.0.1", "169.254.169.254"} {
		err := get(t, client, "http://"+host+port)
		fault := faultOf(t, err)
		// Go resolves a text that it does not parse as an address, which may fail.
		if name := host == "127.1" || host == "2130706433"; !name && (!isAddressError(err) || fault.Unreachable) {
			t.Errorf("%s: unreachable = %v: %v", host, fault.Unreachable, err)
		}
	}
	if n := requests(); n != 0 {
		t.Errorf("%d requests reached a private server", n)
	}
	if err := get(t, discovery.NewNetwork(nil).ClientFor("http://localhost", false), server); err != nil {
		t.Errorf("for an issuer on this host: %v", err)
	}
}

// The permission of one issuer does not extend to another: not through the same Network, and
// not over an idle connection of the first.
func TestAllowPrivate_perIssuer(t *testing.T) {
	server, requests := server(t)
	network := discovery.NewNetwork(nil)
	permitted, other := network.ClientFor("https://internal.example", true), network.ClientFor("https://idp.example", false)
	for range 3 {
		if err := get(t, permitted, server); err != nil {
			t.Fatal(err)
		}
		if err := get(t, other, server); !isAddressError(err) {
			t.Errorf("an issuer without leave: %v", err)
		}
	}
	if n := requests(); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
}

// resolveAll makes every name resolve to what resolve says. It is not for
// parallel tests.
func resolveAll(t *testing.T, resolve func() netip.Addr) {
	t.Helper()
	conn, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp4", conn.LocalAddr().String())
	}}
	t.Cleanup(func() { net.DefaultResolver = before; _ = conn.Close() })
	go func() {
		query := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(query)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(dnsAnswer(query[:n], resolve), from)
		}
	}()
}

// dnsAnswer answers a query for A records with one address, and other queries with none (RFC
// 1035 section 4).
func dnsAnswer(query []byte, resolve func() netip.Addr) []byte {
	end := 12
	for query[end] != 0 {
		end += 1 + int(query[end])
	}
	end += 5
	answer := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, query[12:end]...)
	if binary.BigEndian.Uint16(query[end-4:]) == 1 {
		answer[7] = 1
		answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
		answer = append(answer, resolve().AsSlice()...)
	}
	return answer
}

// D2: the addresses of a name are checked at each connection.
func TestNamesOfPrivateAddressesAreRefused(t *testing.T) {
	server, requests := server(t)
	port := server[strings.LastIndexByte(server, ':'):]
	var lookups atomic.Int32
	var to atomic.Value
	resolveAll(t, func() netip.Addr {
		lookups.Add(1)
		return to.Load().(netip.Addr)
	})
	network := discovery.NewNetwork(nil)
	client := network.ClientFor("https://idp.example", false)
	for _, addr := range []string{"127.0.0.1", "10.0.0.1", "169.254.169.254", "127.0.0.1"} {
		to.Store(netip.MustParseAddr(addr))
		if err := get(t, client, "http://rebinding.example"+port); !isAddressError(err) {
			t.Errorf("a name of %s: %v", addr, err)
		}
	}
	if err := get(t, network.ClientFor("https://idp.example", true), "http://rebinding.example"+port); err != nil {
		t.Errorf("a name of a loopback address, with leave: %v", err)
	}
	if n := lookups.Load(); n < 5 || requests() != 1 {
		t.Errorf("%d lookups, %d requests: the test tests nothing", n, requests())
	}
}

// D2: a proxy may have a private address; the target of a request through it may not.
func TestProxyMayBePrivateAndItsTargetsNot(t *testing.T) {
	server, requests := server(t)
	proxy, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	client := discovery.NewProxiedClient("https://idp.example", false, proxy)
	if err := get(t, client, "http://idp.example/x"); err != nil {
		t.Errorf("through a proxy on this host: %v", err)
	}
	for _, target := range []string{"http://10.0.0.1", "http://169.254.169.254/latest", "http://localhost:1", "http://[fd00::1]"} {
		if err := get(t, client, target); !isAddressError(err) {
			t.Errorf("%s through a proxy: %v", target, err)
		}
	}
	if n := requests(); n != 1 {
		t.Errorf("%d requests reached the proxy, want 1", n)
	}
	if err := get(t, discovery.NewProxiedClient("https://idp.example", true, proxy), "http://10.0.0.1"); err != nil {
		t.Errorf("a private target through a proxy, with leave: %v", err)
	}
}

// D2: an issuer's document may name other hosts, and none that are private.
func TestDocumentMayNotNamePrivateEndpoints(t *testing.T) {
	find := func(cfg discovery.Config, endpoint string) error {
		page := strings.Replace(documentOf(cfg.Issuer), "https://idp.example/keys", endpoint, 1)
		cfg.HTTP = discovery.NewHTTPClient(&site{pages: map[string]string{oidc: page}})
		metadata, err := discovery.New(cfg).Metadata(t.Context())
		if err == nil {
			_, err = metadata.JWKSURI.URL()
		}
		return err
	}
	for _, endpoint := range []string{
		"https://10.0.0.1/keys", "https://192.168.1.1/keys", "https://169.254.169.254/keys", "https://127.0.0.1/keys", "https://localhost/keys", "https://[::1]/keys",
		"https://[fd00::1]/keys", "https://[::ffff:10.0.0.1]/keys", "https://0.0.0.0/keys",
	} {
		if err := find(discovery.Config{Issuer: issuer}, endpoint); !isAddressError(err) && (err == nil || !strings.Contains(err.Error(), "an invalid jwks_uri")) {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
	for endpoint, cfg := range map[string]discovery.Config{
		"https://keys.example/keys":  {Issuer: issuer},
		"https://10.0.0.1/keys":      {Issuer: issuer, AllowPrivate: true},
		"https://localhost/keys":     {Issuer: issuer, AllowPrivate: true},
		"http://127.0.0.1:9001/keys": {Issuer: "http://127.0.0.1:9000"},
	} {
		if err := find(cfg, endpoint); err != nil {
			t.Errorf("%s by %+v: %v", endpoint, cfg, err)
		}
	}
	if find(discovery.Config{Issuer: "http://127.0.0.1:9000"}, "https://10.0.0.1/keys") == nil {
		t.Error("an issuer on this host names a private endpoint")
	}
}
