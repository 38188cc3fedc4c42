package redistest

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"path/filepath"
	"testing"

	"github.com/cezzis/tokenbroker/internal/devca"
)

// Certificates are paths of PEM files: a CA, and the certificates that it signed for
// servers on the loopback interface and for clients.
type Certificates struct {
	CA                    string
	ServerCert, ServerKey string
	ClientCert, ClientKey string

	authority *devca.Authority
}

// NewCertificates makes certificates with a new CA.
func NewCertificates(t testing.TB) *Certificates {
	t.Helper()
	authority, err := devca.New("ca")
	if err != nil {
		t.Fatal(err)
	}
	c := &Certificates{authority: authority}
	if c.CA, err = authority.Write(t.TempDir(), "ca"); err != nil {
		t.Fatal(err)
	}
	// A replica and a node of a cluster are clients of others as well.
	c.ServerCert, c.ServerKey = c.issue(t, "server", &x509.Certificate{
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	c.RenewClient(t)
	return c
}

// RenewClient replaces the certificate for clients by another one, with another key.
func (c *Certificates) RenewClient(t testing.TB) {
	t.Helper()
	c.ClientCert, c.ClientKey = c.issue(t, "client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

func (c *Certificates) issue(t testing.TB, name string, template *x509.Certificate) (certFile, keyFile string) {
	t.Helper()
	template.Subject = pkix.Name{CommonName: name}
	pair, err := c.authority.Issue(template)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile, err = pair.Write(filepath.Dir(c.CA), name)
	if err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile
}

// Client returns the TLS configuration of a client.
func (c *Certificates) Client(t testing.TB) *tls.Config {
	t.Helper()
	own, err := tls.LoadX509KeyPair(c.ClientCert, c.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	config := c.Anonymous()
	config.Certificates = []tls.Certificate{own}
	return config
}

// Anonymous returns the TLS configuration of a client without a certificate.
func (c *Certificates) Anonymous() *tls.Config {
	return &tls.Config{RootCAs: c.authority.Pool(), MinVersion: tls.VersionTLS12}
}
