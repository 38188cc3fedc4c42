package discovery

import (
	"crypto/x509"
	"net/http"
	"net/netip"
	"net/url"
)

// Refuse is what the dialer of the client for that configuration says of an
// address.
func Refuse(configured string, allowPrivate bool, addr string) error {
	return reachOf(configured, allowPrivate).refuse(netip.MustParseAddr(addr))
}

// NewProxiedClient is the client for that configuration where the environment
// names a proxy.
func NewProxiedClient(configured string, allowPrivate bool, proxy *url.URL) *http.Client {
	return newHTTPClient(newGuard(reachOf(configured, allowPrivate), http.ProxyURL(proxy), nil))
}

// Trust makes a client of a [Network] trust an authority.
func Trust(client *http.Client, authority *x509.Certificate) {
	pool := x509.NewCertPool()
	pool.AddCert(authority)
	client.Transport.(*guard).direct.TLSClientConfig.RootCAs = pool
}
