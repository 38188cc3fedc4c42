package redistest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Certificates are paths of PEM files: a CA, and the certificates that it signed for
// servers on the loopback interface and for clients.
type Certificates struct {
	CA                    string
	ServerCert, ServerKey string
	ClientCert, ClientKey string

	ca  *certificate
	dir string
}

// NewCertificates makes certificates with a new CA.
func NewCertificates(t testing.TB) *Certificates {
	t.Helper()
	dir := t.TempDir()
	ca := newCertificate(t, dir, "ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
	server := newCertificate(t, dir, "server", &x509.Certificate{
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		// A replica and a node of a cluster are clients of others as well.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ca)
	c := &Certificates{CA: ca.certFile, ServerCert: server.certFile, ServerKey: server.keyFile, ca: ca, dir: dir}
	c.RenewClient(t)
	return c
}

// RenewClient replaces the certificate for clients by another one, with another key.
func (c *Certificates) RenewClient(t testing.TB) {
	t.Helper()
	client := newCertificate(t, c.dir, "client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, c.ca)
	c.ClientCert, c.ClientKey = client.certFile, client.keyFile
}

// SelfSigned makes a self-signed certificate for clients.
func SelfSigned(t testing.TB) (certFile, keyFile string) {
	t.Helper()
	made := newCertificate(t, t.TempDir(), "self", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, nil)
	return made.certFile, made.keyFile
}

// Client returns the TLS configuration of a client.
func (c *Certificates) Client(t testing.TB) *tls.Config {
	t.Helper()
	own, err := tls.LoadX509KeyPair(c.ClientCert, c.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	config := c.Anonymous(t)
	config.Certificates = []tls.Certificate{own}
	return config
}

// Anonymous returns the TLS configuration of a client without a certificate.
func (c *Certificates) Anonymous(t testing.TB) *tls.Config {
	t.Helper()
	data, err := os.ReadFile(c.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		t.Fatalf("%s holds no certificate", c.CA)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

type certificate struct {
	parsed            *x509.Certificate
	key               *ecdsa.PrivateKey
	certFile, keyFile string
}

// newCertificate signs with the CA's key; without a CA, with the new key itself.
func newCertificate(t testing.TB, dir, name string, template *x509.Certificate, ca *certificate) *certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.Subject = pkix.Name{CommonName: name}
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(24 * time.Hour)
	cert := &certificate{parsed: template, key: key, certFile: filepath.Join(dir, name+".crt"), keyFile: filepath.Join(dir, name+".key")}
	if ca == nil {
		ca = cert
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.parsed, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, cert.certFile, "CERTIFICATE", der)
	writePEM(t, cert.keyFile, "PRIVATE KEY", keyDER)
	return cert
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
