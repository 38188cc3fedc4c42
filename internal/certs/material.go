package certs

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// material is a checked certificate with the authorities for client certificates. It
// is immutable.
type material struct {
	tls         *tls.Config
	authorities *Authorities // nil if client certificates are not requested
	name        string
	begins      time.Time
	expires     time.Time
	warnings    []string
	digest      [sha256.Size]byte
}

// Authorities are the authorities for client certificates. It is immutable. A Source
// returns a new pointer exactly when the authorities change.
type Authorities struct {
	pool         *x509.CertPool
	certificates []*x509.Certificate
	digest       [sha256.Size]byte
	// domains maps each SPIFFE trust domain to its authorities. It is nil for
	// authorities from a file, each of which may issue any certificate.
	domains map[spiffeid.TrustDomain][]*x509.Certificate
}

// Verify verifies a chain that a client presented, with its own certificate first. It
// returns the time until which the chain is valid. Nil Authorities accept no chain.
func (a *Authorities) Verify(presented []*x509.Certificate, now time.Time) (until time.Time, err error) {
	if a == nil {
		return time.Time{}, errors.New("no authority is trusted")
	}
	intermediates := x509.NewCertPool()
	for _, certificate := range presented[1:] {
		intermediates.AddCert(certificate)
	}
	chains, err := presented[0].Verify(x509.VerifyOptions{
		Roots: a.pool, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return time.Time{}, err
	}
	return a.until(presented[0], chains)
}

// Until returns the time until which verified chains of one certificate are valid: the
// last expiry among the chains that end in these authorities. A chain expires with the
// first of its certificates. The result is zero if there is no such chain.
func (a *Authorities) Until(chains [][]*x509.Certificate) time.Time {
	if a == nil || len(chains) == 0 {
		return time.Time{}
	}
	until, _ := a.until(chains[0][0], chains)
	return until
}

func (a *Authorities) until(leaf *x509.Certificate, chains [][]*x509.Certificate) (until time.Time, err error) {
	if a.domains != nil {
		if chains, err = a.chainsOfDomain(leaf, chains); err != nil {
			return time.Time{}, err
		}
	}
	for _, chain := range chains {
		if end := endOf(chain); end.After(until) {
			until = end
		}
	}
	return until, nil
}

func endOf(chain []*x509.Certificate) time.Time {
	return slices.MinFunc(chain, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) }).NotAfter
}

// check returns the material in the files. current may be nil. The error has one line
// for each invalid file.
func (c contents) check(cfg Config, current *material, now time.Time) (*material, error) {
	pair, chain, errPair := c.pair(cfg, now)
	authorities, expired, errCA := c.authorities(cfg, now)
	if err := errors.Join(errPair, errCA); err != nil {
		return nil, err
	}
	m := newMaterial(pair, chain, authorities.orCurrent(current), cfg.MinVersion)
	m.digest = c.digest()
	for _, name := range expired {
		m.warnings = append(m.warnings, fmt.Sprintf("%s: the authority %q has expired: the client certificates that it issued are refused", cfg.ClientCA, name))
	}
	if info, err := os.Stat(cfg.Key); err == nil && info.Mode().Perm()&0o007 != 0 {
		m.warnings = append(m.warnings, fmt.Sprintf("%s: every user of this machine has access to the private key (mode %v): make it 0600, unless other users cannot reach the directory", cfg.Key, info.Mode().Perm()))
	}
	return m, nil
}

// newMaterial returns material with its TLS configuration. authorities may be nil.
func newMaterial(pair tls.Certificate, chain []*x509.Certificate, authorities *Authorities, minVersion uint16) *material {
	m := &material{
		authorities: authorities,
		name:        nameOf(chain[0]),
		begins:      chain[0].NotBefore,
		expires:     endOf(chain),
		tls: &tls.Config{
			Certificates: []tls.Certificate{pair},
			MinVersion:   minVersion,
			// A resumed session would skip the verification of the client certificate.
			SessionTicketsDisabled: true,
		},
	}
	if authorities != nil {
		m.tls.ClientAuth, m.tls.ClientCAs = tls.VerifyClientCertIfGiven, authorities.pool
		m.tls.VerifyConnection = authorities.verifyConnection
	}
	return m
}

// orCurrent returns the current authorities if they are equal, else a.
func (a *Authorities) orCurrent(current *material) *Authorities {
	if a != nil && current != nil && current.authorities != nil && current.authorities.digest == a.digest {
		return current.authorities
	}
	return a
}

// verifyConnection restricts each authority to its trust domain. Package tls has
// verified the certificate by the authorities of all trust domains together.
func (a *Authorities) verifyConnection(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	if _, err := a.until(state.PeerCertificates[0], state.VerifiedChains); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
	}
	return nil
}

// pair returns the certificate with its key, and the chain.
func (c contents) pair(cfg Config, now time.Time) (tls.Certificate, []*x509.Certificate, error) {
	chain, errCert := certificatesIn(cfg.Cert, c[0])
	errKey := checkKey(cfg.Key, c[1])
	if err := errors.Join(errCert, errKey); err != nil {
		return tls.Certificate{}, nil, err
	}
	pair, err := tls.X509KeyPair(c[0], c[1])
	if err != nil {
		return tls.Certificate{}, nil, problem(cfg.Key, "it is not the key of the first certificate in %s, or its kind is not supported: configure the two files of one pair (%w)", cfg.Cert, err)
	}
	return pair, chain, checkChain(cfg.Cert, chain, now)
}

