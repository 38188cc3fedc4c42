package broker

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/token"
)

// entry holds one token: the request to the IdP, the last token, and the failure
// since. Readers of the token take no lock.
type entry struct {
	client *client
	ask    idp.Request
	name   string // in the store
	// subject is the subject of a token on its behalf; nil: the token is the client's own.
	subject *subject

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

// after takes over the token of an entry of an earlier configuration, if both are for the
// same request to the same IdP.
func (e *entry) after(old *entry) *entry {
	if old != nil && old.name == e.name {
		e.token.Store(old.token.Load())
	}
	return e
}

// usable reports whether the token may be handed out: it lives long enough and was not
// purged.
func (e *entry) usable(tok *token.Token, now time.Time, minTTL time.Duration) bool {
	return tok != nil && tok.Epoch >= e.client.counters.Epoch() && tok.Usable(now, minTTL)
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

// Pinned implements [cache.Entry]: a second fetch could start beside a running one, and a
// watch needs its entry.
func (e *entry) Pinned() bool { return e.flight.Load() != nil || e.watched() }

// ExpiresAt implements [cache.Entry].
func (e *entry) ExpiresAt() time.Time {
	if tok := e.token.Load(); tok != nil {
		return tok.ExpiresAt
	}
	return time.Time{}
}

// name returns the keyed hash of parts of one kind.
func (b *Broker) name(kind string, parts ...[]byte) string { return secret.Name(b.mac, kind, parts...) }

// The keys of one request for tokens.
func (e *entry) tokenKey() string   { return e.client.keys.Tag + e.name + ":token" }
func (e *entry) failureKey() string { return e.client.keys.Tag + e.name + ":trouble" }
func (e *entry) leaseKey() string   { return e.client.keys.Tag + e.name + ":lease" }
func (e *entry) forcedKey() string  { return e.client.keys.Tag + e.name + ":forced" }
