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
	// A fleet of keys that expire together must not become a flood of
	// connections to one IdP.
	maxConnsPerHost = 32
	maxHeader       = 64 << 10
)

// Network connects to IdPs and issuers, and to nothing that they may not name:
// what an issuer publishes, or whoever speaks for its DNS, must not lead the
// broker to what only the broker can reach. Each address is checked when the
// connection to it is made, after its name was resolved, so that a name that
// changes its mind does not help.
//
// Clients of different reach share no connections. A Network is safe for
// concurrent use.
type Network struct {
	clients   [never]*http.Client // by reach
	transport http.RoundTripper   // in place of connections; nil: none is
	tracer    *tracing.Tracer     // nil: there are no spans
	// authorities are trusted in place of those of the system; nil: the latter are.
	authorities *authorities

	mu       sync.Mutex
	trusting map[string]*Network // by the file of their authorities
}

// NewNetwork returns a Network. A transport that is not nil is used in place of
// connections, and then no address is checked; tests do so.
func NewNetwork(transport http.RoundTripper) *Network { return newNetwork(transport, nil) }

func newNetwork(transport http.RoundTripper, trusted *authorities) *Network {
	n := &Network{transport: transport, authorities: trusted}
	for r := range n.clients {
		way := transport
		if way == nil {
			way = n.way(reach(r), nil)
		}
		n.clients[r] = newHTTPClient(way)
	}
	return n
}

// way is how requests get to addresses within a reach.
func (n *Network) way(r reach, certificate *tls.Certificate) http.RoundTripper {
	if n.authorities == nil {
		return newGuard(r, http.ProxyFromEnvironment, certificate)
	}
	return &renewing{authorities: n.authorities, make: func(roots *x509.CertPool) *guard {
		g := newGuard(r, http.ProxyFromEnvironment, certificate)
		g.direct.TLSClientConfig.RootCAs = roots
		g.proxied.TLSClientConfig.RootCAs = roots
		return g
	}}
}

// ClientFor returns the client for requests to the configured URL, and to what
// is found by it. Its connections go to public addresses; to loopback addresses
// too if the URL's host is one; and to loopback and private ones if allowPrivate
// is set. Those that are link-local, which is where clouds hand out the
// credentials of a machine, and multicast, unspecified and reserved ones are
// never connected to.
//
// It follows no redirect: one would carry a secret to another host, or let
// another host speak for the one that was configured. It speaks TLS 1.2 or
// later, takes 2 s at most to connect and 2 s to shake hands, reads 64 KiB of
// header, and opens 32 connections to a host; more requests wait. Each connection
// is kept for the next request, for 30 s at most. There is no timeout beyond
// that: callers bound each request by its context.
//
// The environment's proxy (HTTPS_PROXY, NO_PROXY) is honoured, because some
// networks let nothing out without it and a proxy sees of https no more than
// the host's name. Loopback hosts are never proxied. It is the proxy that
// resolves names then, so that of the addresses only those can be checked that
// are written into a URL.
func (n *Network) ClientFor(configured string, allowPrivate bool) *http.Client {
	return n.clients[reachOf(configured, allowPrivate)]
}

// ClientWith is ClientFor with a certificate that is presented to every server
// that asks for one (RFC 8705 section 2). Each call makes a client with
// connections of its own, because a connection goes on with the certificate
// that it began with; whoever no longer needs it closes those that are idle.
func (n *Network) ClientWith(configured string, allowPrivate bool, certificate tls.Certificate) *http.Client {
	if n.transport != nil {
		return n.trace(newHTTPClient(n.transport))
	}
	return n.trace(newHTTPClient(n.way(reachOf(configured, allowPrivate), &certificate)))
}

// NewHTTPClient returns a client such as [Network.ClientFor] does, over a
// transport; tests need that. Nil: the network, public addresses only.
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

// guard makes connections to the addresses in its reach.
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
		proxied: newTransport(proxy, nil), // the proxy is the operator's own choice, and may be anywhere
	}
	if certificate != nil {
		// Whatever authorities the server names: a self-signed certificate comes
		// from none of them, and the server knows it by other means.
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
		err = g.reach.refuseHost(r.URL.Hostname())
	}
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	return g.proxied.RoundTrip(r)
}

