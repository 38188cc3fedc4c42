package discovery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cezzis/tokenbroker/internal/tracing"
)

// Bounds of connections.
const (
	connectTimeout = 2 * time.Second
	// maxConnsPerHost prevents a flood of connections to one IdP when many tokens
	// expire at the same time.
	maxConnsPerHost = 32
	maxHeader       = 64 << 10 // bytes
)

// Network connects to IdPs and issuers. An issuer's metadata, or an attacker with control
// over its DNS, must not direct the broker to servers that only the broker can reach
// (server-side request forgery). So the Network checks each address when it connects,
// after the name was resolved; DNS rebinding does not bypass this check.
//
// Clients of different reach share no connections. A Network is safe for concurrent use.
type Network struct {
	clients   [never]*http.Client // by reach
	transport http.RoundTripper   // replaces all connections in tests; nil: real connections
	tracer    *tracing.Tracer     // nil: no spans
	count     func(tracing.Name)  // counts requests; nil: Observe was not called
	// authorities replace the trusted authorities of the system; nil: they do not.
	authorities *authorities

	mu              sync.Mutex
	withAuthorities map[string]*Network // by the file of authorities
}

// NewNetwork returns a Network. A non-nil transport replaces all connections, for tests;
// then no address is checked.
func NewNetwork(transport http.RoundTripper) *Network { return newNetwork(transport, nil) }

func newNetwork(transport http.RoundTripper, trusted *authorities) *Network {
	n := &Network{transport: transport, authorities: trusted}
	for r := range n.clients {
		clientTransport := transport
		if clientTransport == nil {
			clientTransport = n.newTransport(reach(r), nil)
		}
		n.clients[r] = newHTTPClient(clientTransport)
	}
	return n
}

// newTransport returns a transport for connections within a reach.
func (n *Network) newTransport(r reach, certificate *tls.Certificate) http.RoundTripper {
	if n.authorities == nil {
		return newGuard(r, http.ProxyFromEnvironment, certificate)
	}
	return &reloadingGuard{authorities: n.authorities, newGuard: func(roots *x509.CertPool) *guard {
		g := newGuard(r, http.ProxyFromEnvironment, certificate)
		g.direct.TLSClientConfig.RootCAs = roots
		g.proxied.TLSClientConfig.RootCAs = roots
		return g
	}}
}

// ClientFor returns the client for requests to the configured URL and to the URLs in its
// metadata. It connects to public addresses; also to loopback addresses if the
// configured host is one; and to loopback and private addresses if allowPrivate is set.
// It never connects to link-local addresses, where clouds serve the credentials of a
// machine, nor to multicast, unspecified and reserved addresses.
//
// It follows no redirects: a redirect could carry a secret to another host, or let
// another host answer for the configured one. It requires TLS 1.2, takes at most 2 s to
// connect and 2 s for the handshake, reads at most 64 KiB of header, and opens at most
// 32 connections to a host; further requests wait. An idle connection is kept for 30 s.
// Requests have no timeout otherwise: callers must set one by the context.
//
// It uses the proxy of the environment (HTTPS_PROXY, NO_PROXY), because some networks
// require one, and a proxy sees only the host name of an https request. Requests to
// loopback hosts never use it. With a proxy only literal addresses in URLs are checked,
// because the proxy resolves the names.
func (n *Network) ClientFor(configured string, allowPrivate bool) *http.Client {
	return n.clients[reachFor(configured, allowPrivate)]
}

// ClientWith is ClientFor with a client certificate for every server that requests one
// (RFC 8705 section 2). Each call returns a client with its own connections, because a
// connection keeps its certificate. Close its idle connections after use.
func (n *Network) ClientWith(configured string, allowPrivate bool, certificate tls.Certificate) *http.Client {
	if n.transport != nil {
		return n.observe(newHTTPClient(n.transport))
	}
	return n.observe(newHTTPClient(n.newTransport(reachFor(configured, allowPrivate), &certificate)))
}

