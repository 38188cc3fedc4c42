package broker

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/cezzis/tokenbroker/internal/idp"
)

// key identifies a token by everything that reaches the token endpoint: two
// questions share a token exactly if the IdP would see the same request. What
// belongs to the client (its name stands for it) is in its configuration.
type key [sha256.Size]byte

// keyOf hashes the parts with their lengths before them, because without them
// "ab"+"c" and "a"+"bc" would share a token. ask must be canonical.
func keyOf(client string, ask idp.Request) key {
	room := [512]byte{}
	buf := appendPart(room[:0], client)
	buf = appendPart(buf, ask.Audience)
	buf = appendParts(buf, ask.Resources)
	buf = appendParts(buf, ask.Scopes)
	return sha256.Sum256(buf)
}

func appendPart(buf []byte, part string) []byte {
	return append(binary.AppendUvarint(buf, uint64(len(part))), part...)
}

func appendParts(buf []byte, parts []string) []byte {
	buf = binary.AppendUvarint(buf, uint64(len(parts)))
	for _, part := range parts {
		buf = appendPart(buf, part)
	}
	return buf
}

// canonicalScopes sorts scopes and drops repetitions: their order means nothing
// (RFC 6749 section 3.3). It returns its argument where that is so already, and
// never changes it. The order of resources is kept: it may mean something.
func canonicalScopes(scopes []string) []string {
	for i := 1; i < len(scopes); i++ {
		if scopes[i-1] >= scopes[i] {
			return slices.Compact(slices.Sorted(slices.Values(scopes)))
		}
	}
	return scopes
}
