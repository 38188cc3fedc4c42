package broker

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/token"
)

// entry is the place of one token: what to ask the IdP for, the token that it
// last gave, and the trouble that came since. Readers of a token take no lock.
type entry struct {
	client *client
	ask    idp.Request
	name   string // in the store

	token atomic.Pointer[token.Token]
	// trouble is the last failure; none after a success.
	trouble troublePlace
	// flight is the fetch under way. It is stored under mu and read anywhere.
	flight atomic.Pointer[flight]
	// quietUntil (Unix nanoseconds) is when a refresh is tried again that had to
	// be put off because the store is away.
	quietUntil atomic.Int64
	// changed is fired when the token was replaced.
	changed signal
	// given says to whom the token was given; nil: to nobody yet, or nobody wants to
	// know. It is stored under mu and read anywhere.
	given atomic.Pointer[audit.Given]
	// gone: the entry was put out of its place.
	gone atomic.Bool

	mu sync.Mutex
	// forcedAt is when a fetch was last forced although a token was held.
	forcedAt time.Time
	// watches counts the watches of the token; subscription tells them of what other
	// replicas did.
	watches      int
	subscription *store.Subscription
	replacements store.Coalescer
}

// usable reports whether the token may be handed out: it lives long enough, and
// was not purged.
func (e *entry) usable(tok *token.Token, now time.Time, minTTL time.Duration) bool {
	return tok != nil && tok.Epoch >= e.client.epoch.Load() && tok.Usable(now, minTTL)
}

// flight is one attempt to get a token that all who want it wait for. It belongs
// to none of them: a caller who leaves does not end it.
type flight struct {
	old    *token.Token // held when it began; the flight is after a newer one
	forced bool         // although old is good
	done   chan struct{}
	// Set before done is closed.
	token  *token.Token
	origin Origin
	err    *apierror.Error
}

// trouble is a failure that is answered again until it is time for another try.
type trouble struct {
	err   *apierror.Error
	until time.Time
	// tries counts the failures of this class in a row.
	tries int
	class idp.Class
	// at is when this replica got to know of it.
	at time.Time
	// fence of the fetch that failed: the higher is the newer.
	fence uint64
	// doubted is the version of the secret that may be the reason, and the failure
	// counts only while that version is current. Empty: the secret is not the reason.
	doubted string
}

// troublePlace holds the newest trouble. The zero value holds none.
type troublePlace struct{ atomic.Pointer[trouble] }

// raise puts a trouble in place unless one stands there that is as new.
func (p *troublePlace) raise(next *trouble) {
	for {
		standing := p.Load()
		if standing != nil && standing.fence >= next.fence || p.CompareAndSwap(standing, next) {
			return
		}
	}
}

// set puts in place what happened here, unless something newer is known.
func (p *troublePlace) set(next *trouble) {
	for {
		standing := p.Load()
		if standing != nil && standing.fence > next.fence || p.CompareAndSwap(standing, next) {
			return
		}
	}
}

// lift ends a trouble that is older than a success.
func (p *troublePlace) lift(fence uint64) {
	if standing := p.Load(); standing != nil && standing.fence < fence {
		p.CompareAndSwap(standing, nil)
	}
}

func (t *trouble) active(now time.Time) bool { return t != nil && now.Before(t.until) }

// told is the trouble as an error at a later time.
func (t *trouble) told(now time.Time) *apierror.Error { return t.err.WithRetryAfter(t.until.Sub(now)) }

// triesBefore is how often the same thing went wrong before.
func (t *trouble) triesBefore(class idp.Class) int {
	if t == nil || t.class != class {
		return 0
	}
	return t.tries
}

// troubleNow returns the failure that keeps the entry from asking the IdP, or
// nil. The client's trouble stops all of its entries, and so does the refusal of
// all of its secrets.
func (e *entry) troubleNow(now time.Time) *trouble {
	if t := e.client.trouble.Load(); t.active(now) {
		return t
	}
	u := e.client.secrets.now()
	if t := e.trouble.Load(); t.active(now) && (t.doubted == "" || u.current == nil || u.current.ID == t.doubted) {
		return t
	}
	return u.refusal(now)
}

// failing reports whether the last attempt to get a token failed, whether or
// not it is time for another.
func (e *entry) failing() bool {
	return e.trouble.Load() != nil || e.client.trouble.Load() != nil || e.client.secrets.now().failing()
}

// shards keeps the entries of questions other than the clients' own, spread over
// locks so that callers of different tokens rarely meet at one.
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

// get returns the client's entry at k, made by create where there is none, or
// one of a client that was of that name before.
func (s *shards) get(k key, c *client, create func() *entry) *entry {
	shard := &s.shards[int(k[0])%len(s.shards)]
	shard.mu.RLock()
	found := shard.entries[k]
	shard.mu.RUnlock()
	if found != nil && found.client == c {
		return found
	}
	shard.mu.Lock()
	defer shard.mu.Unlock()
	found = shard.entries[k]
	if found != nil && found.client == c {
		return found
	}
	if found == nil && len(shard.entries) >= s.maxShard {
		shard.evict()
	}
	if found != nil {
		found.goes()
	}
	made := create()
	shard.entries[k] = made
	return made
}

// evict drops the entry whose token ends first among a few taken at random (the
// order of a map). An entry is kept while a fetch for it is under way, for a
// second one could start beside it, and while it is watched. If all that it looked at must stay, the
// shard grows by one.
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
		s.entries[victim].goes()
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

// wait waits for the flight on behalf of one caller.
func (f *flight) wait(ctx context.Context) *apierror.Error {
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return apierror.GaveUp(ctx)
	}
}
