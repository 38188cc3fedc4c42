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
	// Caches of at least smallCache tokens are sharded, to reduce lock contention.
	manyShards = 16
	smallCache = 1024
)

// Verifier verifies tokens for a service and caches the broker's results of
// valid tokens for as long as the broker allows. The cache holds claims; scopes
// are compared with them on each call. It is safe for concurrent use. Verifiers
// come from [Client.Verifier].
type Verifier struct {
	client *Client
	want   wanted
	realm  string
	maxAge time.Duration
	cache  claimsCache
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
	return verifierOption(func(v *Verifier) { v.realm = realm })
}

// Verifier returns a Verifier that uses this client's broker.
func (c *Client) Verifier(opts ...VerifierOption) *Verifier {
	v := &Verifier{client: c, realm: defaultRealm, maxAge: 1<<63 - 1, cache: newClaimsCache(DefaultCacheSize)}
	for _, opt := range opts {
		opt.verifier(v)
	}
	v.want = v.want.ready()
	return v
}

// Verify verifies a token, given without "Bearer ". A result of the broker that
// is cached and still valid is used without a call; otherwise a call to the
// broker takes 10 s at most. The options take precedence over the Verifier's.
// The errors are the same as of [Client.Verify].
func (v *Verifier) Verify(ctx context.Context, token string, opts ...VerifyOption) (*Claims, error) {
	return v.verify(ctx, token, v.want.with(opts))
}

func (v *Verifier) verify(ctx context.Context, token string, want wanted) (*Claims, error) {
	if len(token) > maxToken || !isBearer(token) {
		return nil, &RejectedError{ReasonMalformed, "this is not a bearer token"}
	}
	scopes := want.scopes
	want.scopes = nil // compared below, so that one cached result serves all scopes
	key := cacheKey{sha256.Sum256([]byte(token)), want.answer}
	claims := v.cache.get(key, time.Now())
	if claims == nil {
		ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
		defer cancel()
		asked := time.Now()
		var err error
		if claims, err = v.client.verify(ctx, token, want); err != nil {
			return nil, err
		}
		v.cache.put(key, claims, asked, min(v.maxAge, claims.ValidUntil.Sub(asked.Round(0))))
	}
	if !claims.HasScopes(scopes...) {
		return nil, lacks(scopes)
	}
	return claims, nil
}

// cacheKey identifies a result. It has only a digest, so that the cache holds
// no tokens.
type cacheKey struct {
	token  [sha256.Size]byte
	answer string // as in wanted
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
	young, old map[cacheKey]remembrance
}

type remembrance struct {
	claims *Claims
	until  time.Time // by the monotonic clock
	wall   int64     // and by the wall clock
}

func (r remembrance) good(now time.Time) bool {
	return r.claims != nil && now.Before(r.until) && now.UnixNano() < r.wall
}

func newClaimsCache(size int) claimsCache {
	shards := manyShards
	if size < smallCache {
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
	found, young := shard.young[key]
	if !young {
		if found = shard.old[key]; found.good(now) {
			shard.add(key, found, c.generation)
		}
	}
	if !found.good(now) {
		return nil
	}
	return found.claims
}

// put caches claims for the time lasts, counted from when the request was sent.
func (c *claimsCache) put(key cacheKey, claims *Claims, asked time.Time, lasts time.Duration) {
	if c.generation == 0 || lasts <= 0 {
		return
	}
	shard := c.shard(key)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	until := asked.Add(lasts)
	shard.add(key, remembrance{claims, until, until.UnixNano()}, c.generation)
}

func (s *cacheShard) add(key cacheKey, value remembrance, most int) {
	if s.young == nil || len(s.young) >= most {
		s.old, s.young = s.young, make(map[cacheKey]remembrance)
	}
	s.young[key] = value
}
