package client

import (
	"context"
	"crypto/sha256"
	"sync"
	"time"
)

const (
	// DefaultCacheSize is how many tokens a Verifier caches.
	DefaultCacheSize = 10_000
	// maxToken is the longest token that a broker can be configured to accept, in
	// bytes. The broker decides whether a shorter one is too long.
	maxToken     = 64 << 10
	defaultRealm = "api"
	// verifyTimeout bounds each call to the broker.
	verifyTimeout = 10 * time.Second
	// Caches of at least minSharded tokens are sharded, to reduce lock contention.
	shardCount = 16
	minSharded = 1024
)

// Verifier verifies tokens for a service and caches the broker's results of
// valid tokens for as long as the broker allows. The cache holds claims; scopes
// are compared with them on each call. It is safe for concurrent use. Verifiers
// come from [Client.Verifier].
type Verifier struct {
	client     *Client
	required   requirements
	challenges challenges
	maxAge     time.Duration
	cache      claimsCache
}

// VerifierOption changes how a Verifier verifies. Each [VerifyOption] is one:
// it sets a requirement for all tokens, which the options of a call override.
type VerifierOption interface{ verifier(v *Verifier) }

type verifierOption func(*Verifier)

func (set verifierOption) verifier(v *Verifier) { set(v) }

// WithCacheSize bounds how many tokens are cached; those least recently used
// are evicted first. A cached token takes about twice its length in memory.
// Zero disables the cache. The default is [DefaultCacheSize].
func WithCacheSize(tokens int) VerifierOption {
	return verifierOption(func(v *Verifier) { v.cache = newClaimsCache(tokens) })
}

// WithCacheMaxAge bounds how long a result of the broker is cached, and thereby
// how late a revocation is noticed. The default is as long as the broker
// allows: 5 min unless its operator configures another time.
func WithCacheMaxAge(d time.Duration) VerifierOption {
	return verifierOption(func(v *Verifier) { v.maxAge = d })
}

// WithRealm sets the realm in the WWW-Authenticate of refused requests. The
// default is "api".
func WithRealm(realm string) VerifierOption {
	return verifierOption(func(v *Verifier) { v.challenges.realm = realm })
}

// Verifier returns a Verifier that uses this client's broker.
func (c *Client) Verifier(opts ...VerifierOption) *Verifier {
	v := &Verifier{client: c, challenges: challenges{realm: defaultRealm}, maxAge: 1<<63 - 1, cache: newClaimsCache(DefaultCacheSize)}
	for _, opt := range opts {
		opt.verifier(v)
	}
	v.required = v.required.withCacheKey()
	return v
}

// Verify verifies a token, given without "Bearer ". A result of the broker that
// is cached and still valid is used without a call; otherwise a call to the
// broker takes 10 s at most. The options take precedence over the Verifier's.
// The errors are the same as of [Client.Verify].
func (v *Verifier) Verify(ctx context.Context, token string, opts ...VerifyOption) (*Claims, error) {
	return v.verify(ctx, token, v.required.with(opts))
}

func (v *Verifier) verify(ctx context.Context, token string, required requirements) (*Claims, error) {
	if len(token) > maxToken || !isBearer(token) {
		return nil, &RejectedError{ReasonMalformed, "this is not a bearer token"}
	}
	scopes := required.scopes
	required.scopes = nil // compared below, so that one cached result serves all scopes
	key := cacheKey{sha256.Sum256([]byte(token)), required.cacheKey}
	claims := v.cache.get(key, time.Now())
	if claims == nil {
		ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
		defer cancel()
		sent := time.Now()
		var err error
		if claims, err = v.client.verify(ctx, token, required); err != nil {
			return nil, err
		}
		v.cache.put(key, claims, sent, min(v.maxAge, claims.ValidUntil.Sub(sent.Round(0))))
	}
	if !claims.HasScopes(scopes...) {
		return nil, missingScope(scopes)
	}
	return claims, nil
}

// cacheKey identifies a result. It has only a digest, so that the cache holds
// no tokens.
type cacheKey struct {
	token        [sha256.Size]byte
	requirements string
}

// claimsCache caches results. Each shard has two generations: an entry that is
// used moves to the young one. When that is full it becomes the old one, and
// the previous old one is dropped.
type claimsCache struct {
	generation int // entries; 0 disables the cache
	shards     []cacheShard
}

type cacheShard struct {
	mu         sync.Mutex
	young, old map[cacheKey]cacheEntry
}

type cacheEntry struct {
	claims *Claims
	until  time.Time // by the monotonic clock
	wall   int64     // and by the wall clock
}

func (e cacheEntry) valid(now time.Time) bool {
	return e.claims != nil && now.Before(e.until) && now.UnixNano() < e.wall
}

func newClaimsCache(size int) claimsCache {
	shards := shardCount
	if size < minSharded {
		shards = 1
	}
	return claimsCache{generation: max(0, (size+1)/2/shards), shards: make([]cacheShard, shards)}
}

func (c *claimsCache) shard(key cacheKey) *cacheShard {
	return &c.shards[int(key.token[0])%len(c.shards)]
}

// get returns the valid cached claims, or nil.
func (c *claimsCache) get(key cacheKey, now time.Time) *Claims {
	shard := c.shard(key)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	entry, ok := shard.young[key]
	if !ok {
		if entry = shard.old[key]; entry.valid(now) {
			shard.add(key, entry, c.generation)
		}
	}
	if !entry.valid(now) {
		return nil
	}
	return entry.claims
}

// put caches claims for ttl after the request was sent.
func (c *claimsCache) put(key cacheKey, claims *Claims, sent time.Time, ttl time.Duration) {
	if c.generation == 0 || ttl <= 0 {
		return
	}
	shard := c.shard(key)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	until := sent.Add(ttl)
	shard.add(key, cacheEntry{claims, until, until.UnixNano()}, c.generation)
}

func (s *cacheShard) add(key cacheKey, entry cacheEntry, limit int) {
	if s.young == nil || len(s.young) >= limit {
		s.old, s.young = s.young, make(map[cacheKey]cacheEntry)
	}
	s.young[key] = entry
}
