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

// material is what the files held at one time. It is immutable.
type material struct {
	tls         *tls.Config
	authorities *Authorities // nil: none
	name        string
	expires     time.Time
	warnings    []string
	digest      [sha256.Size]byte
}

// Authorities issue the certificates of callers. A pointer stands for a
// generation: it is another one when, and only when, the authorities are others.
type Authorities struct {
	pool         *x509.CertPool
	certificates []*x509.Certificate
	digest       [sha256.Size]byte
	// domains holds the authorities of each SPIFFE trust domain. Nil: the
	// authorities are from a file, and each may issue any certificate.
	domains map[spiffeid.TrustDomain][]*x509.Certificate
}

// Verify reports until when a chain that a client presented, its own certificate
// first, is good by these authorities. By none, nothing is.
func (a *Authorities) Verify(presented []*x509.Certificate, now time.Time) (until time.Time, err error) {
	if a == nil {
		return time.Time{}, errors.New("no authority is trusted")
	}
	intermediates := x509.NewCertPool()
	for _, one := range presented[1:] {
		intermediates.AddCert(one)
	}
	chains, err := presented[0].Verify(x509.VerifyOptions{
		Roots: a.pool, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return time.Time{}, err
	}
	return a.until(presented[0], chains)
}

// Until returns when the last of the verified chains ends, all of which lead from one
// certificate to these authorities. A chain ends with the first of its certificates.
// The result is zero if no chain is good by these authorities.
func (a *Authorities) Until(chains [][]*x509.Certificate) time.Time {
	if a == nil || len(chains) == 0 {
		return time.Time{}
	}
	until, _ := a.until(chains[0][0], chains)
	return until
}

func (a *Authorities) until(leaf *x509.Certificate, chains [][]*x509.Certificate) (until time.Time, err error) {
	if a.domains != nil {
		if chains, err = a.ofDomain(leaf, chains); err != nil {
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

// check makes material of what was read, after the one before, if there was one.
// The error has a line for each file that is wrong.
func (c contents) check(cfg Config, before *material, now time.Time) (*material, error) {
	pair, chain, errPair := c.pair(cfg, now)
	authorities, expired, errCA := c.authorities(cfg, now)
	if err := errors.Join(errPair, errCA); err != nil {
		return nil, err
	}
	authorities = authorities.orSame(before)
	made := newMaterial(pair, chain, authorities, cfg.MinVersion)
	made.digest = c.digest()
	for _, name := range expired {
		made.warnings = append(made.warnings, fmt.Sprintf("%s: the authority %q expired: whoever has a certificate of it is refused", cfg.ClientCA, name))
	}
	if info, err := os.Stat(cfg.Key); err == nil && info.Mode().Perm()&0o007 != 0 {
		made.warnings = append(made.warnings, fmt.Sprintf("%s: the private key is open to every user of this machine (mode %v): make it 0600, unless it is mounted where no other user gets", cfg.Key, info.Mode().Perm()))
	}
	return made, nil
}

// newMaterial makes the configuration of TLS. Authorities may be nil.
func newMaterial(pair tls.Certificate, chain []*x509.Certificate, authorities *Authorities, minVersion uint16) *material {
	made := &material{
		authorities: authorities,
		name:        nameOf(chain[0]),
		expires:     endOf(chain),
		tls: &tls.Config{
			Certificates: []tls.Certificate{pair},
			MinVersion:   minVersion,
			// A resumed session would bring back a caller without its certificate being
			// looked at.
			SessionTicketsDisabled: true,
		},
	}
	if authorities != nil {
		made.tls.ClientAuth, made.tls.ClientCAs = tls.VerifyClientCertIfGiven, authorities.pool
		made.tls.VerifyConnection = authorities.verifyConnection
	}
	return made
}

// orSame returns the authorities before, if they are the same.
func (a *Authorities) orSame(before *material) *Authorities {
	if a != nil && before != nil && before.authorities != nil && before.authorities.digest == a.digest {
		return before.authorities
	}
	return a
}

// verifyConnection looks at what package tls verified by the authorities of all trust
// domains together.
func (a *Authorities) verifyConnection(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	if _, err := a.until(state.PeerCertificates[0], state.VerifiedChains); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
	}
	return nil
}

// pair is the certificate with its key, and its chain.
func (c contents) pair(cfg Config, now time.Time) (tls.Certificate, []*x509.Certificate, error) {
	chain, errCert := certificatesIn(cfg.Cert, c[0])
	errKey := checkKey(cfg.Key, c[1])
	if err := errors.Join(errCert, errKey); err != nil {
		return tls.Certificate{}, nil, err
	}
	pair, err := tls.X509KeyPair(c[0], c[1])
	if err != nil {
		return tls.Certificate{}, nil, problem(cfg.Key, "it is not the key of the first certificate in %s, or a kind of key that is not supported: give the two files of one pair (%w)", cfg.Cert, err)
	}
	return pair, chain, checkChain(cfg.Cert, chain, now)
}

// checkChain looks at the certificates that the listener presents, which are from a
// file or a socket.
func checkChain(from string, chain []*x509.Certificate, now time.Time) error {
	for i, one := range chain {
		if err := checkTime(one, now); err != nil {
			return problem(from, "certificate %d in it, %q, %w", i+1, nameOf(one), err)
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

func checkTime(one *x509.Certificate, now time.Time) error {
	switch {
	case now.After(one.NotAfter):
		return fmt.Errorf("expired at %s: put a current one in its place", one.NotAfter.Format(time.RFC3339))
	case now.Before(one.NotBefore):
		return fmt.Errorf("is not good before %s: put a current one in its place, or set this machine's clock", one.NotBefore.Format(time.RFC3339))
	default:
		return nil
	}
}

// certificatesIn are those in a file, which must hold one at least.
func certificatesIn(file string, data []byte) ([]*x509.Certificate, error) {
	var found []*x509.Certificate
	keys := 0
	for block := range blocks(data) {
		if isKey(block) {
			keys++
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		one, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, problem(file, "certificate %d in it is broken: %w", len(found)+1, err)
		}
		found = append(found, one)
	}
	switch {
	case len(found) > 0:
		return found, nil
	case keys > 0:
		return nil, problem(file, "it holds a private key, and no certificate: are the files the wrong way round?")
	default:
		return nil, problem(file, "it holds no certificate in PEM form, which begins with -----BEGIN CERTIFICATE-----")
	}
}

// checkKey looks for what tls.X509KeyPair would say less plainly.
func checkKey(file string, data []byte) error {
	certificates := 0
	for block := range blocks(data) {
		switch {
		case block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
			return problem(file, "its private key is encrypted, and the broker has nobody to ask for the passphrase: store it decrypted, for the broker alone")
		case isKey(block) && parseKey(block.Bytes) == nil:
			return problem(file, "its private key is broken, or of a kind that is not supported: RSA, ECDSA and Ed25519 are")
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

// parseKey returns nil for what is none.
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

// authorities are those in the file who have not expired, and the names of those
// who have.
func (c contents) authorities(cfg Config, now time.Time) (found *Authorities, expired []string, err error) {
	if cfg.ClientCA == "" {
		return nil, nil, nil
	}
	certificates, err := certificatesIn(cfg.ClientCA, c[2])
	if err != nil {
		return nil, nil, err
	}
	found = &Authorities{pool: x509.NewCertPool()}
	sum := sha256.New()
	for i, one := range certificates {
		switch {
		case !one.IsCA:
			return nil, nil, problem(cfg.ClientCA, "certificate %d in it, %q, is not one of an authority: the file is for those who issue the certificates of callers", i+1, nameOf(one))
		case now.After(one.NotAfter):
			expired = append(expired, nameOf(one))
			continue
		}
		found.pool.AddCert(one)
		found.certificates = append(found.certificates, one)
		_, _ = sum.Write(one.Raw) // DER tells its own length
	}
	if len(found.certificates) == 0 {
		return nil, nil, problem(cfg.ClientCA, "all authorities in it have expired (%s): put current ones in their place", strings.Join(expired, ", "))
	}
	found.digest = [sha256.Size]byte(sum.Sum(nil))
	return found, expired, nil
}

// blocks are those of a text in PEM form.
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

// nameOf is by what people know a certificate.
func nameOf(one *x509.Certificate) string {
	switch {
	case len(one.DNSNames) > 0:
		return one.DNSNames[0]
	case len(one.URIs) > 0:
		return one.URIs[0].String()
	case len(bytes.TrimSpace(one.RawSubject)) > 0 && one.Subject.String() != "":
		return one.Subject.String()
	default:
		return "number " + one.SerialNumber.String()
	}
}
