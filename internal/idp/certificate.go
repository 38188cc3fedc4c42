package idp

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/secret"
)

// CertificateFiles are the paths of a client certificate in PEM. Cert contains the
// certificate and then its intermediates, and Key contains the private key.
type CertificateFiles struct{ Cert, Key string }

// certificateSource holds the client certificate and reads it again when the files
// change.
type certificateSource struct {
	files   CertificateFiles
	connect func(tls.Certificate) *http.Client
	loaded  atomic.Pointer[loadedCertificate]

	mu       sync.Mutex
	lastRead digest
}

// loadedCertificate is a certificate with the HTTP client that presents it.
type loadedCertificate struct {
	id       string // the first 4 bytes of its SHA-256, in hex
	notAfter time.Time
	// notBefore is the begin of its validity.
	notBefore time.Time
	digest    digest
	http      *http.Client
}

// content is the content of both files. It is not kept, because one is a private key.
type content struct{ cert, key []byte }

type digest [2][sha256.Size]byte

func (c content) digest() digest { return digest{sha256.Sum256(c.cert), sha256.Sum256(c.key)} }

func (s *certificateSource) current() *loadedCertificate { return s.loaded.Load() }

func (s *certificateSource) open(files CertificateFiles, connect func(tls.Certificate) *http.Client) error {
	s.files, s.connect = files, connect
	read, err := s.read()
	defer clear(read.key)
	if err != nil {
		return err
	}
	s.lastRead = read.digest()
	return s.load(read)
}

func (s *certificateSource) read() (read content, err error) {
	if read.cert, err = readFile(s.files.Cert); err != nil {
		return content{}, fmt.Errorf("%s %w", s.files.Cert, err)
	}
	if read.key, err = readFile(s.files.Key); err != nil {
		return content{}, fmt.Errorf("%s %w", s.files.Key, err)
	}
	return read, nil
}

// load replaces the current certificate.
func (s *certificateSource) load(read content) error {
	pair, err := tls.X509KeyPair(read.cert, read.key)
	if err != nil {
		// The library's error may quote the files.
		return fmt.Errorf("%s and %s are not a certificate and its private key in PEM", s.files.Cert, s.files.Key)
	}
	if now := time.Now(); now.Before(pair.Leaf.NotBefore) {
		return fmt.Errorf("the certificate in %s is not valid before %s: check the clock, or wait", s.files.Cert, pair.Leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	next := &loadedCertificate{notAfter: pair.Leaf.NotAfter, notBefore: pair.Leaf.NotBefore, digest: read.digest(), http: s.connect(pair)}
	if err := next.check(s.files.Cert); err != nil {
		return err
	}
	thumbprint := sha256.Sum256(pair.Leaf.Raw)
	next.id = hex.EncodeToString(thumbprint[:4])
	previous := s.loaded.Swap(next)
	if previous != nil {
		previous.http.CloseIdleConnections()
	}
	return nil
}

// ReloadCertificate reads the certificate files again and reports whether it
// replaced the certificate. It uses new content after two equal reads in a row,
// because a single read may see a half-written file. On an error the current
// certificate stays in use. It does nothing for a client without a certificate.
// It is safe for concurrent use.
func (c *Client) ReloadCertificate() (changed bool, err error) {
	if !c.cfg.Auth.Mutual() {
		return false, nil
	}
	s := &c.mutual
	s.mu.Lock()
	defer s.mu.Unlock()
	read, err := s.read()
	defer clear(read.key)
	if err != nil {
		return false, err
	}
	readTwice := read.digest() == s.lastRead
	s.lastRead = read.digest()
	if !readTwice || s.lastRead == s.current().digest {
		return false, nil
	}
	if err := s.load(read); err != nil {
		return false, err
	}
	return true, nil
}

// check returns an error if the certificate has expired.
func (l *loadedCertificate) check(path string) error {
	if time.Now().After(l.notAfter) {
		return fmt.Errorf("the certificate in %s expired on %s: renew it", path, l.notAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// Certificate returns the version and the expiry of the current certificate. ok is
// false for a client without a certificate.
func (c *Client) Certificate() (id string, notAfter time.Time, ok bool) {
	if !c.cfg.Auth.Mutual() {
		return "", time.Time{}, false
	}
	current := c.mutual.current()
	return current.id, current.notAfter, true
}

// CertificateBegins returns when the validity of the current certificate begins; zero for
// a client without a certificate.
func (c *Client) CertificateBegins() time.Time {
	if !c.cfg.Auth.Mutual() {
		return time.Time{}
	}
	return c.mutual.current().notBefore
}

// Credential replaces the secret version of a client that has no secret. Its ID
// changes with the certificate, so that the refusal of one certificate does not
// count against the next.
func (c *Client) Credential() secret.Version {
	if id, _, ok := c.Certificate(); ok {
		return secret.Version{ID: id}
	}
	return secret.Version{ID: string(c.cfg.Auth)}
}
