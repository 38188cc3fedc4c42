package idp

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"strconv"
)

// Fingerprint tells configurations apart: two Clients with the same one send
// the same requests for the same [Request], apart from the secret, the
// certificate or the assertion that is kept for them, and read the answers
// alike. Only such Clients may share tokens and failures.
func (c *Client) Fingerprint() [sha256.Size]byte {
	issuer := ""
	if c.cfg.Issuer != nil {
		issuer = c.cfg.Issuer.URL()
	}
	// A certificate that assertions name goes with the key; whether one is named
	// does not.
	named := strconv.FormatBool(c.cfg.Assertion.CertificateFile != "")
	parts := []string{
		"2", c.cfg.TokenURL, issuer, c.cfg.ClientID, string(c.cfg.Auth), c.cfg.Grant,
		c.cfg.Assertion.Audience, c.cfg.Assertion.Algorithm, c.cfg.Assertion.KeyID, c.cfg.Assertion.Type, c.cfg.Assertion.Subject, named,
		strconv.FormatBool(c.cfg.RawBasic), c.cfg.DefaultLifetime.String(),
		strconv.Itoa(len(c.cfg.Params)),
	}
	for _, name := range slices.Sorted(maps.Keys(c.cfg.Params)) {
		parts = append(parts, name, c.cfg.Params[name])
	}
	parts = append(parts, c.cfg.Extras...)
	// With their lengths before them: "ab"+"c" is not "a"+"bc".
	var buf []byte
	for _, part := range parts {
		buf = append(binary.AppendUvarint(buf, uint64(len(part))), part...)
	}
	return sha256.Sum256(buf)
}
