package broker

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// The keys of the store are keyed hashes, because keys appear in the logs of databases,
// which must not reveal the clients' names and requests. All keys of a client share a hash
// tag, so that one script may use several.

// name returns the keyed hash of parts of one kind.
func (b *Broker) name(kind string, parts ...[]byte) string { return secret.Name(b.mac, kind, parts...) }

// clientKeys are the keys of a client's own state. The epoch, the fences and the
// secrets belong to its name, for as long as a client has that name; the rest belongs
// to its configuration, so that replicas with different configurations do not adopt
// each other's failures.
type clientKeys struct {
	tag         string
	config      string // a name of the configuration
	epoch       string // counter: a purge raises it
	fences      string // counter: numbers the client's leases
	secrets     string // the history of its secrets
	failure     string // throttling
	proof       string // the secret version that was the last to obtain a token
	probe       string // lease of the fetch that tries an unproven secret
	lastFailure string // the last failure, for operators
}

func clientKeysOf(mac secret.MAC, name string, fingerprint [sha256.Size]byte) clientKeys {
	tag := "{" + secret.Name(mac, "client", []byte(name)) + "}"
	config := secret.Name(mac, "config", fingerprint[:])
	return clientKeys{
		tag:         tag,
		config:      config,
		epoch:       tag + "epoch",
		fences:      tag + "fences",
		secrets:     tag + "secrets",
		failure:     tag + config + ":trouble",
		proof:       tag + config + ":proved",
		probe:       tag + config + ":probe",
		lastFailure: tag + config + ":failed",
	}
}

// refusals is the key of the refusals of one version of the secret.
func (k clientKeys) refusals(version string) string { return k.tag + k.config + ":refused:" + version }

// purge is the key of the record of one purge request.
func (k clientKeys) purge(request string) string { return k.tag + "purge:" + request }

// The keys of one request for tokens.
func (e *entry) tokenKey() string   { return e.client.keys.tag + e.name + ":token" }
func (e *entry) failureKey() string { return e.client.keys.tag + e.name + ":trouble" }
func (e *entry) leaseKey() string   { return e.client.keys.tag + e.name + ":lease" }
func (e *entry) forcedKey() string  { return e.client.keys.tag + e.name + ":forced" }

// key identifies a token by everything that reaches the token endpoint: two requests
// share a token exactly if the IdP would see the same request. Settings of the client
// are in its configuration; its name stands for them.
type key [sha256.Size]byte

// keyOf hashes the parts with length prefixes, because without them "ab"+"c" and
// "a"+"bc" would share a token. ask must be canonical.
func keyOf(client string, ask idp.Request) key {
	room := [512]byte{}
	buf := secret.AppendPart(room[:0], client)
	buf = secret.AppendPart(buf, ask.Audience)
	buf = appendParts(buf, ask.Resources)
	buf = appendParts(buf, ask.Scopes)
	return sha256.Sum256(buf)
}

func appendParts(buf []byte, parts []string) []byte {
	buf = binary.AppendUvarint(buf, uint64(len(parts)))
	for _, part := range parts {
		buf = secret.AppendPart(buf, part)
	}
	return buf
}

// canonicalScopes sorts scopes and removes duplicates: their order is insignificant
// (RFC 6749 section 3.3). It returns an argument that is canonical, and never changes
// it. The order of resources is kept, because it may be significant.
func canonicalScopes(scopes []string) []string {
	for i := 1; i < len(scopes); i++ {
		if scopes[i-1] >= scopes[i] {
			return slices.Compact(slices.Sorted(slices.Values(scopes)))
		}
	}
	return scopes
}
