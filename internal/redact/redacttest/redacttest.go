// Package redacttest finds leaked secrets in the output of tests.
package redacttest

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"
)

// Canary returns a unique text to use as a secret.
func Canary(name string) string { return "canary-" + name + "-" + strings.ToLower(rand.Text()) }

// Places are the texts to search, by the names of their places.
type Places map[string]string

// Of returns the sorted names of the places that contain text, in the clear or in an
// encoding that protocols use.
func (p Places) Of(text string) []string {
	forms := forms(text)
	var found []string
	for place, content := range p {
		if slices.ContainsFunc(forms, func(form string) bool { return strings.Contains(content, form) }) {
			found = append(found, place)
		}
	}
	slices.Sort(found)
	return found
}

func forms(text string) []string {
	raw := []byte(text)
	return []string{
		text, url.QueryEscape(text), hex.EncodeToString(raw),
		base64.RawStdEncoding.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw),
	}
}

// Size returns the total length of the texts in bytes.
func (p Places) Size() (bytes int) {
	for _, content := range p {
		bytes += len(content)
	}
	return bytes
}
