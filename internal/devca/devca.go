// Package devca is a certificate authority for "broker dev" and for tests. It issues any
// certificate, including expired ones and ones with the names of others. Its key exists
// in memory only.
package devca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Lifetime is the default lifetime of certificates.
const Lifetime = 365 * 24 * time.Hour

// backdated is subtracted from the start of certificates, because clocks differ.
const backdated = time.Hour

// Authority issues certificates.
type Authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	above       [][]byte // this authority and those above it, without the root
}

// New returns a self-signed root authority that is valid for Lifetime.
func New(name string) (*Authority, error) { return newAuthority(name, time.Time{}, nil) }

// Below returns an intermediate authority that this one issues. It expires at until,
// which defaults to Lifetime from now.
func (a *Authority) Below(name string, until time.Time) (*Authority, error) {
	return newAuthority(name, until, a)
}

func newAuthority(name string, until time.Time, by *Authority) (*Authority, error) {
	pair, err := issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, by)
	if err != nil {
		return nil, err
	}
	a := &Authority{certificate: pair.certificate, key: pair.key}
	if by != nil {
		a.above = slices.Concat([][]byte{pair.certificate.Raw}, by.above)
	}
	return a, nil
}

// Certificate returns the certificate of the authority.
func (a *Authority) Certificate() *x509.Certificate { return a.certificate }

// PEM returns the certificate of the authority in PEM.
func (a *Authority) PEM() []byte { return certificatePEM(a.certificate.Raw) }

// Pool returns a pool with only this authority.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

// Issue returns a certificate with the values of template and a new key. By default it
// is valid from now for Lifetime, for servers and clients.
func (a *Authority) Issue(template *x509.Certificate) (*Pair, error) { return issue(template, a) }

// SelfSigned returns a certificate that its own key signs.
func SelfSigned(template *x509.Certificate) (*Pair, error) { return issue(template, nil) }

// Pair is a certificate and its key.
type Pair struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	above       [][]byte
}

func issue(template *x509.Certificate, by *Authority) (*Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	full := *template
	if full.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, err
	}
	if full.NotBefore.IsZero() {
		full.NotBefore = time.Now().Add(-backdated)
	}
	if full.NotAfter.IsZero() {
		full.NotAfter = full.NotBefore.Add(backdated + Lifetime)
	}
	if !full.IsCA && full.ExtKeyUsage == nil {
		full.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	pair := &Pair{key: key}
	parent, signer := &full, key
	if by != nil {
		parent, signer, pair.above = by.certificate, by.key, by.above
	}
	der, err := x509.CreateCertificate(rand.Reader, &full, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, err
	}
	pair.certificate, err = x509.ParseCertificate(der)
	return pair, err
}

// Certificate returns the certificate.
func (p *Pair) Certificate() *x509.Certificate { return p.certificate }

// TLS returns the pair for package tls, with its intermediate authorities.
func (p *Pair) TLS() tls.Certificate {
	return tls.Certificate{Certificate: p.chain(), PrivateKey: p.key, Leaf: p.certificate}
}

func (p *Pair) chain() [][]byte { return slices.Concat([][]byte{p.certificate.Raw}, p.above) }

// CertPEM returns the certificate and then its intermediate authorities in PEM.
func (p *Pair) CertPEM() []byte {
	var text []byte
	for _, der := range p.chain() {
		text = append(text, certificatePEM(der)...)
	}
	return text
}

// KeyPEM returns the private key in PEM.
func (p *Pair) KeyPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Write writes the pair to NAME.crt and NAME.key in dir. It replaces each file
// atomically, but not both at once.
func (p *Pair) Write(dir, name string) (cert, key string, err error) {
	text, err := p.KeyPEM()
	if err != nil {
		return "", "", err
	}
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	return cert, key, errors.Join(replace(cert, p.CertPEM()), replace(key, text))
}

// Write writes the certificate of the authority to NAME.crt in dir.
func (a *Authority) Write(dir, name string) (cert string, err error) {
	cert = filepath.Join(dir, name+".crt")
	return cert, replace(cert, a.PEM())
}

func replace(path string, data []byte) error {
	temp := path + ".new"
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
