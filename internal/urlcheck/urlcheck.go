// Package urlcheck checks the URLs and issuers in a configuration file.
package urlcheck

import (
	"net/url"
	"strings"
	"unicode"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// Identifier checks an issuer that is only compared with iss, never connected to: it
// need not be a URL.
func Identifier(path, identifier string, findings *yamlconf.Findings) {
	switch u, err := url.Parse(identifier); {
	case strings.ContainsFunc(identifier, unicode.IsControl), strings.TrimSpace(identifier) != identifier:
		findings.Addf(path, "must not contain control characters, or begin or end with a space: no token names such an issuer")
	case err == nil && u.User != nil:
		findings.Addf(path, "the URL must not contain a user name or password")
	}
}

// Undiscoverable returns the reason why the metadata of an issuer cannot be fetched.
func Undiscoverable(issuer string, allowHTTP, allowPrivate bool) error {
	if issuer == "" {
		return nil // reported elsewhere
	}
	if err := discovery.Problem(issuer, allowHTTP); err != nil {
		return err
	}
	return discovery.CheckHost(issuer, allowPrivate)
}

func valid(path, raw string, allowHTTP bool, findings *yamlconf.Findings) bool {
	if raw == "" {
		return false
	}
	err := discovery.Problem(raw, allowHTTP)
	if err != nil {
		findings.Addf(path, "%v", err)
	}
	return err == nil
}

// URL checks a URL that only others connect to. An empty one is not checked.
func URL(path, raw string, allowHTTP bool, findings *yamlconf.Findings) {
	valid(path, raw, allowHTTP, findings)
}

// Endpoint checks a URL that the broker connects to. An empty one is not checked.
func Endpoint(path, raw string, allowHTTP, allowPrivate bool, findings *yamlconf.Findings) {
	if !valid(path, raw, allowHTTP, findings) {
		return
	}
	if err := discovery.CheckHost(raw, allowPrivate); err != nil {
		findings.Addf(path, "%v", err)
	}
}
