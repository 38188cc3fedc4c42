package broker

import (
	"context"

	"github.com/cezzis/tokenbroker/internal/idp"
)

// probe is the one fetch that tries an unproven secret; the client's other
// fetches wait for what it finds.
type probe struct {
	client *client
	done   chan struct{}
	err    error // set before done is closed
}

// end lets the others go on.
func (p *probe) end() {
	p.client.mu.Lock()
	p.client.probe = nil
	p.client.mu.Unlock()
	close(p.done)
}

// pass lets a fetch through: at once where the secret is proven, else as the
// probe, which the caller must end, or after one. Where a probe failed for a
// reason that all of the client's fetches share, its error is theirs too.
func (c *client) pass(ctx context.Context, secretVersion string) (*probe, error) {
	for {
		c.mu.Lock()
		running := c.probe
		if c.proven == secretVersion {
			c.mu.Unlock()
			return nil, nil
		}
		if running == nil {
			mine := &probe{client: c, done: make(chan struct{})}
			c.probe = mine
			c.mu.Unlock()
			return mine, nil
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

// shared reports whether a failed probe speaks for the client and not for its
// own question alone.
func shared(err error) bool {
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
