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

// CertificateFiles are those of a client certificate, in PEM: the certificate
// with what leads to its authority after it, and its key.
type CertificateFiles struct{ Cert, Key string }

// certificates is a certificate that is read again when its files change.
type certificates struct {
	files CertificateFiles
	with  func(tls.Certificate) *http.Client
	state atomic.Pointer[mutual]

	mu   sync.Mutex
	seen digest // of the last content read: a change counts when read twice
}

// mutual is a certificate that is in force, and the connections that were made
// with it.
type mutual struct {
	id       string
	notAfter time.Time
	content  digest
	http     *http.Client
}

// content is what stands in the files. It is not kept, for one is a private key.
type content struct{ cert, key []byte }

type digest [2][sha256.Size]byte

func (c content) digest() digest { return digest{sha256.Sum256(c.cert), sha256.Sum256(c.key)} }

func (c *certificates) current() *mutual { return c.state.Load() }

func (c *certificates) open(files CertificateFiles, with func(tls.Certificate) *http.Client) error {
	c.files, c.with = files, with
	read, err := c.read()
	if err != nil {
		return err
	}
	c.seen = read.digest()
	return c.publish(read)
}

func (c *certificates) read() (read content, err error) {
	if read.cert, err = readFile(c.files.Cert); err != nil {
		return content{}, fmt.Errorf("%s %w", c.files.Cert, err)
	}
	if read.key, err = readFile(c.files.Key); err != nil {
		return content{}, fmt.Errorf("%s %w", c.files.Key, err)
	}
	return read, nil
}

func (c *certificates) publish(read content) error {
	pair, err := tls.X509KeyPair(read.cert, read.key)
	if err != nil {
		// The library's error may quote what stands in the files.
		return fmt.Errorf("%s and %s are not a certificate and its private key, both in PEM and of each other", c.files.Cert, c.files.Key)
	}
	if now := time.Now(); now.Before(pair.Leaf.NotBefore) {
		return fmt.Errorf("the certificate in %s is valid from %s on: check the clock, or wait", c.files.Cert, pair.Leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	fresh := &mutual{notAfter: pair.Leaf.NotAfter, content: read.digest(), http: c.with(pair)}
	if err := fresh.check(c.files.Cert); err != nil {
		return err
	}
	thumbprint := sha256.Sum256(pair.Leaf.Raw)
	fresh.id = hex.EncodeToString(thumbprint[:4])
	before := c.state.Swap(fresh)
	if before != nil {
		before.http.CloseIdleConnections()
	}
	return nil
}

// ReloadCertificate reads the files again and puts a changed certificate in force
// once it was read twice in a row, because files may be seen half written. It
// reports whether a new one is now in force. On an error the old one stays. It does
// nothing for a client without a certificate.
func (c *Client) ReloadCertificate() (changed bool, err error) {
	if !c.cfg.Auth.Mutual() {
		return false, nil
	}
	m := &c.mutual
	m.mu.Lock()
	defer m.mu.Unlock()
	read, err := m.read()
	if err != nil {
		return false, err
	}
	settled := read.digest() == m.seen
	m.seen = read.digest()
	if !settled || m.seen == m.current().content {
		return false, nil
	}
	if err := m.publish(read); err != nil {
		return false, err
	}
	return true, nil
}

func (m *mutual) check(path string) error {
	if time.Now().After(m.notAfter) {
		return fmt.Errorf("the certificate in %s expired on %s: renew it", path, m.notAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// Certificate returns the version of the certificate in force, and when it
// expires; ok: there is one.
func (c *Client) Certificate() (id string, notAfter time.Time, ok bool) {
	if !c.cfg.Auth.Mutual() {
		return "", time.Time{}, false
	}
	m := c.mutual.current()
	return m.id, m.notAfter, true
}

// Credential stands for the secret of a client that has none: it tells one
// certificate from the next, so that what was refused of one is not held against
// the other.
func (c *Client) Credential() secret.Version {
	if id, _, ok := c.Certificate(); ok {
		return secret.Version{ID: id}
	}
	return secret.Version{ID: string(c.cfg.Auth)}
}
