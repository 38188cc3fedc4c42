// Package secret holds the secrets that clients authenticate with: where they
// come from ([Source], [Ring]), and which versions of one there are and have
// been ([History]). A secret enters as a reference ("file:/run/secrets/orders",
// "env:ORDERS_SECRET") or through the broker ("managed"), never as a literal, and
// leaves as a [Version] whose value cannot print itself.
//
// A version is named by a keyed hash of its value. Whoever shares the key gives
// the same value the same name, whether it was read from a file here or there, or
// brought by an operator; who does not know the key learns nothing from a name.
package secret

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// MaxSize bounds a secret, in bytes; a private key in PEM form fits.
const MaxSize = 16 << 10

// Version is one value of a secret.
type Version struct {
	// ID tells versions of one secret apart: the first 8 hex digits of a keyed
	// hash. It may be logged.
	ID    string
	Value redact.String
	// SeenAt is when this process first saw the value.
	SeenAt time.Time
}

// MAC is the keyed hash that versions are named with.
type MAC = func(data []byte) [sha256.Size]byte

// NewVersion names a value, which was seen now.
func NewVersion(mac MAC, value redact.String) Version {
	sum := mac([]byte("secret\x00" + value.Reveal()))
	return Version{ID: hex.EncodeToString(sum[:4]), Value: value, SeenAt: time.Now()}
}

// Ref says where a secret is to be found.
type Ref struct {
	kind, name string
}

// The kinds of references.
const (
	kindFile    = "file"
	kindEnv     = "env"
	kindManaged = "managed"
)

// ParseRef reads "file:PATH", "env:NAME" or "managed".
func ParseRef(text string) (Ref, error) {
	if text == kindManaged {
		return Ref{kind: kindManaged}, nil
	}
	kind, name, found := strings.Cut(text, ":")
	switch {
	case found && (kind == kindFile || kind == kindEnv) && name != "":
		return Ref{kind, name}, nil
	case found && (kind == kindFile || kind == kindEnv):
		return Ref{}, fmt.Errorf("%q names nothing after the colon", kind+":")
	default:
		// What was written here may be the secret itself: do not repeat it.
		return Ref{}, errors.New("a secret is given by reference: file:PATH or env:NAME, never as a literal")
	}
}

// Name is what the kind is of: a path, or the name of a variable.
func (r Ref) Name() string { return r.name }

// Kind is "file", "env" or "managed"; of the zero Ref it is empty.
func (r Ref) Kind() string { return r.kind }

// Managed reports whether the secret is brought through the broker and kept in
// its store: there is nothing to read it from.
func (r Ref) Managed() bool { return r.kind == kindManaged }

func (r Ref) String() string {
	if r.name == "" {
		return r.kind
	}
	return r.kind + ":" + r.name
}
