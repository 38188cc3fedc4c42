package broker

import (
	"context"
	"crypto/rand"
	"errors"
	mathrand "math/rand/v2"
	"time"

	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/token"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

const (
	// leaseTTL is how long the fleet waits for a replica that died during a fetch; a
	// live replica renews its lease every renewInterval.
	leaseTTL      = 3 * time.Second
	renewInterval = time.Second
	renewRetry    = 250 * time.Millisecond

	// guardInterval is the pause before a replica tries again to force a fetch: the
	// store does not report the remaining time of another replica's guard.
	guardInterval = 5 * time.Second

	// Waiters read the store again on an event, and at these intervals in case an
	// event is lost.
	pollFirst = 25 * time.Millisecond
	pollMost  = 250 * time.Millisecond

	// storeFailures consecutive failures mean that the store is away.
	storeFailures = 5
	// writeTimeout bounds the writes at the end of a flight. They do not end with the
	// flight: a lease is released even at shutdown.
	writeTimeout = time.Second

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

// how is the reason for the end of awaitLease.
type how int

const (
	notNeeded  how = iota // the lease is no longer needed
	leased                // this replica holds the lease
	unanswered            // the store does not answer
	ended                 // ctx has ended
)

// awaitLease claims a lease of the entry's client. While another replica holds it, awaitLease
// waits until it is free or no longer needed.
func (b *Broker) awaitLease(ctx context.Context, e *entry, lease string, unneeded func() bool) (store.Lease, how) {
	event := make(chan struct{}, 1)
	notify := func() {
		select {
		case event <- struct{}{}:
		default:
		}
	}
	keys := e.client.keys
	subscription := b.subscriptions.Subscribe(notify, lease, e.tokenKey(), e.failureKey(), keys.failure, keys.proof, keys.secrets)
	defer subscription.Close()
	claim := store.Claim{Key: lease, Owner: rand.Text(), Counter: keys.fences, TTL: leaseTTL}
	failures, pause := 0, pollFirst
	for {
		granted, acquired, err := b.claim(ctx, e, claim, unneeded)
		switch {
		case ctx.Err() != nil && !acquired:
			return store.Lease{}, ended
		case errors.Is(err, errUnneeded):
			return store.Lease{}, notNeeded
		case acquired:
			// The previous holder may have stored its result between the look and the
			// claim.
			if b.synchronize(ctx, e) == nil && unneeded() {
				b.write(ctx, store.Change{Release: granted})
				return store.Lease{}, notNeeded
			}
			return granted, leased
		case err == nil:
			failures = 0
		default:
			if failures++; failures >= storeFailures || errors.Is(err, store.ErrAway) {
				return store.Lease{}, unanswered
			}
		}
		if !sleep(ctx, event, pause/2+mathrand.N(pause)) {
			return store.Lease{}, ended
		}
		pause = min(2*pause, pollMost)
	}
}

var errUnneeded = errors.New("lease no longer needed")

// claim looks whether the lease is needed and, if so, claims it once.
func (b *Broker) claim(ctx context.Context, e *entry, claim store.Claim, unneeded func() bool) (store.Lease, bool, error) {
	if err := b.synchronize(ctx, e); err != nil {
		return store.Lease{}, false, err
	}
	if unneeded() {
		return store.Lease{}, false, errUnneeded
	}
	claim.Floor = e.client.counters.Fence()
	lease, acquired, err := b.store.Acquire(ctx, claim)
	e.client.counters.RaiseFence(lease.Fence)
	return lease, acquired, err
}

// sleep waits for d, or until something is received from event. False: ctx has ended.
func sleep(ctx context.Context, event <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-event:
		return true
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// renew renews a lease until it is stopped or the lease is lost. A holder goes on
// without its lease, because its result is ordered by its fence.
func (b *Broker) renew(ctx context.Context, lease store.Lease) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for wait := renewInterval; sleep(ctx, nil, wait); {
			held, err := b.store.Renew(ctx, lease, leaseTTL)
			switch {
			case err != nil:
				wait = renewRetry
			case !held:
				return
			default:
				wait = renewInterval
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// write tries to apply a change. It reports whether the store accepted the first of
// its puts as the newest.
func (b *Broker) write(ctx context.Context, change store.Change) (newest bool) {
	ctx, cancel := context.WithTimeout(tracing.Detached(context.Background(), ctx), writeTimeout)
	defer cancel()
	for range 2 {
		applied, err := b.store.Apply(ctx, change)
		if err == nil {
			return len(applied) == 0 || applied[0]
		}
		if errors.Is(err, store.ErrAway) {
			break
		}
	}
	return true
}
