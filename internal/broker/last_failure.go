package broker

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/store"
)

// failureMemory is how long replicas share the last failure of a client.
const failureMemory = 24 * time.Hour

// lastFailure is the last failed fetch of a client on any replica. It is for operators and
// delays no fetch.
type lastFailure struct {
	class   idp.Class
	version string // of the secret
	message string
	at      time.Time // by the clock of the replica that failed
	// fence of the failed fetch or, if resolved, of a later success.
	fence    uint64
	resolved bool
}

type storedFailure struct {
	Form     int       `json:"v"` // backoff.Form, which numbers the classes
	Class    idp.Class `json:"class"`
	Version  string    `json:"version"`
	Message  string    `json:"message"`
	At       time.Time `json:"at"`
	Resolved bool      `json:"resolved,omitempty"`
}

func (f *lastFailure) put(key string) store.Put {
	value, err := json.Marshal(storedFailure{backoff.Form, f.class, f.version, f.message, f.at, f.resolved})
	if err != nil {
		panic("broker: strings and times that JSON cannot hold")
	}
	return store.Put{Key: key, Number: f.fence, Value: value, TTL: failureMemory}
}

// failedAs records a failure with a version of the secret, and returns it for the other
// replicas.
func (c *client) failedAs(t *backoff.Failure, version string) store.Put {
	f := &lastFailure{class: t.Class, version: version, message: t.Err.Message, at: t.At, fence: t.Fence}
	c.keepNewer(f)
	return f.put(c.keys.lastFailure)
}

// resolvedBy records that a fetch succeeded after the last failure. It returns the store
// writes for the other replicas, empty if there was no failure.
func (c *client) resolvedBy(fence uint64) []store.Put {
	f := c.outcomes.failed.Load()
	if f == nil || f.resolved || f.fence > fence {
		return nil
	}
	resolved := *f
	resolved.fence, resolved.resolved = fence, true
	c.keepNewer(&resolved)
	return []store.Put{resolved.put(c.keys.lastFailure)}
}

// adoptLastFailure adopts the last failure from the store.
func (c *client) adoptLastFailure(stored store.Entry) {
	var s storedFailure
	if len(stored.Value) == 0 || json.Unmarshal(stored.Value, &s) != nil || s.Form != backoff.Form {
		return
	}
	c.keepNewer(&lastFailure{class: s.Class, version: s.Version, message: s.Message, at: s.At, fence: stored.Number, resolved: s.Resolved})
}

// keepNewer keeps the newer of two failures, by fence.
func (c *client) keepNewer(next *lastFailure) {
	for {
		before := c.outcomes.failed.Load()
		newer := before == nil || next.fence > before.fence || next.fence == before.fence && (next.resolved || !before.resolved)
		if !newer || c.outcomes.failed.CompareAndSwap(before, next) {
			return
		}
	}
}

// unresolved returns the last failure unless a fetch has succeeded since. A success that
// only its token reports counts too.
func (c *client) unresolved() *lastFailure {
	f := c.outcomes.failed.Load()
	if f == nil || f.resolved {
		return nil
	}
	if last := c.outcomes.served.Load(); last != nil && last.fence >= f.fence && last.at.After(f.at) {
		return nil
	}
	return f
}

// counts reports whether a failure affects the client, rather than only a new secret that
// was refused when it was proved.
func (f *lastFailure) counts(u *credential.View) bool {
	return f != nil && (f.class != idp.CredentialRefused || u.Current == nil || f.version == u.Current.ID)
}

// recovered reports whether the fleet has fetched a token since every failure that
// this replica remembers.
func (c *client) recovered(u *credential.View) bool {
	f := c.outcomes.failed.Load()
	if f == nil || !f.resolved {
		return false
	}
	remembered := []*backoff.Failure{c.entry.failure.Load(), c.failure.Load()}
	for _, v := range u.All() {
		remembered = append(remembered, v.Refusal())
	}
	return !slices.ContainsFunc(remembered, func(t *backoff.Failure) bool { return t != nil && t.Fence >= f.fence })
}

// lookAtFailures reads the last failures of clients. Without the store, this replica shows
// its own state.
func (b *Broker) lookAtFailures(ctx context.Context, clients ...*client) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	store.GetEach(ctx, b.store, clients, store.MaxKeys, func(c *client) string { return c.keys.lastFailure }, (*client).adoptLastFailure)
}
