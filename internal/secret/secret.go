// Package secret holds the secrets with which OAuth clients authenticate: it reads
// them ([Source]) and records their versions ([History]). The configuration refers
// to a secret ("file:/run/secrets/orders", "env:ORDERS_SECRET") or has it stored by
// the broker ("managed"). It never contains a literal. The value of a [Version]
// cannot be printed.
//
// The ID of a version is a keyed hash of its value. Replicas that share the key
// assign the same ID to the same value, whether they read it from a file or receive
// it from an operator. Without the key, an ID says nothing about the value.
package secret

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// MaxSize bounds a secret, in bytes. A private key in PEM fits.
const MaxSize = 16 << 10

// Version is one value of a secret.
type Version struct {
	// ID identifies the version of a secret: the first 8 hex digits of a keyed hash. It
	// may be logged.
	ID    string
	Value redact.String
	// SeenAt is when this process first saw the value.
	SeenAt time.Time
}

// MAC is the keyed hash from which IDs of versions are derived.
type MAC = func(data []byte) [sha256.Size]byte

// NewVersion returns the version of a value, with the current time as SeenAt.
func NewVersion(mac MAC, value redact.String) Version {
	sum := mac([]byte("secret\x00" + value.Reveal()))
	return Version{ID: hex.EncodeToString(sum[:4]), Value: value, SeenAt: time.Now()}
}

// Name returns 128 bits of the keyed hash of parts of one kind. It names things in the
// store, where their content must not be seen.
func Name(mac MAC, kind string, parts ...[]byte) string {
	data := AppendPart(nil, kind)
	for _, part := range parts {
		data = AppendPart(data, string(part))
	}
	sum := mac(data)
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// AppendPart appends a part with its length, so that other parts yield other bytes.
func AppendPart(to []byte, part string) []byte {
	return append(binary.AppendUvarint(to, uint64(len(part))), part...)
}

// Ref is a reference to a secret.
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
	kind, name, ok := strings.Cut(text, ":")
	switch {
	case ok && (kind == kindFile || kind == kindEnv) && name != "":
		return Ref{kind, name}, nil
	case ok && (kind == kindFile || kind == kindEnv):
		return Ref{}, fmt.Errorf("%q is not followed by a name", kind+":")
	default:
		// The text may be the secret itself, so the error does not repeat it.
		return Ref{}, errors.New("a secret is given by reference: file:PATH or env:NAME, never as a literal")
	}
}

// Name returns the path of the file or the name of the variable, else "".
func (r Ref) Name() string { return r.name }

// Kind returns "file", "env" or "managed", and "" for the zero Ref.
func (r Ref) Kind() string { return r.kind }

// Managed reports whether operators send the secret to the broker, which keeps it in
// its store.
func (r Ref) Managed() bool { return r.kind == kindManaged }

func (r Ref) String() string {
	if r.name == "" {
		return r.kind
	}
	return r.kind + ":" + r.name
}
