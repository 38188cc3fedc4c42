package client

import (
	"context"
	"crypto/sha256"
	"sync"
	"time"
)

const (
	// DefaultCacheSize is how many tokens a Verifier remembers.
	DefaultCacheSize = 10_000
	// maxToken is the longest token that a broker can be configured to accept. The
	// broker decides whether a shorter one is too long.
	maxToken     = 64 << 10
	defaultRealm = "api"
	// verifyTimeout bounds how long a request waits for the broker whose own
	// context has no end.
	verifyTimeout = 10 * time.Second
	// Caches beyond smallCache are in shards, so that cores seldom meet.
	manyShards = 16
	smallCache = 1024
)

// Verifier verifies tokens for a service and remembers what the broker said of
// the good ones, for as long as the broker allows. What is remembered is what a
// token says; scopes are compared with it on each call. It is safe for concurrent
// use. Verifiers come from [Client.Verifier].
type Verifier struct {
	client *Client
	want   wanted
	realm  string
	maxAge time.Duration
	cache  claimsCache
}

// VerifierOption changes how a Verifier verifies. Each [VerifyOption] is one: it
// is what all tokens must be good for, where a call does not say otherwise.
type VerifierOption interface{ verifier(v *Verifier) }

type verifierOption func(*Verifier)

func (set verifierOption) verifier(v *Verifier) { set(v) }

// WithCacheSize bounds how many tokens are remembered; those used least recently
// are forgotten first. A token takes about twice its length in memory. Zero: none
// are. Without it: [DefaultCacheSize].
func WithCacheSize(tokens int) VerifierOption {
	return verifierOption(func(v *Verifier) { v.cache = newClaimsCache(tokens) })
}

// WithCacheMaxAge bounds how long an answer of the broker's is remembered, and with it
// how late a revocation is noticed. Without it: as long as the broker allows, 5
// min unless its operator says otherwise.
func WithCacheMaxAge(d time.Duration) VerifierOption {
	return verifierOption(func(v *Verifier) { v.maxAge = d })
}

// WithRealm names what is protected, for the WWW-Authenticate of those who are
// turned away. Without it: "api".
func WithRealm(realm string) VerifierOption {
	return verifierOption(func(v *Verifier) { v.realm = realm })
}

// Verifier returns a Verifier that asks this client's broker.
func (c *Client) Verifier(opts ...VerifierOption) *Verifier {
	v := &Verifier{client: c, realm: defaultRealm, maxAge: 1<<63 - 1, cache: newClaimsCache(DefaultCacheSize)}
	for _, opt := range opts {
		opt.verifier(v)
	}
	v.want = v.want.ready()
	return v
}

// Verify verifies a token, given without "Bearer ": from memory where the broker
// has said that it is good and the answer may still be used. Its options win over
// those of the Verifier. The error is as that of [Client.Verify].
func (v *Verifier) Verify(ctx context.Context, token string, opts ...VerifyOption) (*Claims, error) {
	return v.verify(ctx, token, v.want.with(opts))
}

func (v *Verifier) verify(ctx context.Context, token string, want wanted) (*Claims, error) {
	if len(token) > maxToken || !isBearer(token) {
		return nil, &RejectedError{ReasonMalformed, "this is no bearer token"}
	}
	scopes := want.scopes
	want.scopes = nil // they are compared below, so that one answer does for all
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

// cacheKey names an answer. It holds no token, so that memory shows none.
type cacheKey struct {
	token  [sha256.Size]byte
	answer string // as in wanted
}

// claimsCache remembers answers. Each shard has two generations: what is used
// moves to the young one, and when that is full the old one is dropped and it
// takes its place.
type claimsCache struct {
	generation int // entries; 0: nothing is remembered
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

// get returns what may be used now of what is remembered; nil: nothing.
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

// put remembers claims for as long as told, counted from when they were asked
// for.
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
