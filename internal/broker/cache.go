package broker

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/secret"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/token"
)

// entry holds one token: the request to the IdP, the last token, and the failure
// since. Readers of the token take no lock.
type entry struct {
	client *client
	ask    idp.Request
	name   string // in the store

	token atomic.Pointer[token.Token]
	// failure is the last failure; empty after a success.
	failure backoff.Slot
	// flight is the running fetch. It is stored under mu and read anywhere.
	flight atomic.Pointer[flight]
	// quietUntil (Unix nanoseconds) is the time to retry a refresh that was postponed
	// because the store is away.
	quietUntil atomic.Int64
	// changed is fired when the token was replaced.
	changed store.Signal
	// given records in the audit log the callers that received the token; nil: not
	// given yet, or no audit log. It is stored under mu and read anywhere.
	given atomic.Pointer[audit.Given]
	// gone: the entry was removed from the cache.
	gone atomic.Bool

	mu sync.Mutex
	// forcedAt is the last time that a fetch was forced although a token was held.
	forcedAt time.Time
	// watches counts the watches of the token; subscription reports changes by other
	// replicas.
	watches      int
	subscription *store.Subscription
	replacements store.Coalescer
}

// usable reports whether the token may be handed out: it lives long enough and was not
// purged.
func (e *entry) usable(tok *token.Token, now time.Time, minTTL time.Duration) bool {
	return tok != nil && tok.Epoch >= e.client.epoch.Load() && tok.Usable(now, minTTL)
}

// activeFailure returns the failure that stops requests of the entry to the IdP, or
// nil. A failure of the client stops all of its entries, and so does the refusal of
// all of its secrets.
func (e *entry) activeFailure(now time.Time) *backoff.Failure {
	if t := e.client.failure.Load(); t.Active(now) {
		return t
	}
	u := e.client.secrets.View()
	if t := e.failure.Load(); t.Active(now) && (t.Doubted == "" || u.Current == nil || u.Current.ID == t.Doubted) {
		return t
	}
	return u.Refusal(now)
}

// failing reports whether the last attempt to get a token failed, even if a retry is
// due.
func (e *entry) failing() bool {
	return e.failure.Load() != nil || e.client.failure.Load() != nil || e.client.secrets.View().Failing()
}

// shards keeps the entries of requests other than the clients' defaults, spread over
// locks so that callers of different tokens rarely contend.
type shards struct {
	shards   [64]shard
	maxShard int
}

type shard struct {
	mu      sync.RWMutex
	entries map[key]*entry
}

func newShards(maxEntries int) *shards {
	s := &shards{}
	s.maxShard = max(1, maxEntries/len(s.shards))
	for i := range s.shards {
		s.shards[i].entries = map[key]*entry{}
	}
	return s
}

// get returns the client's entry at k. It calls create if there is no entry, or only
// one of a former client of the same name.
func (s *shards) get(k key, c *client, create func() *entry) *entry {
	shard := &s.shards[int(k[0])%len(s.shards)]
	shard.mu.RLock()
	existing := shard.entries[k]
	shard.mu.RUnlock()
	if existing != nil && existing.client == c {
		return existing
	}
	shard.mu.Lock()
	defer shard.mu.Unlock()
	existing = shard.entries[k]
	if existing != nil && existing.client == c {
		return existing
	}
	if existing == nil && len(shard.entries) >= s.maxShard {
		shard.evict()
	}
	if existing != nil {
		existing.evicted()
	}
	created := create()
	shard.entries[k] = created
	return created
}

// evict drops the entry whose token ends first in a small random sample (the order of
// a map). It keeps entries that are watched or have a running fetch, beside which a
// second fetch could start. If the whole sample must stay, the shard grows by one.
func (s *shard) evict() {
	const sample = 16
	var victim key
	var victimEnds time.Time
	found, seen := false, 0
	for k, e := range s.entries {
		if seen++; seen > sample {
			break
		}
		if e.flight.Load() != nil || e.watched() {
			continue
		}
		ends := time.Time{}
		if tok := e.token.Load(); tok != nil {
			ends = tok.ExpiresAt
		}
		if !found || ends.Before(victimEnds) {
			victim, victimEnds, found = k, ends, true
		}
	}
	if found {
		s.entries[victim].evicted()
		delete(s.entries, victim)
	}
}

// each calls do for every entry.
func (s *shards) each(do func(*entry)) {
	for i := range s.shards {
		shard := &s.shards[i]
		shard.mu.RLock()
		for _, e := range shard.entries {
			do(e)
		}
		shard.mu.RUnlock()
	}
}

// count returns the number of entries.
func (s *shards) count() int {
	n := 0
	for i := range s.shards {
		shard := &s.shards[i]
		shard.mu.RLock()
		n += len(shard.entries)
		shard.mu.RUnlock()
	}
	return n
}

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
