package verify

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
)

const (
	defaultCacheBytes = 64 << 20

	// cacheShards is the number of locks, so that cores rarely wait for one another.
	cacheShards = 32

	// cacheDomain separates these digests from digests of other texts under the
	// same key.
	cacheDomain = "tokenbroker: facts of a JWT\x00"
	// cacheHead is the length of the digested prefix: the domain and the token's
	// length.
	cacheHead = len(cacheDomain) + 8
)

// tokenDigest identifies a token in a cache. It is a full HMAC-SHA256 under a key
// that never leaves this process: an attacker can neither search for two tokens
// with one digest nor recover any part of a token from it.
type tokenDigest [sha256.Size]byte

// factsCache caches the facts of tokens with a valid signature, and the key that
// verified each. It caches nothing that depends on the time or on the request, and
// nothing about tokens without a verified signature: results are the same with and
// without it.
//
// An entry holds no part of the token except its claims. When a shard exceeds its
// share of the memory bound, it evicts the oldest entries that were not used
// recently. A nil cache caches nothing. It is safe for concurrent use.
type factsCache struct {
	hashers sync.Pool // of *cacheHasher
	shards  [cacheShards]cacheShard
	bytes   atomic.Int64 // in all shards
	metrics cacheMetrics
}

// newFactsCache returns a cache of at most size bytes, or nil if size is negative.
func newFactsCache(size int64, metrics cacheMetrics) *factsCache {
	metrics.bytes.Set(0)
	if size < 0 {
		return nil
	}
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // it never fails
	c := &factsCache{metrics: metrics}
	c.hashers.New = func() any { return newCacheHasher(key) }
	for i := range c.shards {
		c.shards[i].entries = map[tokenDigest]*cacheEntry{}
		c.shards[i].maxBytes = size / cacheShards
	}
	return c
}

// cacheHasher computes digests. It wipes each token from its memory afterwards.
type cacheHasher struct {
	mac hash.Hash
	buf []byte
	sum tokenDigest
}

func newCacheHasher(key []byte) *cacheHasher {
	mac := hmac.New(sha256.New, key)
	// The first Reset only saves the initial state. Each later one restores it and so
	// wipes the last block of the token from the hash.
	mac.Reset()
	return &cacheHasher{mac: mac}
}

func (h *cacheHasher) digest(token string) tokenDigest {
	h.buf = slices.Grow(h.buf[:0], cacheHead+len(token))
	input := h.buf[:cacheHead+len(token)]
	copy(input, cacheDomain)
	binary.BigEndian.PutUint64(input[len(cacheDomain):], uint64(len(token)))
	copy(input[cacheHead:], token)
	_, _ = h.mac.Write(input) // it never fails
	h.mac.Sum(h.sum[:0])
	h.mac.Reset()
	clear(input)
	return h.sum
}

// cacheEntry holds the facts of one token. All fields except used are immutable
// outside the shard.
type cacheEntry struct {
	digest tokenDigest
	issuer *issuer
	key    *jose.Key // verified the signature
	facts  *Facts

	used atomic.Bool // since the shard last considered the entry for eviction
	cost int64       // bytes
	next *cacheEntry // the entry added after this one
}

// find returns the digest of a token and its cached entry; nil if there is none.
// The caller decides whether the entry's key is still trusted. A text longer than
// [jose.MaxTokenSize] is not looked up.
func (c *factsCache) find(presented redact.String) (tokenDigest, *cacheEntry) {
	if c == nil {
		return tokenDigest{}, nil
	}
	token := presented.Reveal()
	if len(token) > jose.MaxTokenSize {
		return tokenDigest{}, nil
	}
	hasher := c.hashers.Get().(*cacheHasher) //nolint:forcetypeassert // the pool holds nothing else
	digest := hasher.digest(token)
	c.hashers.Put(hasher)
	return digest, c.shard(digest).get(digest)
}

func (c *factsCache) shard(digest tokenDigest) *cacheShard {
	return &c.shards[digest[0]%cacheShards]
}

func (c *factsCache) hit(e *cacheEntry) {
	if !e.used.Load() { // a needless store would make cores contend for the cache line
		e.used.Store(true)
	}
	c.metrics.hits.Inc()
}

func (c *factsCache) miss() {
	if c != nil {
		c.metrics.misses.Inc()
	}
}

// put caches the facts of a token after key has verified its signature.
func (c *factsCache) put(digest tokenDigest, issuer *issuer, key *jose.Key, facts *Facts) {
	if c == nil {
		return
	}
	added := c.shard(digest).put(&cacheEntry{digest: digest, issuer: issuer, key: key, facts: facts, cost: factsCost(facts)})
	c.metrics.bytes.Set(float64(c.bytes.Add(added)))
}

// cacheShard is a queue of entries with an index.
type cacheShard struct {
	mu              sync.Mutex
	entries         map[tokenDigest]*cacheEntry
	oldest, newest  *cacheEntry
	bytes, maxBytes int64 // bytes counts all entries in the queue
}

func (s *cacheShard) get(digest tokenDigest) *cacheEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries[digest]
}

// put adds an entry and returns by how many bytes the shard has grown.
func (s *cacheShard) put(e *cacheEntry) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cached := s.entries[e.digest]; cached != nil && cached.key == e.key { // two calls verified the token at once
		return 0
	}
	before := s.bytes
	// The key of a replaced entry is no longer trusted. The entry leaves the index but
	// stays in the queue until it is evicted.
	s.entries[e.digest] = e
	s.append(e)
	s.bytes += e.cost
	for s.bytes > s.maxBytes {
		s.evictOne()
	}
	return s.bytes - before
}

// evictOne evicts the oldest entry, or moves it to the end of the queue if it was
// used since it was last considered.
func (s *cacheShard) evictOne() {
	e := s.oldest
	s.oldest = e.next
	indexed := s.entries[e.digest] == e
	if indexed && e.used.Swap(false) {
		s.append(e)
		return
	}
	s.bytes -= e.cost
	if indexed {
		delete(s.entries, e.digest)
	}
}

func (s *cacheShard) append(e *cacheEntry) {
	e.next = nil
	if s.oldest == nil {
		s.oldest = e
	} else {
		s.newest.next = e
	}
	s.newest = e
}

// factsCost estimates the memory of a cache entry with these facts, in bytes. It
// errs on the high side.
func factsCost(f *Facts) int64 {
	const (
		entry = 96 + 256 + 104 // the entry, its Facts and its slot in an index that may be half empty
		text  = 16             // header of a string
	)
	cost := entry + allocation(len(f.Claims)) + allocation(len(f.typ))
	for _, s := range [...]string{f.Subject, f.ClientID, f.TokenID} {
		cost += allocation(len(s))
	}
	for _, list := range [...][]string{f.Audience, f.Scopes} {
		cost += allocation(text * len(list))
		for _, s := range list {
			cost += allocation(len(s))
		}
	}
	if c := f.Confirmation; c != nil {
		cost += allocation(3*text) + allocation(len(c.JKT)) + allocation(len(c.X5TS256))
	}
	return int64(cost)
}

// allocation returns an upper bound of the memory that the runtime takes for size
// bytes, because it rounds up to size classes.
func allocation(size int) int {
	if size == 0 {
		return 0
	}
	return size + max(size/8, 15)
}