// checkChain checks the certificates that the listener presents. from is their file or
// socket.
func checkChain(from string, chain []*x509.Certificate, now time.Time) error {
	for i, certificate := range chain {
		if err := checkTime(certificate, now); err != nil {
			return problem(from, "certificate %d in it, %q, %w", i+1, nameOf(certificate), err)
		}
	}
	leaf := chain[0]
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) > 0 && !slices.ContainsFunc(leaf.ExtKeyUsage, forServers) {
		return problem(from, "its first certificate, %q, is not for servers (extended key usage): have one issued with serverAuth", nameOf(leaf))
	}
	return nil
}

func forServers(usage x509.ExtKeyUsage) bool {
	return usage == x509.ExtKeyUsageServerAuth || usage == x509.ExtKeyUsageAny
}

func checkTime(certificate *x509.Certificate, now time.Time) error {
	switch {
	case now.After(certificate.NotAfter):
		return fmt.Errorf("expired at %s: replace it", certificate.NotAfter.Format(time.RFC3339))
	case now.Before(certificate.NotBefore):
		return fmt.Errorf("is not valid before %s: replace it, or set this machine's clock", certificate.NotBefore.Format(time.RFC3339))
	default:
		return nil
	}
}

// certificatesIn returns the certificates in a file. A file without any is an error.
func certificatesIn(file string, data []byte) ([]*x509.Certificate, error) {
	var certificates []*x509.Certificate
	keys := 0
	for block := range blocks(data) {
		if isKey(block) {
			keys++
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, problem(file, "certificate %d in it is broken: %w", len(certificates)+1, err)
		}
		certificates = append(certificates, certificate)
	}
	switch {
	case len(certificates) > 0:
		return certificates, nil
	case keys > 0:
		return nil, problem(file, "it holds a private key, and no certificate: are the files the wrong way round?")
	default:
		return nil, problem(file, "it holds no certificate in PEM form, which begins with -----BEGIN CERTIFICATE-----")
	}
}

// checkKey detects common mistakes for which tls.X509KeyPair has less helpful errors.
func checkKey(file string, data []byte) error {
	certificates := 0
	for block := range blocks(data) {
		switch {
		case block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
			return problem(file, "its private key is encrypted, and the broker cannot prompt for the passphrase: store it decrypted, readable by the broker only")
		case isKey(block) && parseKey(block.Bytes) == nil:
			return problem(file, "its private key is broken or its kind is not supported: use RSA, ECDSA or Ed25519")
		case isKey(block):
			return nil
		case block.Type == "CERTIFICATE":
			certificates++
		}
	}
	if certificates > 0 {
		return problem(file, "it holds a certificate, and no private key: are the files the wrong way round?")
	}
	return problem(file, "it holds no private key in PEM form, which begins with -----BEGIN PRIVATE KEY-----")
}

func isKey(block *pem.Block) bool { return strings.HasSuffix(block.Type, "PRIVATE KEY") }

// parseKey returns nil if der is not a private key.
func parseKey(der []byte) crypto.PrivateKey {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		return key
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key
	}
	return nil
}

// authorities returns the valid authorities in the file and the names of the expired
// ones.
func (c contents) authorities(cfg Config, now time.Time) (valid *Authorities, expired []string, err error) {
	if cfg.ClientCA == "" {
		return nil, nil, nil
	}
	certificates, err := certificatesIn(cfg.ClientCA, c[2])
	if err != nil {
		return nil, nil, err
	}
	valid = &Authorities{pool: x509.NewCertPool()}
	sum := sha256.New()
	for i, certificate := range certificates {
		switch {
		case !certificate.IsCA:
			return nil, nil, problem(cfg.ClientCA, "certificate %d in it, %q, is not an authority: the file must contain the authorities that issue client certificates", i+1, nameOf(certificate))
		case now.After(certificate.NotAfter):
			expired = append(expired, nameOf(certificate))
			continue
		}
		valid.pool.AddCert(certificate)
		valid.certificates = append(valid.certificates, certificate)
		_, _ = sum.Write(certificate.Raw) // DER contains its length
	}
	if len(valid.certificates) == 0 {
		return nil, nil, problem(cfg.ClientCA, "all authorities in it have expired (%s): replace them", strings.Join(expired, ", "))
	}
	valid.digest = [sha256.Size]byte(sum.Sum(nil))
	return valid, expired, nil
}

// blocks iterates over the PEM blocks in data.
func blocks(data []byte) func(yield func(*pem.Block) bool) {
	return func(yield func(*pem.Block) bool) {
		for {
			block, rest := pem.Decode(data)
			if block == nil || !yield(block) {
				return
			}
			data = rest
		}
	}
}

// nameOf returns a human-readable name for a certificate.
func nameOf(certificate *x509.Certificate) string {
	switch {
	case len(certificate.DNSNames) > 0:
		return certificate.DNSNames[0]
	case len(certificate.URIs) > 0:
		return certificate.URIs[0].String()
	case len(bytes.TrimSpace(certificate.RawSubject)) > 0 && certificate.Subject.String() != "":
		return certificate.Subject.String()
	default:
		return "number " + certificate.SerialNumber.String()
	}
}
