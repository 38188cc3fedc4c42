package discovery

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxAuthorities   = 1 << 20 // more than a bundle of all public authorities
	maxAuthorityName = 100
)

// authorities are the certificate authorities of a file, read again when it changes.
// It is safe for concurrent use.
type authorities struct {
	path  string
	inUse atomic.Pointer[trust]

	mu   sync.Mutex
	seen [sha256.Size]byte // the content that was read last
}

// trust is the content of a file of authorities. It is immutable.
type trust struct {
	roots   *x509.CertPool
	digest  [sha256.Size]byte
	expires time.Time // when the first of them expires
}

func openAuthorities(path string) (*authorities, error) {
	read, err := readAuthorities(path)
	if err != nil {
		return nil, err
	}
	a := &authorities{path: path, seen: read.digest}
	a.inUse.Store(read)
	return a, nil
}

// reload reads the file again. A change counts when the same content was read twice,
// because a file may be read while it is written. On an error the authorities that
// were read before stay.
func (a *authorities) reload() (changed bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	read, err := readAuthorities(a.path)
	if err != nil {
		return false, err
	}
	settled := read.digest == a.seen
	a.seen = read.digest
	if !settled || read.digest == a.inUse.Load().digest {
		return false, nil
	}
	a.inUse.Store(read)
	return true, nil
}

func readAuthorities(path string) (*trust, error) {
	file, err := os.Open(path) //nolint:gosec // the configuration names it
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, maxAuthorities+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s cannot be read: %w", path, err)
	case len(data) > maxAuthorities:
		return nil, fmt.Errorf("%s is larger than 1 MiB: name the file with the authority's certificate", path)
	}
	read := &trust{roots: x509.NewCertPool(), digest: sha256.Sum256(data)}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s contains a PEM block that is not a certificate: leave only the authorities' certificates in it", path)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s contains a certificate that cannot be parsed: %w", path, err)
		}
		read.roots.AddCert(certificate)
		if read.expires.IsZero() || certificate.NotAfter.Before(read.expires) {
			read.expires = certificate.NotAfter
		}
	}
	if read.expires.IsZero() {
		return nil, fmt.Errorf("%s contains no certificate in PEM form", path)
	}
	return read, nil
}

// Trusting returns the Network that trusts the authorities of a file, in PEM, and no
// others. It is the same for the same file, and shares no connections with this one.
func (n *Network) Trusting(path string) (*Network, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if known := n.trusting[path]; known != nil {
		return known, nil
	}
	read, err := openAuthorities(path)
	if err != nil {
		return nil, err
	}
	made := newNetwork(n.transport, read)
	made.Trace(n.tracer)
	if n.trusting == nil {
		n.trusting = map[string]*Network{}
	}
	n.trusting[path] = made
	return made, nil
}

// ReloadAuthorities reads the file of a [Network.Trusting] again, and reports whether
// other authorities are trusted for new connections. On an error those stay that were
// read before. A file that changed counts when it was read twice alike.
func (n *Network) ReloadAuthorities() (changed bool, err error) {
	if n.authorities == nil {
		return false, nil
	}
	return n.authorities.reload()
}

// AuthoritiesExpire is when the first of the authorities of a [Network.Trusting]
// expires.
func (n *Network) AuthoritiesExpire() time.Time { return n.authorities.inUse.Load().expires }

// renewing is a guard that is made anew when other authorities are trusted: an open
// connection goes on with those that it was verified by.
type renewing struct {
	authorities *authorities
	make        func(roots *x509.CertPool) *guard

	mu   sync.Mutex
	made *guard
	by   *trust
}

func (r *renewing) current() *guard {
	r.mu.Lock()
	defer r.mu.Unlock()
	if by := r.authorities.inUse.Load(); by != r.by {
		if r.made != nil {
			r.made.CloseIdleConnections()
		}
		r.made, r.by = r.make(by.roots), by
	}
	return r.made
}

// RoundTrip implements http.RoundTripper.
func (r *renewing) RoundTrip(request *http.Request) (*http.Response, error) {
	return r.current().RoundTrip(request)
}

// CloseIdleConnections lets http.Client close them.
func (r *renewing) CloseIdleConnections() { r.current().CloseIdleConnections() }

// unknownAuthority is an error for a certificate of an authority that is not trusted.
// Its name was written by the peer: it is shortened, and quoted in ASCII.
func unknownAuthority(presented []*x509.Certificate) error {
	if len(presented) == 0 {
		return errCertificate
	}
	last := presented[len(presented)-1]
	name := last.Issuer.CommonName
	if name == "" {
		name = last.Issuer.String()
	}
	if len(name) > maxAuthorityName {
		name = name[:maxAuthorityName]
	}
	whose := "the authority " + strconv.QuoteToASCII(name)
	if bytes.Equal(last.RawIssuer, last.RawSubject) && len(presented) == 1 {
		whose = "itself (" + strconv.QuoteToASCII(name) + ")"
	}
	return errors.New("its certificate does not verify: it was issued by " + whose +
		", which is not trusted; if it is right, the file in tls.ca must contain that authority's certificate")
}
