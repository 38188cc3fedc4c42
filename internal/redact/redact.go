// Package redact defines the type of client secrets and tokens. Formatting, logging or
// encoding a [String] yields a placeholder. Only [String.Reveal] returns the text, so
// that all uses of secrets can be found by its name.
package redact

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
)

const placeholder = "[redacted]"

// String is a text that cannot be printed. The zero value is the empty text. It is
// immutable and safe for concurrent use.
//
// The text is behind a pointer because fmt calls no methods of a value in an unexported
// field. It would print the text there, but prints only the address of a pointer.
// Therefore == compares addresses; use [String.Equal].
type String struct{ text *string }

// New returns text as a String.
func New(text string) String {
	if text == "" {
		return String{}
	}
	return String{&text}
}

// Reveal returns the text.
func (s String) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether the text is empty.
func (s String) IsZero() bool { return s.text == nil }

// Equal reports whether the texts are equal. Its duration depends on their lengths only.
func (s String) Equal(other String) bool {
	return subtle.ConstantTimeCompare([]byte(s.Reveal()), []byte(other.Reveal())) == 1
}

// SHA256 returns the digest of the text.
func (s String) SHA256() [sha256.Size]byte { return sha256.Sum256([]byte(s.Reveal())) }

// String returns a placeholder.
func (s String) String() string { return placeholder }

// GoString returns a placeholder.
func (s String) GoString() string { return placeholder }

// Format writes a placeholder, whatever the verb.
func (s String) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(placeholder)) }

// LogValue returns a placeholder.
func (s String) LogValue() slog.Value { return slog.StringValue(placeholder) }

// MarshalText returns a placeholder.
func (s String) MarshalText() ([]byte, error) { return []byte(placeholder), nil }

// MarshalJSON returns a placeholder.
func (s String) MarshalJSON() ([]byte, error) { return []byte(`"` + placeholder + `"`), nil }
