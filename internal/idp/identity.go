package idp

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/cezzis/tokenbroker/internal/secret"
)

// Request describes the token that a caller requests. Empty fields are not sent.
type Request struct {
	Audience string
	// Resources are sent as RFC 8707 resource parameters, in this order.
	Resources []string
	Scopes    []string
	// Once suppresses the retry after a response from the IdP. It suits a caller
	// that still has a usable token. The retry after a failed connection remains.
	Once bool
}

// WithDefaults fills in a client's own audience, resources and scopes.
func (r Request) WithDefaults(own Request) Request {
	if r.Audience != "" {
		own.Audience = r.Audience
	}
	if len(r.Resources) > 0 {
		own.Resources = r.Resources
	}
	if len(r.Scopes) > 0 {
		own.Scopes = CanonicalScopes(r.Scopes)
	}
	return own
}

// Key identifies the token for a request of one client.
type Key [sha256.Size]byte

// Key returns the key of the request by the client with this name. Two requests have the
// same key exactly if the IdP would see the same request: everything that reaches the
// token endpoint is part of it, and the name stands for the client's settings. The scopes
// must be canonical. The parts have length prefixes, because without them "ab"+"c" and
// "a"+"bc" would share a token.
func (r Request) Key(client string) Key {
	room := [512]byte{}
	buf := secret.AppendPart(room[:0], client)
	buf = secret.AppendPart(buf, r.Audience)
	buf = appendParts(buf, r.Resources)
	buf = appendParts(buf, r.Scopes)
	return sha256.Sum256(buf)
}

func appendParts(buf []byte, parts []string) []byte {
	buf = binary.AppendUvarint(buf, uint64(len(parts)))
	for _, part := range parts {
		buf = secret.AppendPart(buf, part)
	}
	return buf
}

// CanonicalScopes sorts scopes and removes duplicates: their order is insignificant
// (RFC 6749 section 3.3). It returns an argument that is canonical, and never changes it.
// The order of resources is kept, because it may be significant.
func CanonicalScopes(scopes []string) []string {
	for i := 1; i < len(scopes); i++ {
		if scopes[i-1] >= scopes[i] {
			return slices.Compact(slices.Sorted(slices.Values(scopes)))
		}
	}
	return scopes
}
