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

	// cacheShards keep cores from waiting for one another.
	cacheShards = 32

	// cacheDomain sets the digests apart from whatever else might be made under
	// the same key.
	cacheDomain = "tokenbroker: facts of a JWT\x00"
	// cacheHead is how much is digested before the token: the domain, and the
	// token's length.
	cacheHead = len(cacheDomain) + 8
)

// cacheKey stands for a token. It is a whole HMAC-SHA256 under a key that is in
// this process alone: nobody can look for two tokens with the same one, and
// nothing of a token can be read off it.
type cacheKey [sha256.Size]byte

// factsCache remembers the facts of tokens whose signature held, and which key
// made it. It remembers nothing that depends on the time, on who asks or for
// what, and nothing of tokens whose signature did not hold or could not be
// verified: with or without it every answer is the same.
//
// It holds no part of a token but its claims. Each of its shards drops the
// oldest entries that were not used of late when it holds more bytes than its
// part of the bound.
type factsCache struct {
	hashers sync.Pool // of *cacheHasher
	shards  [cacheShards]cacheShard
	bytes   atomic.Int64 // in all shards
	metrics cacheMetrics
}

// newFactsCache returns nil, which remembers nothing, if size is negative.
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
		c.shards[i].entries = map[cacheKey]*cacheEntry{}
		c.shards[i].most = size / cacheShards
	}
	return c
}

// cacheHasher makes digests. What it holds of a token it forgets.
type cacheHasher struct {
	mac hash.Hash
	buf []byte
	sum cacheKey
}

func newCacheHasher(key []byte) *cacheHasher {
	mac := hmac.New(sha256.New, key)
	// The first Reset only prepares those that follow. These wipe, too, what is
	// left of the last block that was digested.
	mac.Reset()
	return &cacheHasher{mac: mac}
}

func (h *cacheHasher) digest(token string) cacheKey {
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

// cacheEntry is what is remembered of a token. But for used it is immutable
// outside of its shard.
type cacheEntry struct {
	id     cacheKey
	issuer *issuer
	key    *jose.Key
	facts  *Facts

	used atomic.Bool // since the shard last looked
	cost int64
	next *cacheEntry // the one that was added after it
}

// find returns the key of a token, and what is remembered of it, if anything is.
// Whether that may be used is for the caller to decide. Nothing that is too long
// to be a token is looked up.
func (c *factsCache) find(presented redact.String) (cacheKey, *cacheEntry) {
	if c == nil {
		return cacheKey{}, nil
	}
	token := presented.Reveal()
	if len(token) > jose.MaxTokenSize {
		return cacheKey{}, nil
	}
	hasher := c.hashers.Get().(*cacheHasher) //nolint:forcetypeassert // the pool holds nothing else
	id := hasher.digest(token)
	c.hashers.Put(hasher)
	return id, c.shard(id).get(id)
}

func (c *factsCache) shard(id cacheKey) *cacheShard { return &c.shards[id[0]%cacheShards] }

func (c *factsCache) hit(e *cacheEntry) {
	if !e.used.Load() { // most often it is, and cores need not wait for the line
		e.used.Store(true)
	}
	c.metrics.hits.Inc()
}

func (c *factsCache) miss() {
	if c != nil {
		c.metrics.misses.Inc()
	}
}

// put remembers the facts of a token whose signature was found good.
func (c *factsCache) put(id cacheKey, issuer *issuer, key *jose.Key, facts *Facts) {
	if c == nil {
		return
	}
	added := c.shard(id).put(&cacheEntry{id: id, issuer: issuer, key: key, facts: facts, cost: cacheCost(facts)})
	c.metrics.bytes.Set(float64(c.bytes.Add(added)))
}

// cacheShard is a queue of entries, and an index of it.
type cacheShard struct {
	mu             sync.Mutex
	entries        map[cacheKey]*cacheEntry
	oldest, newest *cacheEntry
	bytes, most    int64 // of all in the queue
}

func (s *cacheShard) get(id cacheKey) *cacheEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries[id]
}

// put returns how many bytes more the shard holds then.
func (s *cacheShard) put(e *cacheEntry) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.entries[e.id]; known != nil && known.key == e.key { // two verified it at once
		return 0
	}
	before := s.bytes
	// What was there, under a key that is not trusted any more, stays in the
	// queue until its turn.
	s.entries[e.id] = e
	s.append(e)
	s.bytes += e.cost
	for s.bytes > s.most {
		s.dropOne()
	}
	return s.bytes - before
}

// dropOne drops the oldest entry, or gives it another round if it was used.
func (s *cacheShard) dropOne() {
	e := s.oldest
	s.oldest = e.next
	inUse := s.entries[e.id] == e
	if inUse && e.used.Swap(false) {
		s.append(e)
		return
	}
	s.bytes -= e.cost
	if inUse {
		delete(s.entries, e.id)
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

// cacheCost is how many bytes an entry takes up in memory, or a little more.
func cacheCost(f *Facts) int64 {
	const (
		entry = 96 + 256 + 104 // itself, its Facts, and its place in an index that may be half empty
		text  = 16             // header of a string
	)
	cost := entry + block(cap(f.Claims)) + block(len(f.typ))
	for _, s := range [...]string{f.Subject, f.ClientID, f.TokenID} {
		cost += block(len(s))
	}
	for _, list := range [...][]string{f.Audience, f.Scopes} {
		cost += block(text * cap(list))
		for _, s := range list {
			cost += block(len(s))
		}
	}
	if c := f.Confirmation; c != nil {
		cost += block(3*text) + block(len(c.JKT)) + block(len(c.X5TS256))
	}
	return int64(cost)
}

// block is what an allocation of that many bytes takes up at most.
func block(size int) int {
	if size == 0 {
		return 0
	}
	return size + max(size/8, 15)
}
