package broker

import (
	"context"
	"crypto/rand"
	"errors"
	mathrand "math/rand/v2"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

const (
	// leaseTTL is how long the fleet waits for a replica that died while it was
	// fetching; renewInterval keeps the lease of one that lives.
	leaseTTL      = 3 * time.Second
	renewInterval = time.Second
	renewRetry    = 250 * time.Millisecond

	// guardInterval is when a replica asks again whether it may force a fetch:
	// the store does not say how long another replica's guard lasts.
	guardInterval = 5 * time.Second

	// Waiters look again when the store tells of a change, and from time to time
	// because it may not.
	pollFirst = 25 * time.Millisecond
	pollMost  = 250 * time.Millisecond

	// storeFailures in a row are taken for a store that is away.
	storeFailures = 5
	// writeTimeout bounds what is written at the end of a flight. It does not end
	// with the flight: a lease is released even at shutdown.
	writeTimeout = time.Second

	// proofLasts is how long a secret is taken for good after it obtained a token,
	// and proofKept how long the store remembers that it did. After proofLasts the
	// secret may have been revoked, so only a few fetches go out with it until one
	// of them succeeds.
	proofLasts = time.Minute
	proofKept  = 7 * 24 * time.Hour
	// probePause is how long all of a client's questions wait after a probe that
	// did not get to know whether the secret is good.
	probePause = time.Second
)

// look reads what the fleet knows of a question and its client, and adopts what
// is newer than what is known here.
func (b *Broker) look(ctx context.Context, e *entry) error {
	c := e.client
	keys := []string{e.tokenKey(), e.failureKey(), c.keys.failure, c.keys.proof, c.keys.epoch, c.keys.secrets, c.keys.lastFailure}
	versions := c.secrets.now().all()
	for _, v := range versions {
		keys = append(keys, v.key)
	}
	asked := time.Now()
	found, err := b.store.Get(ctx, keys...)
	if err != nil {
		return err
	}
	answered := time.Now()
	b.sawEpoch(ctx, c, found[4].Number)
	if c.secrets.kept() {
		b.sawHistory(c, found[5])
	}
	for i, v := range versions {
		v.refused.AdoptStored(found[7+i], answered)
		c.sawFence(found[7+i].Number)
	}
	c.sawFailure(found[6])
	c.sawProof(found[3], asked)
	b.beginHistory(ctx, c)
	c.failure.AdoptStored(found[2], answered)
	e.failure.AdoptStored(found[1], answered)
	for _, entry := range found[:4] {
		c.sawFence(entry.Number)
	}
	b.sawToken(e, found[0], asked)
	return nil
}

// sawFence keeps the highest fence: leases are claimed with it as the floor, so
// that fences grow even where the store has lost their counter.
func (c *client) sawFence(fence uint64) {
	for {
		seen := c.fence.Load()
		if fence <= seen || c.fence.CompareAndSwap(seen, fence) {
			return
		}
	}
}

// how an await ended.
type how int

const (
	settled    how = iota // there is no need for the lease
	leased                // this replica leads
	unanswered            // the store does not say who leads
	ended                 // the time is up
)

// await claims a lease of the entry's client. Where another replica has it, it
// waits until there is no need for it any more, or it is free.
func (b *Broker) await(ctx context.Context, e *entry, lease string, unneeded func() bool) (store.Lease, how) {
	rung := make(chan struct{}, 1)
	ring := func() {
		select {
		case rung <- struct{}{}:
		default:
		}
	}
	keys := e.client.keys
	subscription := b.subscriptions.Subscribe(ring, lease, e.tokenKey(), e.failureKey(), keys.failure, keys.proof, keys.secrets)
	defer subscription.Close()
	claim := store.Claim{Key: lease, Owner: rand.Text(), Counter: keys.fences, TTL: leaseTTL}
	failures, pause := 0, pollFirst
	for {
		granted, acquired, err := b.claim(ctx, e, claim, unneeded)
		switch {
		case ctx.Err() != nil && !acquired:
			return store.Lease{}, ended
		case errors.Is(err, errUnneeded):
			return store.Lease{}, settled
		case acquired:
			// Whoever had it before may have brought what it is for between the look
			// that found nothing and the lease.
			if b.look(ctx, e) == nil && unneeded() {
				b.write(ctx, store.Change{Release: granted})
				return store.Lease{}, settled
			}
			return granted, leased
		case err == nil:
			failures = 0
		default:
			if failures++; failures >= storeFailures || errors.Is(err, store.ErrAway) {
				return store.Lease{}, unanswered
			}
		}
		if !sleep(ctx, rung, pause/2+mathrand.N(pause)) {
			return store.Lease{}, ended
		}
		pause = min(2*pause, pollMost)
	}
}

var errUnneeded = errors.New("what the lease is for is there")

// claim looks whether the lease is needed and then claims it once.
func (b *Broker) claim(ctx context.Context, e *entry, claim store.Claim, unneeded func() bool) (store.Lease, bool, error) {
	if err := b.look(ctx, e); err != nil {
		return store.Lease{}, false, err
	}
	if unneeded() {
		return store.Lease{}, false, errUnneeded
	}
	claim.Floor = e.client.fence.Load()
	lease, acquired, err := b.store.Acquire(ctx, claim)
	e.client.sawFence(lease.Fence)
	return lease, acquired, err
}

// sleep waits for a while, or less if rung. False: ctx has ended.
func sleep(ctx context.Context, rung <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-rung:
		return true
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// keep renews a lease until it is stopped or the lease is lost. A lost lease
// changes nothing for its holder: what it brings is ordered by its fence.
func (b *Broker) keep(ctx context.Context, lease store.Lease) (stop func()) {
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

// write applies a change, if it can. It reports whether the store took the first
// of its puts for the newest.
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
