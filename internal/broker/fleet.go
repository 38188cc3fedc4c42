package broker

import (
	"context"
	"time"

	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/lease"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/token"
)

const (
	// guardInterval is the pause before a replica tries again to force a fetch: the
	// store does not report the remaining time of another replica's guard.
	guardInterval = 5 * time.Second

	// probePause is how long all requests of a client wait after a probe without a
	// verdict on the secret.
	probePause = time.Second
)

// fleetLook is one look at the state of an entry and its client in the store: one round
// trip.
type fleetLook struct {
	keys      []string
	secret    credential.Look
	requested time.Time // before the call of the store
}

// look begins a look.
func (e *entry) look() fleetLook {
	c := e.client
	l := fleetLook{secret: c.secrets.Look(), requested: time.Now()}
	keys := [...]string{e.tokenKey(), e.failureKey(), c.keys.Failure, c.keys.Epoch, c.keys.LastFailure}
	l.keys = append(keys[:], l.secret.Keys...)
	return l
}

// adopt applies the newer parts of the fleet's state to this replica. The values are those
// of the keys of the look.
func (b *Broker) adopt(ctx context.Context, e *entry, l fleetLook, values []store.Entry) {
	c, responded := e.client, time.Now()
	tok, failure, clientFailure, epoch, lastFailure := values[0], values[1], values[2], values[3], values[4]
	c.counters.Adopt(ctx, epoch.Number)
	c.counters.RaiseFence(l.secret.Adopt(ctx, values[5:], l.requested, responded))
	c.lastFailure.AdoptStored(lastFailure)
	c.failure.AdoptStored(clientFailure, responded)
	e.failure.AdoptStored(failure, responded)
	c.counters.RaiseFence(max(tok.Number, failure.Number, clientFailure.Number))
	b.adoptToken(e, tok, l.requested)
}

// synchronize adopts the fleet's state of an entry and its client.
func (b *Broker) synchronize(ctx context.Context, e *entry) error {
	l := e.look()
	values, err := b.store.Get(ctx, l.keys...)
	if err == nil {
		b.adopt(ctx, e, l, values)
	}
	return err
}

// adoptToken adopts a token from the store if it is good and newer.
func (b *Broker) adoptToken(e *entry, stored store.Entry, requested time.Time) {
	if stored.Number == 0 {
		return
	}
	tok, err := token.FromStored(stored.Value, stored.Number, requested, stored.TTL)
	if err != nil {
		b.metrics.Unreadable.Inc() // sealed by one of our replicas that runs another version
		return
	}
	if !e.usable(tok, time.Now(), 0) {
		return
	}
	e.replace(tok, func(held *token.Token) bool { return tok.Fence > held.Fence })
	e.failure.Succeeded(tok.Fence)
	e.client.failure.Succeeded(tok.Fence)
	e.obtained(tok)
}

// awaitLease claims a lease of the entry's client, or waits until it is no longer needed.
func (b *Broker) awaitLease(ctx context.Context, e *entry, key string, unneeded func() bool) (store.Lease, lease.Outcome) {
	keys := e.client.keys
	return b.leases.Await(ctx, lease.Wanted{
		Key: key, Counters: e.client.counters,
		Events: func() []string {
			return []string{e.tokenKey(), e.failureKey(), keys.Failure, keys.Proof, keys.Secrets}
		},
		Look: func() lease.Look {
			l := e.look()
			return lease.Look{Keys: l.keys, Adopt: func(ctx context.Context, values []store.Entry) (needed bool) {
				b.adopt(ctx, e, l, values)
				return !unneeded()
			}}
		},
	})
}
