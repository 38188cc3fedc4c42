package broker

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"slices"

	"github.com/cezzis/tokenbroker/internal/idp"
)

// names makes the keys under which things are kept in the store. They are keyed
// hashes, because keys stand in the logs of databases, and what clients are
// called and asked for is nobody's business there.
//
// All keys of a client share a hash tag, so that a script may touch several.
type names struct {
	mac func(data []byte) [sha256.Size]byte
}

// newNames takes a keyed hash that all replicas share. Nil: one of this
// process, for a store that nobody shares.
func newNames(mac func([]byte) [sha256.Size]byte) names {
	if mac != nil {
		return names{mac}
	}
	secret := make([]byte, sha256.Size)
	_, _ = rand.Read(secret) // never fails
	return names{func(data []byte) [sha256.Size]byte {
		hash := hmac.New(sha256.New, secret)
		_, _ = hash.Write(data)
		return [sha256.Size]byte(hash.Sum(nil))
	}}
}

// name is 128 bits of the keyed hash of something of a kind.
func (n names) name(kind string, parts ...[]byte) string {
	data := appendPart(nil, kind)
	for _, part := range parts {
		data = appendPart(data, string(part))
	}
	sum := n.mac(data)
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// clientKeys are the keys of what concerns a client as a whole. The epoch, the
// fences and the secrets belong to its name, for as long as there is a client of
// that name; the rest belongs to it as it is configured, so that replicas which
// are configured differently for a while do not take each other's failures for
// their own.
type clientKeys struct {
	tag         string
	config      string // a name of the configuration
	epoch       string // counter: a purge raises it
	fences      string // counter: numbers the client's leases
	secrets     string // the history of its secrets
	failure     string // throttling
	proof       string // the secret version that was the last to obtain a token
	probe       string // lease: who tries an unproven secret
	lastFailure string // the last failure, for operators
}

func (n names) client(name string, fingerprint [sha256.Size]byte) clientKeys {
	tag := "{" + n.name("client", []byte(name)) + "}"
	config := n.name("config", fingerprint[:])
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

// purge is the key of the record of one request to purge.
func (k clientKeys) purge(request string) string { return k.tag + "purge:" + request }

// The keys of one question.
func (e *entry) tokenKey() string   { return e.client.keys.tag + e.name + ":token" }
func (e *entry) failureKey() string { return e.client.keys.tag + e.name + ":trouble" }
func (e *entry) leaseKey() string   { return e.client.keys.tag + e.name + ":lease" }
func (e *entry) forcedKey() string  { return e.client.keys.tag + e.name + ":forced" }

// question names a question to a client.
func (n names) question(c *client, k key) string {
	return n.name("question", []byte(c.keys.config), k[:])
}

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
