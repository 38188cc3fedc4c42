package broker

import (
	"context"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

// enter chooses the secret of a fetch and lets it through: at once where the secret
// is proven, else as the one fetch that tries it, or after that. So an IdP sees a
// wrong secret once, and not once for each audience and replica: accounts get
// locked. The caller calls leave when it has published what came of the fetch.
func (b *Broker) enter(ctx context.Context, e *entry, tried []*version, fleet bool) (v *version, leave func(), probing bool, err *Error) {
	c := e.client
	for {
		v, err := e.choose(tried, time.Now())
		if err != nil {
			return nil, nil, false, err
		}
		if c.provenNow(v.ID) {
			return v, func() {}, false, nil
		}
		probe, how := b.probe(ctx, e, fleet, func() bool {
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

// choose returns the secret to try next, or why there is none.
func (e *entry) choose(tried []*version, now time.Time) (*version, *Error) {
	if t := e.troubleNow(now); t != nil {
		return nil, t.told(now)
	}
	u := e.client.secrets.now()
	if v := u.next(now, tried); v != nil {
		return v, nil
	}
	for _, v := range tried {
		if t := v.refused.Load(); t != nil {
			return nil, t.told(now)
		}
	}
	if len(tried) > 0 {
		return nil, refusedMeanwhile(e.client.name)
	}
	return nil, e.client.noSecret(u)
}

// probing is the turn of the one fetch that tries a secret.
type probing struct {
	lease store.Lease // zero: the store does not say whose turn it is
	leave func()
}

// probe takes the turn to try a secret of the entry's client, in this replica and,
// if there is one, in the fleet; or waits until it is not needed any more.
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
	case unanswered: // at least in this replica it is the only one
		return probing{leave: c.probed}, unanswered
	default:
		c.probed()
		return probing{}, how
	}
}

// tryProbe makes the caller the one who tries the secret, or returns what tells
// when the one who does has ended.
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

func (c *client) provenNow(version string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.proven == version && time.Now().Before(c.provenUntil)
}

// noProof is what the fleet is told where a secret was refused. It is no
// version.
const noProof = "-"

// prove notes that a version obtained a token in a fetch of this fence, or with
// noProof that the IdP throttles. What an older fetch showed does not count.
func (c *client) prove(version string, until time.Time, fence uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if fence >= c.provenBy {
		c.proven, c.provenUntil, c.provenBy = version, until, fence
	}
}

// unprove notes that a version was refused, and reports whether that leaves none
// that is proven.
func (c *client) unprove(version string, fence uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	another := c.proven != version && c.proven != noProof && time.Now().Before(c.provenUntil)
	if another || fence < c.provenBy {
		return false
	}
	c.proven, c.provenBy = noProof, fence
	return true
}

func noProofPut(c *client, fence uint64) store.Put {
	return store.Put{Key: c.keys.proof, Number: fence, Value: []byte(noProof), TTL: proofLasts}
}

// sawProof adopts what the fleet knows of the secret, if it is newer.
func (c *client) sawProof(found store.Entry, asked time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(found.Value) > 0 && found.Number > c.provenBy {
		c.proven, c.provenUntil, c.provenBy = string(found.Value), asked.Add(found.TTL), found.Number
	}
}
