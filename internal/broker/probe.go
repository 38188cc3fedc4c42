package broker

import (
	"context"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/store"
)

// Bounds of the fetches with a secret that was proved so long ago that the IdP may
// have revoked it since. They count by fences, so they hold for the fleet.
const (
	// unconfirmedAtOnce fetches start at once. Each further one waits unconfirmedPause
	// longer than the one before it, so that a quick refusal by the IdP stops the
	// rest.
	unconfirmedAtOnce = 8
	unconfirmedPause  = 25 * time.Millisecond
	// maxUnconfirmed fetches may run without a response to any of them; it is also the
	// number of connections from a replica to an IdP. The last of them and all further
	// ones go one at a time, as with a secret that was never proved.
	maxUnconfirmed = 32
)

// enter chooses the secret of a fetch and admits the fetch: at once if the secret has
// just obtained a token; soon if it did so earlier and was not refused since;
// otherwise as the one probe of the secret, or after it. An IdP thus sees a wrong
// secret a few times at most, not once for each audience and replica: accounts get
// locked. The caller calls leave after it has published the result of the fetch. A
// fence of zero means that the fetch has no lease.
func (b *Broker) enter(ctx context.Context, e *entry, tried []*version, fence uint64) (v *version, leave func(), probing bool, err *apierror.Error) {
	c := e.client
	begun, place := time.Now(), c.unconfirmed(fence)
	for {
		verdict := c.verdict.next()
		v, err := e.choose(tried, time.Now())
		switch {
		case err != nil:
			return nil, nil, false, err
		case c.provenNow(v.ID):
			return v, func() {}, false, nil
		case place < maxUnconfirmed && c.provenBefore(v.ID):
			wait := unconfirmedWait(place) - time.Since(begun)
			if wait <= 0 {
				return v, func() {}, false, nil
			}
			if !sleep(ctx, verdict, wait) {
				return nil, nil, false, b.outOfTime(e)
			}
			if fence > 0 {
				_ = b.synchronize(ctx, e) // the IdP may have refused another replica
			}
			continue
		}
		probe, how := b.probe(ctx, e, fence > 0, func() bool {
			next, err := e.choose(tried, time.Now())
			return err != nil || c.provenNow(next.ID)
		})
		switch how {
		case settled:
		case ended:
			return nil, nil, false, b.outOfTime(e)
		default:
			if v, err = e.choose(tried, time.Now()); err != nil {
				probe.leave()
				return nil, nil, false, err
			}
			return v, probe.leave, true, nil
		}
	}
}

// unconfirmedWait is how long the n-th unconfirmed fetch waits for an earlier result.
func unconfirmedWait(n uint64) time.Duration {
	if n <= unconfirmedAtOnce {
		return 0
	}
	return time.Duration(min(n-unconfirmedAtOnce, 1000)) * unconfirmedPause
}

// choose returns the secret to try next, or the reason why there is no usable one.
func (e *entry) choose(tried []*version, now time.Time) (*version, *apierror.Error) {
	if t := e.activeFailure(now); t != nil {
		return nil, t.ErrorAt(now)
	}
	u := e.client.secrets.now()
	if v := u.next(now, tried); v != nil {
		return v, nil
	}
	for _, v := range tried {
		if t := v.refused.Load(); t != nil {
			return nil, t.ErrorAt(now)
		}
	}
	if len(tried) > 0 {
		return nil, refusedMeanwhile(e.client.name)
	}
	return nil, e.client.noSecret(u)
}

// probing is the turn of the one fetch that tries a secret.
type probing struct {
	lease store.Lease // zero: the probe has no lease of the fleet
	leave func()
}

// probe takes the turn to try a secret of the entry's client, in this replica and,
// with fleet, in the fleet; or waits until the turn is no longer needed.
func (b *Broker) probe(ctx context.Context, e *entry, fleet bool, unneeded func() bool) (probing, how) {
	c := e.client
	for running := c.tryProbe(); running != nil; running = c.tryProbe() {
		select {
		case <-running:
		case <-ctx.Done():
			return probing{}, ended
		}
		if unneeded() {
			return probing{}, settled
		}
	}
	if !fleet {
		return probing{leave: c.probed}, unanswered
	}
	lease, how := b.await(ctx, e, c.keys.probe, unneeded)
	switch how {
	case leased:
		stop := b.keep(ctx, lease)
		return probing{lease, func() {
			stop()
			b.write(ctx, store.Change{Release: lease})
			c.probed()
		}}, leased
	case unanswered: // still the only probe in this replica
		return probing{leave: c.probed}, unanswered
	default:
		c.probed()
		return probing{}, how
	}
}

// tryProbe takes the turn to try the secret in this replica and returns nil, or
// returns a channel that is closed at the end of the running probe.
func (c *client) tryProbe() (running <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.probe != nil {
		return c.probe
	}
	c.probe = make(chan struct{})
	return nil
}

func (c *client) probed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.probe)
	c.probe = nil
}

// provenNow reports whether a version obtained a token so recently that any number of
// fetches may use it.
func (c *client) provenNow(version string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.proven == version && time.Now().Before(c.provenUntil)
}

// provenBefore reports whether a version was the last to obtain a token, at any time,
// and was not refused since.
func (c *client) provenBefore(version string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.proven == version
}

// unconfirmed numbers a fetch among those since the last proof: by its fence in the
// fleet, or by a count of this replica if it has no fence.
func (c *client) unconfirmed(fence uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if fence > 0 {
		return max(fence, c.provenBy) - c.provenBy
	}
	c.fetchedAlone++
	return c.fetchedAlone
}

// noProof is stored in place of a version after a refusal or a throttling.
const noProof = "-"

// prove records that a version obtained a token in a fetch of this fence, or with
// noProof that the IdP throttles. Results of older fetches are ignored.
func (c *client) prove(version string, until time.Time, fence uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if fence >= c.provenBy {
		c.proven, c.provenUntil, c.provenBy, c.fetchedAlone = version, until, fence, 0
		c.verdict.fire()
	}
}

// unprove records that a version was refused, and reports whether no proven version is
// left.
func (c *client) unprove(version string, fence uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.verdict.fire()
	another := c.proven != version && c.proven != noProof && c.proven != ""
	if another || fence < c.provenBy {
		return false
	}
	c.proven, c.provenBy = noProof, fence
	return true
}

func noProofPut(c *client, fence uint64) store.Put {
	return store.Put{Key: c.keys.proof, Number: fence, Value: []byte(noProof), TTL: proofKept}
}

// adoptProof adopts the fleet's proof of the secret, if it is newer.
func (c *client) adoptProof(found store.Entry, asked time.Time) {
	if v := c.secrets.now().named(string(found.Value)); v != nil {
		atLeast(&v.usedAt, asked.Add(found.TTL-proofKept).UnixNano())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(found.Value) > 0 && found.Number > c.provenBy {
		c.proven, c.provenUntil, c.provenBy = string(found.Value), asked.Add(found.TTL-proofKept+proofLasts), found.Number
		c.verdict.fire()
	}
}
