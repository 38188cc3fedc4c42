package discovery

import (
	"context"
	"crypto/x509"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// CheckAddress returns the error of the dialer of [Network.ClientFor] for an address.
func CheckAddress(configured string, allowPrivate bool, addr string) error {
	return reachFor(configured, allowPrivate).check(netip.MustParseAddr(addr))
}

// NewProxiedClient returns the client of [Network.ClientFor] with a proxy of the
// environment.
func NewProxiedClient(configured string, allowPrivate bool, proxy *url.URL) *http.Client {
	return newHTTPClient(newGuard(reachFor(configured, allowPrivate), http.ProxyURL(proxy), nil))
}

// Trust adds an authority to a client of a [Network].
func Trust(client *http.Client, authority *x509.Certificate) {
	pool := x509.NewCertPool()
	pool.AddCert(authority)
	client.Transport.(*guard).direct.TLSClientConfig.RootCAs = pool
}

// Get is GetWithToken without a token.
func Get(ctx context.Context, client *http.Client, url string, limit int64) ([]byte, http.Header, error) {
	return GetWithToken(ctx, client, url, redact.String{}, limit)
}
