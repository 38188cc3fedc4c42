package yamlconf

import (
	"strings"
	"time"
)

// Within adds a problem if d is out of range.
func (f *Findings) Within(path string, d, least, most time.Duration) {
	if d < least || d > most {
		f.Addf(path, "must be from %s to %s", Short(least), Short(most))
	}
}

// Needs reports a key that is missing.
func (f *Findings) Needs(given bool, path, key, with string) {
	if !given && !f.Given(Join(path, key)) {
		f.Addf(path, "%s is missing: %s needs it", key, with)
	}
}

// Only reports a key that does not apply to a client.
func (f *Findings) Only(applies bool, path, key, with string) {
	if at := Join(path, key); !applies && f.Given(at) {
		f.Addf(at, "is for %s only: remove it, or change auth", with)
	}
}

// Scopes reports scopes with characters that RFC 6749 does not allow.
func (f *Findings) Scopes(path string, scopes []string) {
	for i, scope := range scopes {
		if strings.ContainsFunc(scope, notInScope) {
			f.Addf(Item(path, i), "not a scope: printable ASCII without spaces, quotes and backslashes; "+
				"several scopes are several items")
		}
	}
}

// notInScope is the inverse of RFC 6749's NQCHAR, the characters of scopes.
func notInScope(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }

// Short formats durations without zero units: 5m, not 5m0s.
func Short(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// Texts converts values of a text type.
func Texts[T ~string](values []T) []string {
	converted := make([]string, len(values))
	for i, value := range values {
		converted[i] = string(value)
	}
	return converted
}
