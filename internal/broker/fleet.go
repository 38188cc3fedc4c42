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

// fleetView is the state of an entry and its client in the store.
type fleetView struct {
	token, failure                    store.Entry // of the entry
	clientFailure, epoch, lastFailure store.Entry
	secret                            credential.Look
	secretValues                      []store.Entry // of secret.Keys
	requested, responded              time.Time
}

// look reads the fleet's state of an entry and its client in one round trip.
func (b *Broker) look(ctx context.Context, e *entry) (*fleetView, error) {
	c := e.client
	view := &fleetView{secret: c.secrets.Look(), requested: time.Now()}
	keys := []string{e.tokenKey(), e.failureKey(), c.keys.failure, c.keys.epoch, c.keys.lastFailure}
	fields := []*store.Entry{&view.token, &view.failure, &view.clientFailure, &view.epoch, &view.lastFailure}
	values, err := b.store.Get(ctx, append(keys, view.secret.Keys...)...)
	if err != nil {
		return nil, err
	}
	view.responded = time.Now()
	for i, field := range fields {
		*field = values[i]
	}
	view.secretValues = values[len(fields):]
	return view, nil
}

// adopt applies the newer parts of the fleet's state to this replica.
func (b *Broker) adopt(ctx context.Context, e *entry, view *fleetView) {
	c := e.client
	c.counters.Adopt(ctx, view.epoch.Number)
	c.counters.RaiseFence(view.secret.Adopt(ctx, view.secretValues, view.requested, view.responded))
	c.lastFailure.AdoptStored(view.lastFailure)
	c.failure.AdoptStored(view.clientFailure, view.responded)
	e.failure.AdoptStored(view.failure, view.responded)
	c.counters.RaiseFence(max(view.token.Number, view.failure.Number, view.clientFailure.Number))
	b.adoptToken(e, view.token, view.requested)
}

// synchronize adopts the fleet's state of an entry and its client.
func (b *Broker) synchronize(ctx context.Context, e *entry) error {
	view, err := b.look(ctx, e)
	if err == nil {
		b.adopt(ctx, e, view)
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
		b.metrics.unreadable.Inc() // sealed by one of our replicas that runs another version
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
		Events: []string{e.tokenKey(), e.failureKey(), keys.failure, keys.proof, keys.secrets},
		Look: func(ctx context.Context) (needed bool, err error) {
			err = b.synchronize(ctx, e)
			return err == nil && !unneeded(), err
		},
	})
}
