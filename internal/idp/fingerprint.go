package idp

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"strconv"
)

// Fingerprint tells configurations apart: two Clients with the same one send
// the same requests for the same [Request], apart from the secret, and read the
// answers alike. Only such Clients may share tokens and failures.
func (c *Client) Fingerprint() [sha256.Size]byte {
	issuer := ""
	if c.cfg.Issuer != nil {
		issuer = c.cfg.Issuer.URL()
	}
	parts := []string{
		"1", c.cfg.TokenURL, issuer, c.cfg.ClientID, string(c.cfg.Auth),
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