// CloseIdleConnections lets http.Client close them.
func (g *guard) CloseIdleConnections() {
	g.direct.CloseIdleConnections()
	g.proxied.CloseIdleConnections()
}

// control is what a net.Dialer calls before it connects, with an address.
type control func(ctx context.Context, network, address string, conn syscall.RawConn) error

func newTransport(proxy func(*http.Request) (*url.URL, error), check control) *http.Transport {
	return &http.Transport{
		Proxy:               proxy,
		DialContext:         (&net.Dialer{Timeout: connectTimeout, ControlContext: check}).DialContext,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: connectTimeout,
		MaxConnsPerHost:     maxConnsPerHost,
		// Each connection that may be open may also wait for the next request:
		// where fewer may, a busy broker closes connections and shakes hands anew
		// all the time.
		MaxIdleConnsPerHost: maxConnsPerHost,
		// Less than the 60 s after which common load balancers drop an idle
		// connection without a word.
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: maxHeader,
		// A small body must not unpack into a large one.
		DisableCompression: true,
		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *http.Request, response *http.Response) error {
			if response.StatusCode == http.StatusOK {
				return nil
			}
			return &ProxyError{Status: response.StatusCode}
		},
		ForceAttemptHTTP2: true,
		// Without pings a connection that went silent is used until the kernel
		// gives it up, after a quarter of an hour.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 3 * time.Second},
	}
}

// reach is which addresses may be connected to. Each includes the one before.
type reach int

const (
	public  reach = iota
	local         // and loopback ones
	private       // and private ones
	never         // beyond all
)

func reachOf(configured string, allowPrivate bool) reach {
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
	return r.refuse(to.Addr())
}

// refuse returns why an address is not connected to, as an [*AddressError].
func (r reach) refuse(addr netip.Addr) error {
	kind, needs := kindOf(addr)
	if r < needs {
		return &AddressError{kind: kind, liftable: needs < never}
	}
	return nil
}

// refuseHost is refuse for a host of a URL. Names are not resolved: what they
// stand for is known when the connection is made.
func (r reach) refuseHost(host string) error {
	if strings.EqualFold(host, "localhost") {
		return r.refuse(netip.IPv6Loopback())
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return r.refuse(addr)
	}
	return nil
}

// AddressError refuses an address that is not public. It does not repeat it.
type AddressError struct {
	kind     string // with its article
	liftable bool   // by allow_private
}

func (e *AddressError) Error() string {
	if e.liftable {
		return "it is " + e.kind + " address: if the broker is meant to connect there, say allow_private: true"
	}
	return "it is " + e.kind + " address, and such are never connected to"
}

// ProxyError is the refusal of the environment's proxy to connect to a host.
type ProxyError struct {
	// Status is that of the proxy's answer.
	Status int
}

func (e *ProxyError) Error() string {
	if e.Status == http.StatusProxyAuthRequired {
		return "the proxy on the way demands authentication (HTTP 407): give its user and password in HTTPS_PROXY, or name the host in NO_PROXY"
	}
	return fmt.Sprintf("the proxy on the way refuses to connect (HTTP %d): see the log of the proxy (HTTPS_PROXY), or name the host in NO_PROXY", e.Status)
}

// Lasting reports whether trying again does not help until somebody changes something.
func (e *ProxyError) Lasting() bool { return e.Status < http.StatusInternalServerError }

// CheckHost returns an error for a configured URL whose host is an address that
// would never be connected to, as an [*AddressError].
func CheckHost(configured string, allowPrivate bool) error {
	if u, err := url.Parse(configured); err == nil { // CheckURL says so if it is not
		return reachOf(configured, allowPrivate).refuseHost(u.Hostname())
	}
	return nil
}

// special are addresses beyond those that net/netip knows, which are not on the
// Internet (RFC 6890) or are so only by way of a translator of one's own.
//
//nolint:gochecknoglobals // a table that nothing writes
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

// kindOf says what an address is, and which reach it takes to connect to it.
func kindOf(addr netip.Addr) (kind string, needs reach) {
	addr = carried(addr.WithZone("").Unmap())
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

// carried returns the IPv4 address that an IPv6 address stands for where a
// translator or a tunnel is on the way: NAT64 (RFC 6052), 6to4 (RFC 3056), and
// the old form with 96 bits of zero (RFC 4291 section 2.5.5.1).
func carried(addr netip.Addr) netip.Addr {
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
