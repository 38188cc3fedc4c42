// Package devca is a certificate authority for "broker dev" and for tests. It
// issues whatever it is asked for, also what no real authority would: what expired,
// or what others are named. Its key is nowhere but in memory.
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

// Lifetime is how long certificates are good that say nothing else.
const Lifetime = 365 * 24 * time.Hour

// backdated is how long ago they began, for clocks that differ.
const backdated = time.Hour

// Authority issues certificates.
type Authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	above       [][]byte // the authorities between this one and the root, this one first
}

// New makes an authority that nobody vouches for. It is good for Lifetime.
func New(name string) (*Authority, error) { return newAuthority(name, time.Time{}, nil) }

// Below makes an authority that this one vouches for, an intermediate one, until
// its time is over. Zero: for Lifetime.
func (a *Authority) Below(name string, until time.Time) (*Authority, error) {
	return newAuthority(name, until, a)
}

func newAuthority(name string, until time.Time, by *Authority) (*Authority, error) {
	made, err := issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, by)
	if err != nil {
		return nil, err
	}
	a := &Authority{certificate: made.certificate, key: made.key}
	if by != nil {
		a.above = slices.Concat([][]byte{made.certificate.Raw}, by.above)
	}
	return a, nil
}

// Certificate is the authority's own.
func (a *Authority) Certificate() *x509.Certificate { return a.certificate }

// PEM is the authority's own certificate, for those who are to trust it.
func (a *Authority) PEM() []byte { return certificatePEM(a.certificate.Raw) }

// Pool is the authority alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

// Issue makes a certificate like template, and its key. What the template leaves
// open is filled in: good from now on, for servers and clients.
func (a *Authority) Issue(template *x509.Certificate) (*Pair, error) { return issue(template, a) }

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
	made := &Pair{key: key}
	parent, signer := &full, key
	if by != nil {
		parent, signer, made.above = by.certificate, by.key, by.above
	}
	der, err := x509.CreateCertificate(rand.Reader, &full, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, err
	}
	made.certificate, err = x509.ParseCertificate(der)
	return made, err
}

// Certificate is the certificate without its key.
func (p *Pair) Certificate() *x509.Certificate { return p.certificate }

// TLS is the pair as package tls wants it, with the authorities below the root.
func (p *Pair) TLS() tls.Certificate {
	return tls.Certificate{Certificate: p.chain(), PrivateKey: p.key, Leaf: p.certificate}
}

func (p *Pair) chain() [][]byte { return slices.Concat([][]byte{p.certificate.Raw}, p.above) }

// CertPEM is the certificate, and after it the authorities below the root.
func (p *Pair) CertPEM() []byte {
	var text []byte
	for _, der := range p.chain() {
		text = append(text, certificatePEM(der)...)
	}
	return text
}

// KeyPEM is the private key.
func (p *Pair) KeyPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Write puts the pair into dir, as NAME.crt and NAME.key, in place of what is
// there. Each file is replaced as a whole, the two not at once.
func (p *Pair) Write(dir, name string) (cert, key string, err error) {
	text, err := p.KeyPEM()
	if err != nil {
		return "", "", err
	}
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	return cert, key, errors.Join(replace(cert, p.CertPEM()), replace(key, text))
}

// Write puts the authority's own certificate into dir, as NAME.crt.
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
