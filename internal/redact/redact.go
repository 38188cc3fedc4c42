// Package redact holds the one type for values that must not be seen: client
// secrets and tokens. A [String] cannot print itself: every way of formatting,
// logging or encoding it yields a placeholder, and its text comes out through
// [String.Reveal] alone, which is easy to search for.
package redact

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
)

const placeholder = "[redacted]"

// String is a text that cannot print itself. The zero value is the empty text.
// It is immutable and safe for concurrent use.
//
// The text is behind a pointer because fmt does not call the methods of a
// value that it reaches through an unexported field: it would print the text,
// but of a pointer in that place it prints the address. For the same reason
// == compares addresses; use [String.Equal].
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

// Equal reports whether the texts are equal, in time that tells only their
// lengths.
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
