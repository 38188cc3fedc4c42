// Package redacttest looks for what must not be seen in the places where it might
// be.
package redacttest

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"
)

// Canary is a text that is nowhere but where it should be.
func Canary(what string) string { return "canary-" + what + "-" + strings.ToLower(rand.Text()) }

// Places are what there is to search: texts by the names of their places.
type Places map[string]string

// Of returns the places where a text is: as it is, or as the encodings have it that
// protocols use.
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

// Size is the length of all texts together.
func (p Places) Size() (bytes int) {
	for _, content := range p {
		bytes += len(content)
	}
	return bytes
}
