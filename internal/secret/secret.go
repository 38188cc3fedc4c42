// Package secret holds the secrets that clients authenticate with: where they
// come from, and which version is in force. A secret enters as a reference
// ("file:/run/secrets/orders", "env:ORDERS_SECRET"), never as a literal, and
// leaves as a [Version] whose value cannot print itself.
package secret

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// PollInterval is how often files are read again. Reading by content, and not
// by notifications, is what survives the symlink swaps of Kubernetes.
const PollInterval = 10 * time.Second

// maxSize bounds a secret; a private key in PEM form fits.
const maxSize = 16 << 10

// Version is one value of a secret.
type Version struct {
	// ID tells versions of one secret apart: the first 8 hex digits of a keyed
	// hash. It may be logged.
	ID    string
	Value redact.String
	// SeenAt is when this process first saw the value.
	SeenAt time.Time
}

// Ref says where a secret is to be found.
type Ref struct {
	kind, name string
}

// ParseRef reads "file:PATH" or "env:NAME".
func ParseRef(text string) (Ref, error) {
	kind, name, found := strings.Cut(text, ":")
	switch {
	case found && (kind == "file" || kind == "env") && name != "":
		return Ref{kind, name}, nil
	case found && (kind == "file" || kind == "env"):
		return Ref{}, fmt.Errorf("%q names nothing after the colon", kind+":")
	default:
		// What was written here may be the secret itself: do not repeat it.
		return Ref{}, errors.New("a secret is given by reference: file:PATH or env:NAME, never as a literal")
	}
}

// Name is what the kind is of: a path, or the name of a variable.
func (r Ref) Name() string { return r.name }

// Kind is "file" or "env".
func (r Ref) Kind() string { return r.kind }

func (r Ref) String() string { return r.kind + ":" + r.name }

func (r Ref) read() (redact.String, error) {
	if r.kind == "env" {
		value := os.Getenv(r.name)
		if value == "" {
			return redact.String{}, fmt.Errorf("the environment variable %s is not set or empty", r.name)
		}
		return redact.New(value), nil
	}
	file, err := os.Open(r.name)
	if err != nil {
		return redact.String{}, err
	}
	defer func() { _ = file.Close() }()
	data, err := redact.ReadAll(file, maxSize+1)
	defer clear(data)
	switch {
	case err != nil:
		return redact.String{}, fmt.Errorf("reading %s: %w", r.name, err)
	case len(data) > maxSize:
		return redact.String{}, fmt.Errorf("%s holds more than %d bytes: is it a secret?", r.name, maxSize)
	}
	// One line end is what editors and "echo" append; anything more is the
	// secret's own.
	data = bytes.TrimSuffix(bytes.TrimSuffix(data, []byte("\n")), []byte("\r"))
	if len(data) == 0 {
		return redact.String{}, fmt.Errorf("%s is empty", r.name)
	}
	return redact.New(string(data)), nil
}

// Ring holds the version of a secret that is in force. Current is safe for
// concurrent use and does no I/O.
type Ring struct {
	ref     Ref
	mac     func(data []byte) [sha256.Size]byte
	current atomic.Pointer[Version]

	mu   sync.Mutex
	seen redact.String // last content read: a change counts when read twice
}

// Open reads the secret once, so that a wrong reference is found at the start.
// Its version IDs mean something within this process only.
func Open(ref Ref) (*Ring, error) {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails
	return OpenKeyed(ref, func(data []byte) [sha256.Size]byte {
		mac := hmac.New(sha256.New, key)
		_, _ = mac.Write(data)
		return [sha256.Size]byte(mac.Sum(nil))
	})
}

// OpenKeyed is Open with the keyed hash that version IDs are taken from: those
// who share its key, which must be secret, give the same value the same ID.
func OpenKeyed(ref Ref, mac func(data []byte) [sha256.Size]byte) (*Ring, error) {
	value, err := ref.read()
	if err != nil {
		return nil, err
	}
	r := &Ring{ref: ref, mac: mac, seen: value}
	r.publish(value)
	return r, nil
}

// Current returns the version in force.
func (r *Ring) Current() Version { return *r.current.Load() }

// Ref returns where the secret comes from.
func (r *Ring) Ref() Ref { return r.ref }

// Reload reads the source again and puts a changed value in force once it was
// read twice in a row, because a file may be seen half written. It reports
// whether a new value is now in force. On an error the old one stays.
func (r *Ring) Reload() (changed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	value, err := r.ref.read()
	if err != nil {
		return false, err
	}
	settled := value.Equal(r.seen)
	r.seen = value
	if !settled || value.Equal(r.Current().Value) {
		return false, nil
	}
	r.publish(value)
	return true, nil
}

func (r *Ring) publish(value redact.String) {
	id := r.mac([]byte("secret\x00" + value.Reveal()))
	r.current.Store(&Version{
		ID:     hex.EncodeToString(id[:4]),
		Value:  value,
		SeenAt: time.Now(),
	})
}

// Poll reloads the rings of files every PollInterval until ctx ends and tells
// what came of it: err is nil where a new version came in force.
func Poll(ctx context.Context, rings []*Ring, tell func(ring *Ring, err error)) {
	ticker := time.NewTicker(PollInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, ring := range rings {
			if ring.ref.kind != "file" {
				continue
			}
			if changed, err := ring.Reload(); changed || err != nil {
				tell(ring, err)
			}
		}
	}
}
