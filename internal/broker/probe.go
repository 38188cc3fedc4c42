package broker

import (
	"context"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

// enter lets a fetch through: at once where the secret is proven, else as the
// one fetch that tries it, or after that. So an IdP sees a wrong secret once,
// and not once for each audience and replica: accounts get locked. The caller
// calls leave when it has published what came of the fetch.
func (b *Broker) enter(ctx context.Context, e *entry, version string, fleet bool) (leave func(), probing bool, err *Error) {
	c := e.client
	leave, probing, err = b.enterAlone(ctx, e, version)
	if err != nil || !probing || !fleet {
		return leave, probing, err
	}
	lease, how := b.await(ctx, e, c.keys.probe, func() bool {
		return c.provenNow(version) || e.troubleNow(time.Now()) != nil
	})
	switch how {
	case leased:
		stop := b.keep(ctx, lease)
		alone := leave
		return func() {
			stop()
			b.write(ctx, store.Change{Release: lease})
			alone()
		}, true, nil
	case ended:
		leave()
		return nil, false, b.outOfTime(e)
	case settled:
		if t := e.troubleNow(time.Now()); t != nil {
			leave()
			return nil, false, t.told(time.Now())
		}
		leave()
		return func() {}, false, nil
	default: // the store does not say: at least in this replica it is the only one
		return leave, true, nil
	}
}

// enterAlone is enter for this replica.
func (b *Broker) enterAlone(ctx context.Context, e *entry, version string) (leave func(), probing bool, err *Error) {
	c := e.client
	for {
		if c.provenNow(version) {
			return func() {}, false, nil
		}
		running := c.tryProbe()
		if running == nil {
			return c.probed, true, nil
		}
		select {
		case <-running:
		case <-ctx.Done():
			return nil, false, b.outOfTime(e)
		}
		if t := e.troubleNow(time.Now()); t != nil {
			return nil, false, t.told(time.Now())
		}
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
// noProof that one was refused.
func (c *client) prove(version string, until time.Time, fence uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proven, c.provenUntil, c.provenBy = version, until, fence
}

// sawProof adopts what the fleet knows of the secret, if it is newer.
func (c *client) sawProof(found store.Entry, asked time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(found.Value) > 0 && found.Number > c.provenBy {
		c.proven, c.provenUntil, c.provenBy = string(found.Value), asked.Add(found.TTL), found.Number
	}
}
