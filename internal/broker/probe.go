package broker

import (
	"context"

	"github.com/cezzis/tokenbroker/internal/idp"
)

// probe is the one fetch that tries an unproven secret; the client's other
// fetches wait for what it finds.
type probe struct {
	done chan struct{}
	err  error // set before done is closed
}

// pass lets a fetch through: at once where the secret is proven, else as the
// probe, or after one. The caller hands the fetch's error to leave, whatever
// happens. Where a probe failed for a reason that all of the client's fetches
// share, its error is theirs too.
func (c *client) pass(ctx context.Context, secretVersion string) (leave func(error), err error) {
	for {
		c.mu.Lock()
		running := c.probe
		if c.proven == secretVersion {
			c.mu.Unlock()
			return func(error) {}, nil
		}
		if running == nil {
			mine := &probe{done: make(chan struct{})}
			c.probe = mine
			c.mu.Unlock()
			return func(err error) { c.probed(mine, err) }, nil
		}
		c.mu.Unlock()
		select {
		case <-running.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if shared(running.err) {
			return nil, running.err
		}
	}
}

// probed tells the others what the probe found.
func (c *client) probed(p *probe, err error) {
	p.err = err
	c.mu.Lock()
	c.probe = nil
	c.mu.Unlock()
	close(p.done)
}

// shared reports whether a failed probe speaks for the client and not for its
// own question alone.
func shared(err error) bool {
	if err == nil {
		return false
	}
	switch idp.ClassOf(err) {
	case idp.CredentialRefused, idp.Throttled, idp.Transient:
		return true
	default:
		return false
	}
}

// prove notes that a version obtained a token.
func (c *client) prove(secretVersion string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proven = secretVersion
}

// doubt takes the proof back.
func (c *client) doubt(secretVersion string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proven == secretVersion {
		c.proven = ""
	}
}