// NewHTTPClient returns a client like that of [Network.ClientFor] over a transport, for
// tests. Nil: connections to public addresses only.
func NewHTTPClient(transport http.RoundTripper) *http.Client {
	if transport == nil {
		transport = newGuard(public, http.ProxyFromEnvironment, nil)
	}
	return newHTTPClient(transport)
}

func newHTTPClient(transport http.RoundTripper) *http.Client {
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// guard is a transport that connects only to addresses within its reach.
type guard struct {
	reach           reach
	proxy           func(*http.Request) (*url.URL, error)
	direct, proxied *http.Transport
}

func newGuard(r reach, proxy func(*http.Request) (*url.URL, error), certificate *tls.Certificate) *guard {
	g := &guard{
		reach:   r,
		proxy:   proxy,
		direct:  newTransport(nil, r.control),
		proxied: newTransport(proxy, nil), // the operator chose the proxy, so it may have any address
	}
	if certificate != nil {
		// The authorities that the server names are ignored: no authority issued a
		// self-signed certificate, and the server may know it nevertheless.
		present := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
		g.direct.TLSClientConfig.GetClientCertificate = present
		g.proxied.TLSClientConfig.GetClientCertificate = present
	}
	return g
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	proxy, err := g.proxy(r)
	if err == nil && proxy == nil {
		return g.direct.RoundTrip(r)
	}
	if err == nil {
		err = g.reach.checkHost(r.URL.Hostname())
	}
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	return g.proxied.RoundTrip(r)
}

// CloseIdleConnections is called by [http.Client.CloseIdleConnections].
func (g *guard) CloseIdleConnections() {
	g.direct.CloseIdleConnections()
	g.proxied.CloseIdleConnections()
}

// control is the type of [net.Dialer.ControlContext], which is called with the address
// before each connection.
type control func(ctx context.Context, network, address string, conn syscall.RawConn) error

func newTransport(proxy func(*http.Request) (*url.URL, error), check control) *http.Transport {
	return &http.Transport{
		Proxy:               proxy,
		DialContext:         (&net.Dialer{Timeout: connectTimeout, ControlContext: check}).DialContext,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: connectTimeout,
		MaxConnsPerHost:     maxConnsPerHost,
		// All open connections may be idle. With a lower bound, a busy broker would
		// close and reopen connections all the time.
		MaxIdleConnsPerHost: maxConnsPerHost,
		// Less than 60 s, after which common load balancers silently drop an idle
		// connection.
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: maxHeader,
		// ReadBody decompresses within a limit.
		DisableCompression: true,
		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *http.Request, response *http.Response) error {
			if response.StatusCode == http.StatusOK {
				return nil
			}
			return &ProxyError{Status: response.StatusCode}
		},
		ForceAttemptHTTP2: true,
		// Without pings, requests use a dead connection until the kernel closes it
		// after 15 minutes.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 3 * time.Second},
	}
}

// reach states which addresses a client may connect to. Each reach includes the ones
// before it.
type reach int

const (
	public  reach = iota // public addresses only
	local                // also loopback addresses
	private              // also private addresses
	never                // no client has this reach
)

func reachFor(configured string, allowPrivate bool) reach {
	u, err := url.Parse(configured)
	switch {
	case allowPrivate:
		return private
	case err == nil && loopback(u.Hostname()):
		return local
	default:
		return public
	}
}

func (r reach) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return &AddressError{kind: "an unknown kind of"}
	}
	return r.check(to.Addr())
}

// check returns an [*AddressError] for an address outside the reach.
func (r reach) check(addr netip.Addr) error {
	kind, needs := classify(addr)
	if r < needs {
		return &AddressError{kind: kind, permittable: needs < never}
	}
	return nil
}

// checkHost is check for the host of a URL. It does not resolve names; control checks
// their addresses.
func (r reach) checkHost(host string) error {
	if strings.EqualFold(host, "localhost") {
		return r.check(netip.IPv6Loopback())
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return r.check(addr)
	}
	return nil
}

