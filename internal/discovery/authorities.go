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
	maxAuthorities   = 1 << 20 // bytes; more than a bundle of all public authorities
	maxAuthorityName = 100     // bytes
)

// authorities are the certificate authorities in a file, which can be reloaded. It is
// safe for concurrent use.
type authorities struct {
	path    string
	current atomic.Pointer[authoritySet]

	mu       sync.Mutex
	lastRead [sha256.Size]byte // digest of the content
}

// authoritySet is the content of a file of authorities. It is immutable.
type authoritySet struct {
	roots   *x509.CertPool
	digest  [sha256.Size]byte
	expires time.Time // the earliest expiry of a certificate
}

func openAuthorities(path string) (*authorities, error) {
	set, err := readAuthorities(path)
	if err != nil {
		return nil, err
	}
	a := &authorities{path: path, lastRead: set.digest}
	a.current.Store(set)
	return a, nil
}

// reload reads the file again. It applies a change only after two reads with the same
// content, because a read may happen in the middle of a write. On an error the current
// authorities stay trusted.
func (a *authorities) reload() (changed bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	set, err := readAuthorities(a.path)
	if err != nil {
		return false, err
	}
	stable := set.digest == a.lastRead
	a.lastRead = set.digest
	if !stable || set.digest == a.current.Load().digest {
		return false, nil
	}
	a.current.Store(set)
	return true, nil
}

func readAuthorities(path string) (*authoritySet, error) {
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
		return nil, fmt.Errorf("%s is larger than 1 MiB: configure the file with the authority's certificate", path)
	}
	set := &authoritySet{roots: x509.NewCertPool(), digest: sha256.Sum256(data)}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s contains a PEM block that is not a certificate: leave only the authorities' certificates in it", path)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s contains a certificate that cannot be parsed: %w", path, err)
		}
		set.roots.AddCert(certificate)
		if set.expires.IsZero() || certificate.NotAfter.Before(set.expires) {
			set.expires = certificate.NotAfter
		}
	}
	if set.expires.IsZero() {
		return nil, fmt.Errorf("%s contains no certificate in PEM form", path)
	}
	return set, nil
}

// WithAuthorities returns a Network that trusts only the authorities in a PEM file. It
// returns the same Network for the same file. The two Networks share no connections.
func (n *Network) WithAuthorities(path string) (*Network, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if network := n.withAuthorities[path]; network != nil {
		return network, nil
	}
	authorities, err := openAuthorities(path)
	if err != nil {
		return nil, err
	}
	network := newNetwork(n.transport, authorities)
	if n.count != nil {
		network.Observe(n.tracer, n.count)
	}
	if n.withAuthorities == nil {
		n.withAuthorities = map[string]*Network{}
	}
	n.withAuthorities[path] = network
	return network, nil
}

// ReloadAuthorities reads the file of [Network.WithAuthorities] again. It reports
// whether the trusted authorities changed; a change applies to new connections, after
// two calls have read the same content. On an error the current authorities stay
// trusted.
func (n *Network) ReloadAuthorities() (changed bool, err error) {
	if n.authorities == nil {
		return false, nil
	}
	return n.authorities.reload()
}

// AuthoritiesExpire returns the earliest expiry of the authorities of a Network that
// [Network.WithAuthorities] returned. It panics for any other Network.
func (n *Network) AuthoritiesExpire() time.Time { return n.authorities.current.Load().expires }

// reloadingGuard replaces its guard when the authorities change. An open connection
// stays, although other authorities verified it.
type reloadingGuard struct {
	authorities *authorities
	newGuard    func(roots *x509.CertPool) *guard

	mu      sync.Mutex
	guard   *guard
	trusted *authoritySet // by guard
}

func (r *reloadingGuard) current() *guard {
	r.mu.Lock()
	defer r.mu.Unlock()
	if set := r.authorities.current.Load(); set != r.trusted {
		if r.guard != nil {
			r.guard.CloseIdleConnections()
		}
		r.guard, r.trusted = r.newGuard(set.roots), set
	}
	return r.guard
}

// RoundTrip implements http.RoundTripper.
func (r *reloadingGuard) RoundTrip(request *http.Request) (*http.Response, error) {
	return r.current().RoundTrip(request)
}

// CloseIdleConnections is called by [http.Client.CloseIdleConnections].
func (r *reloadingGuard) CloseIdleConnections() { r.current().CloseIdleConnections() }

// unknownAuthority returns the error for a certificate from an untrusted authority. The
// peer chose the authority's name, so the error contains at most 100 bytes of it, quoted
// in ASCII.
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
	authority := "the authority " + strconv.QuoteToASCII(name)
	if bytes.Equal(last.RawIssuer, last.RawSubject) && len(presented) == 1 {
		authority = "itself (" + strconv.QuoteToASCII(name) + ")"
	}
	return errors.New("its certificate does not verify: it was issued by " + authority +
		", which is not trusted; to trust it, the file in tls.ca must contain that authority's certificate")
}
