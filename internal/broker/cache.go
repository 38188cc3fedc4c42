package broker

import (
	"sync"
	"sync/atomic"
	"time"

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