// AddressError means that the broker does not connect to an address, because it is not
// public. The error does not quote the address.
type AddressError struct {
	kind        string // with its article
	permittable bool   // allow_private permits it
}

func (e *AddressError) Error() string {
	if e.permittable {
		return "it is " + e.kind + " address: to allow it, set allow_private: true"
	}
	return "it is " + e.kind + " address, which is never allowed"
}

// ProxyError means that the environment's proxy refused to connect to a host.
type ProxyError struct {
	// Status is the HTTP status of the proxy's response.
	Status int
}

func (e *ProxyError) Error() string {
	if e.Status == http.StatusProxyAuthRequired {
		return "the proxy requires authentication (HTTP 407): add user and password to HTTPS_PROXY, or the host to NO_PROXY"
	}
	return fmt.Sprintf("the proxy refuses to connect (HTTP %d): see the log of the proxy (HTTPS_PROXY), or add the host to NO_PROXY", e.Status)
}

// Permanent reports whether another attempt would fail too until the configuration of
// the broker or the proxy changes.
func (e *ProxyError) Permanent() bool { return e.Status < http.StatusInternalServerError }

// CheckHost returns an [*AddressError] for a configured URL whose host is an address that
// the client of [Network.ClientFor] would not connect to. It does not resolve names.
func CheckHost(configured string, allowPrivate bool) error {
	if u, err := url.Parse(configured); err == nil { // CheckURL reports an invalid URL
		return reachFor(configured, allowPrivate).checkHost(u.Hostname())
	}
	return nil
}

// special lists address ranges that net/netip does not classify. They are not on the
// Internet (RFC 6890), or only through a local translator.
//
//nolint:gochecknoglobals // a constant table
var special = []struct {
	prefix netip.Prefix
	kind   string
	needs  reach
}{
	{netip.MustParsePrefix("100.64.0.0/10"), "a shared (carrier's)", private},
	{netip.MustParsePrefix("192.0.0.0/24"), "a special-purpose", private},
	{netip.MustParsePrefix("198.18.0.0/15"), "a special-purpose", private},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "a locally translated", private},
	{netip.MustParsePrefix("fec0::/10"), "a site-local", private},
	{netip.MustParsePrefix("0.0.0.0/8"), "an unspecified", never},
	{netip.MustParsePrefix("240.0.0.0/4"), "a reserved", never},
}

// classify returns the kind of an address and the reach that is necessary for it.
func classify(addr netip.Addr) (kind string, needs reach) {
	addr = embeddedIPv4(addr.WithZone("").Unmap())
	switch {
	case addr.IsUnspecified():
		return "an unspecified", never
	case addr.IsMulticast():
		return "a multicast", never
	case addr.IsLinkLocalUnicast():
		return "a link-local", never
	case addr.IsLoopback():
		return "a loopback", local
	case addr.IsPrivate():
		return "a private", private
	}
	for _, s := range special {
		if s.prefix.Contains(addr) {
			return s.kind, s.needs
		}
	}
	return "a public", public
}

// embeddedIPv4 returns the IPv4 address to which a translator or tunnel maps an IPv6
// address: NAT64 (RFC 6052), 6to4 (RFC 3056), or IPv4-compatible (RFC 4291 section
// 2.5.5.1). It returns any other address unchanged.
func embeddedIPv4(addr netip.Addr) netip.Addr {
	if addr.Is4() || addr == netip.IPv6Loopback() || addr == netip.IPv6Unspecified() {
		return addr
	}
	b := addr.As16()
	switch {
	case netip.MustParsePrefix("64:ff9b::/96").Contains(addr), netip.MustParsePrefix("::/96").Contains(addr):
		return netip.AddrFrom4([4]byte(b[12:]))
	case netip.MustParsePrefix("2002::/16").Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:6]))
	default:
		return addr
	}
}
