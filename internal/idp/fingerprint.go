package idp

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"strconv"
)

// Fingerprint returns a hash of the configuration. Two Clients with the same
// fingerprint send the same HTTP requests for the same [Request] and interpret
// responses in the same way. They may differ in their secret, their certificate and
// the content of their assertion file. Only such Clients may share tokens and
// failures.
func (c *Client) Fingerprint() [sha256.Size]byte {
	issuer := ""
	if c.cfg.Issuer != nil {
		issuer = c.cfg.Issuer.URL()
	}
	// The content of the certificate file changes with the key and does not count.
	// Its existence does.
	hasCertificate := strconv.FormatBool(c.cfg.Assertion.CertificateFile != "")
	parts := []string{
		"2", c.cfg.TokenURL, issuer, c.cfg.ClientID, string(c.cfg.Auth), c.cfg.Grant,
		c.cfg.Assertion.Audience, c.cfg.Assertion.Algorithm, c.cfg.Assertion.KeyID, c.cfg.Assertion.Type, c.cfg.Assertion.Subject, hasCertificate,
		strconv.FormatBool(c.cfg.RawBasic), c.cfg.DefaultLifetime.String(),
		strconv.Itoa(len(c.cfg.Params)),
	}
	for _, name := range slices.Sorted(maps.Keys(c.cfg.Params)) {
		parts = append(parts, name, c.cfg.Params[name])
	}
	if c.cfg.Exchange != nil {
		parts = append(parts, "", "exchange", c.cfg.Exchange.RequestedTokenType, strconv.FormatBool(c.cfg.Exchange.Assertions), c.cfg.Exchange.Actor) // no extra is empty
	}
	parts = append(parts, c.cfg.Extras...)
	// A length before each part keeps "ab"+"c" apart from "a"+"bc".
	var buf []byte
	for _, part := range parts {
		buf = append(binary.AppendUvarint(buf, uint64(len(part))), part...)
	}
	return sha256.Sum256(buf)
}
