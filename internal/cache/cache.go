// Package cache is a bounded map of tokens, spread over locks so that callers of different
// tokens rarely contend.
package cache

import (
	"crypto/sha256"
	"sync"
	"time"
)

// Key is a hash, so that any of its bytes can select a shard.
type Key = [sha256.Size]byte

// Entry is an entry of a cache.
type Entry interface {
	comparable
	// Pinned reports whether the entry must not be evicted now.
	Pinned() bool
	// ExpiresAt returns when the entry becomes useless; zero: it is useless now.
	ExpiresAt() time.Time
	// Evicted is called once after the entry was removed.
	Evicted()
}

// Cache holds entries by key. It is safe for concurrent use.
type Cache[E Entry] struct {
	shards   [64]shard[E]
	maxShard int
}

type shard[E Entry] struct {
	mu      sync.RWMutex
	entries map[Key]E
}

// New returns an empty cache for about maxEntries.
func New[E Entry](maxEntries int) *Cache[E] {
	c := &Cache[E]{}
	c.maxShard = max(1, maxEntries/len(c.shards))
	for i := range c.shards {
		c.shards[i].entries = map[Key]E{}
	}
	return c
}

// Get returns the entry at a key. It calls create if there is no entry, or one that is not
// valid.
func (c *Cache[E]) Get(k Key, valid func(E) bool, create func() E) E {
	shard := &c.shards[int(k[0])%len(c.shards)]
	shard.mu.RLock()
	existing, ok := shard.entries[k]
	shard.mu.RUnlock()
	if ok && valid(existing) {
		return existing
	}
	shard.mu.Lock()
	defer shard.mu.Unlock()
	existing, ok = shard.entries[k]
	switch {
	case ok && valid(existing):
		return existing
	case ok:
		existing.Evicted()
	case len(shard.entries) >= c.maxShard:
		shard.evict()
	}
	created := create()
	shard.entries[k] = created
	return created
}

// evict drops the entry that expires first in a small random sample (the order of a map).
// If the whole sample is pinned, the shard grows by one.
func (s *shard[E]) evict() {
	const sample = 16
	var victim E
	var victimKey Key
	var victimEnds time.Time
	chosen, seen := false, 0
	for k, e := range s.entries {
		if seen++; seen > sample {
			break
		}
		if e.Pinned() {
			continue
		}
		if ends := e.ExpiresAt(); !chosen || ends.Before(victimEnds) {
			victim, victimKey, victimEnds, chosen = e, k, ends, true
		}
	}
	if chosen {
		delete(s.entries, victimKey)
		victim.Evicted()
	}
}

// Each calls do for every entry.
func (c *Cache[E]) Each(do func(E)) {
	for i := range c.shards {
		shard := &c.shards[i]
		shard.mu.RLock()
		for _, e := range shard.entries {
			do(e)
		}
		shard.mu.RUnlock()
	}
}

// Len returns the number of entries.
func (c *Cache[E]) Len() int {
	n := 0
	for i := range c.shards {
		shard := &c.shards[i]
		shard.mu.RLock()
		n += len(shard.entries)
		shard.mu.RUnlock()
	}
	return n
}
