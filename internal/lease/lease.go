// Package lease lets one replica of a fleet do what all of them would: it claims leases in
// the store, waits for those of other replicas, and renews its own.
package lease

import (
	"context"
	"crypto/rand"
	"errors"
	mathrand "math/rand/v2"
	"time"

	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/epoch"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

const (
	// ttl is how long the fleet waits for a replica that died with a lease; a live replica
	// renews its lease every renewInterval.
	ttl           = 3 * time.Second
	renewInterval = time.Second
	renewRetry    = 250 * time.Millisecond

	// Waiters read the store again on an event, and at these intervals in case an event is
	// lost.
	pollFirst = 25 * time.Millisecond
	pollMost  = 250 * time.Millisecond

	// storeFailures consecutive failures mean that the store is away.
	storeFailures = 5

	// WriteTimeout bounds the writes of a holder. They do not end with its context: a lease
	// is released even at shutdown.
	WriteTimeout = time.Second
)

// Leases claims and renews leases. It is safe for concurrent use.
type Leases struct {
	Store         store.Store
	Subscriptions *store.Subscriptions
}

// Wanted is a lease that a replica wants.
type Wanted struct {
	Key string
	// Counters have the fences of the lease.
	Counters *epoch.Counters
	// Events returns the keys whose changes may make the lease free or unneeded.
	Events func() []string
	// Look begins a look at the state of the fleet.
	Look func() Look
}

// Look is one look at the state of the fleet.
type Look struct {
	// Keys are the keys to read.
	Keys []string
	// Adopt applies their entries and reports whether the lease is needed.
	Adopt func(ctx context.Context, entries []store.Entry) (needed bool)
}

// Outcome is the reason for the end of [Leases.Await].
type Outcome int

// The outcomes.
const (
	NotNeeded  Outcome = iota // the lease is no longer needed
	Acquired                  // this replica holds the lease
	StoreAway                 // the store does not respond
	ContextEnd                // ctx has ended
)

// Await claims a lease. While another replica holds it, Await waits until it is free or no
// longer needed.
func (l *Leases) Await(ctx context.Context, w Wanted) (store.Lease, Outcome) {
	event := make(chan struct{}, 1)
	notify := func() {
		select {
		case event <- struct{}{}:
		default:
		}
	}
	var subscription *store.Subscription
	defer func() { subscription.Close() }()
	claim := store.Claim{Key: w.Key, Owner: rand.Text(), Counter: w.Counters.FenceKey, TTL: ttl}
	failures, pause := 0, pollFirst
	for {
		granted, needed, err := l.claim(ctx, w, claim)
		switch {
		case granted.Fence > 0 && needed:
			return granted, Acquired
		case granted.Fence > 0:
			l.Write(ctx, store.Change{Release: granted})
			return store.Lease{}, NotNeeded
		case ctx.Err() != nil:
			return store.Lease{}, ContextEnd
		case err == nil && !needed:
			return store.Lease{}, NotNeeded
		case err == nil:
			failures = 0
		default:
			if failures++; failures >= storeFailures || errors.Is(err, store.ErrAway) {
				return store.Lease{}, StoreAway
			}
		}
		if subscription == nil {
			// Most leases are free. An event between the claim and this line is lost, and
			// the first look again is soon.
			subscription = l.Subscriptions.Subscribe(notify, append(w.Events(), w.Key)...)
		}
		if !backoff.Sleep(ctx, event, pause/2+mathrand.N(pause)) {
			return store.Lease{}, ContextEnd
		}
		pause = min(2*pause, pollMost)
	}
}

// claim looks, and claims the lease if it is needed. The zero lease: it is not needed, or
// another replica holds it. The claim looks again in the same step, because the previous
// holder may have stored its result between the look and the claim.
func (l *Leases) claim(ctx context.Context, w Wanted, claim store.Claim) (granted store.Lease, needed bool, err error) {
	look := w.Look()
	entries, err := l.Store.Get(ctx, look.Keys...)
	if err != nil || !look.Adopt(ctx, entries) {
		return store.Lease{}, false, err
	}
	look = w.Look()
	claim.Read, claim.Floor = look.Keys, w.Counters.Fence()
	claimed, err := l.Store.Acquire(ctx, claim)
	if err != nil {
		return store.Lease{}, true, err
	}
	w.Counters.RaiseFence(claimed.Lease.Fence)
	return claimed.Lease, look.Adopt(ctx, claimed.Entries), nil
}

// Renew renews a lease until it is stopped or the lease is lost. A holder goes on without
// its lease, because its result is ordered by its fence. Stop waits for a renewal that is
// under way.
func (l *Leases) Renew(ctx context.Context, lease store.Lease) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	r := &renewal{store: l.Store, ctx: ctx, cancel: cancel, lease: lease, turn: make(chan struct{}, 1)}
	r.turn <- struct{}{}
	r.timer = time.AfterFunc(renewInterval, r.renew)
	<-r.turn
	return r.stop
}

// renewal renews a lease from a timer: most fetches end before the first renewal, and
// need no goroutine for it.
type renewal struct {
	store  store.Store
	ctx    context.Context //nolint:containedctx // it ends with the renewal
	cancel context.CancelFunc
	lease  store.Lease
	// turn is held during a renewal, and protects the timer.
	turn  chan struct{}
	timer *time.Timer
}

func (r *renewal) renew() {
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	if r.ctx.Err() != nil {
		return
	}
	held, err := r.store.Renew(r.ctx, r.lease, ttl)
	switch {
	case err != nil:
		r.timer.Reset(renewRetry)
	case held:
		r.timer.Reset(renewInterval)
	}
}

func (r *renewal) stop() {
	r.cancel()
	r.turn <- struct{}{}
	r.timer.Stop()
	<-r.turn
}

// Write tries to apply a change within WriteTimeout. It reports whether the store accepted
// the first of its puts as the newest; true if the store did not respond.
func (l *Leases) Write(ctx context.Context, change store.Change) (newest bool) {
	ctx, cancel := context.WithTimeout(tracing.Detached(context.Background(), ctx), WriteTimeout)
	defer cancel()
	for range 2 {
		applied, err := l.Store.Apply(ctx, change)
		if err == nil {
			return len(applied) == 0 || applied[0]
		}
		if errors.Is(err, store.ErrAway) {
			break
		}
	}
	return true
}
