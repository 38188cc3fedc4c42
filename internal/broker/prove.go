package broker

import (
	"context"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
)

// prove obtains a token with a version that is not current, bypassing the cache: once for
// the fleet, while other fetches continue with the current version. The token is valid and
// replaces the cached one. A failure is recorded against this version only, unless the IdP
// throttles.
func (b *Broker) prove(ctx context.Context, c *client, v *version) *apierror.Error {
	e := c.provingEntry()
	probe, how := b.probe(ctx, e, true, func() bool { return c.secrets.now().named(v.ID) == nil || c.provenNow(v.ID) })
	switch how {
	case settled:
		if c.provenNow(v.ID) {
			return nil
		}
		return c.overtaken(v.ID)
	case ended:
		return b.notProved(ctx, c)
	case unanswered:
		probe.leave()
		return storeUnconfirmed(c.name, nil)
	case leased:
	}
	defer probe.leave()
	if err := c.mayProve(v, time.Now()); err != nil {
		return err
	}
	return b.proveNow(ctx, e, v, probe.lease)
}

// mayProve returns the reason why a version must not be tried now, or nil.
func (c *client) mayProve(v *version, now time.Time) *apierror.Error {
	if t := c.failure.Load(); t.Active(now) {
		return t.ErrorAt(now)
	}
	t := v.refused.Load()
	if t == nil {
		return nil
	}
	if wait := t.At.Add(backoff.LeastPause).Sub(now); wait > 0 {
		return t.Err.WithRetryAfter(wait)
	}
	return nil
}

func (b *Broker) proveNow(ctx context.Context, e *entry, v *version, lease store.Lease) *apierror.Error {
	c := e.client
	ctx, cancel := context.WithTimeout(ctx, idp.Budget)
	defer cancel()
	got := b.mint(ctx, e, v, lease.Fence)
	switch {
	case got.err == nil:
		b.write(ctx, store.Change{Puts: got.success(e)})
		b.fetched(e, got)
		return nil
	case ctx.Err() != nil:
		return b.notProved(ctx, c)
	case got.refused(), e.doubts(got):
		b.write(ctx, store.Change{Puts: b.refusedSecret(e, got)})
	case idp.ClassOf(got.err) == idp.Throttled:
		_, puts := b.failed(e, got, false)
		b.write(ctx, store.Change{Puts: puts})
	}
	return refused(c.name, v.ID, got.err)
}

// provingEntry returns the entry to test a secret with: the client's default request,
// unless only another one is known to succeed.
func (c *client) provingEntry() *entry {
	if c.entry.token.Load() == nil {
		if good := c.fares.good.Load(); good != nil {
			return good
		}
	}
	return c.entry
}

// sources returns the sources of the clients' secrets.
func (b *Broker) sources() []*secret.Source {
	var sources []*secret.Source
	for _, c := range b.setup.Load().clients {
		if c.secrets.source != nil {
			sources = append(sources, c.secrets.source)
		}
	}
	return sources
}

// sourceChanged handles a source that changed or could not be reread.
func (b *Broker) sourceChanged(source *secret.Source, err error) {
	for _, c := range b.setup.Load().clients {
		if c.secrets.source != source {
			continue
		}
		if err != nil {
			b.log.Error("a secret cannot be read again; the one read before stays", "client", c.name, "secret", source.Ref().String(), "error", err)
			continue
		}
		b.log.Info("a source has another secret", "client", c.name, "secret", source.Ref().String(), "version", source.Current().ID)
		if warning := c.idp.SecretWarning(source.Current().Value); warning != "" {
			b.log.Warn("the new secret "+warning+"; it is sent to the IdP as it is", "client", c.name, "secret", source.Ref().String(), "version", source.Current().ID)
		}
		b.rotated(staging, audit.Event{Client: c.name, SecretVersion: source.Current().ID}, nil)
		b.tryWanted(c)
	}
}

// tryWanted proves the new version from the source of a client's secret, and activates it.
// A version that was refused waits for its backoff, unless the current version is refused
// too.
func (b *Broker) tryWanted(c *client) {
	if v := c.wanted(time.Now()); v != nil {
		c.secrets.proving.Run(b.spawn, func() { b.proveWanted(b.flying, c) })
	}
}

func (c *client) wanted(now time.Time) *version {
	v := c.secrets.now().pending
	if c.secrets.source == nil || v == nil || v.unfit != nil || v.refused.Load().Active(now) {
		return nil
	}
	return v
}

func (b *Broker) proveWanted(ctx context.Context, c *client) {
	ctx, cancel := context.WithTimeout(ctx, FlightTimeout)
	defer cancel()
	v := c.wanted(time.Now())
	if v == nil {
		return
	}
	expected := c.secrets.now().history.CurrentID()
	err := b.prove(ctx, c, v)
	b.rotated(proving, audit.Event{Client: c.name, SecretVersion: v.ID}, err)
	if err != nil {
		b.log.Warn("a new secret is not proved; the one in force stays", "client", c.name, "secret_version", v.ID, "error", err)
		return
	}
	b.putInForce(ctx, c, v, expected)
}

// settleSecret activates a version that has obtained a token: one that was staged, or the
// first version of a source that can change while the process runs. The first version of
// another source needs no history: see [Broker.beginHistory].
func (b *Broker) settleSecret(c *client, v *version) {
	u := c.secrets.now()
	if v != u.pending && (u.history.Generation > 0 || !c.secrets.follows()) {
		return
	}
	c.secrets.proved.Store(&proved{v, u.history.CurrentID()})
	c.secrets.settling.Run(b.spawn, func() {
		last := c.secrets.proved.Load()
		b.putInForce(b.flying, c, last.version, last.insteadOf)
	})
}

// proved is a version to activate in place of another one.
type proved struct {
	version   *version
	insteadOf string
}

// beginHistory writes the first history of a secret that cannot change while the process
// runs (env:). Such a secret has no history as long as all replicas have the same value.
// Replicas that were restarted with another value see in the store that a version which
// they do not have obtained tokens. The history then says that this version is current, so
// that theirs is staged, proved and activated like any other. It must be written before
// theirs obtains a token: afterwards the store shows theirs, and replicas that were not
// restarted could take it for the older one.
func (b *Broker) beginHistory(ctx context.Context, c *client) {
	before, at := c.provenElsewhere()
	if before == "" {
		return
	}
	_, _ = b.changeHistory(ctx, c, func(h secret.History) (secret.History, error) {
		if h.Generation > 0 {
			return h, nil
		}
		return h.Adopt(before, c.secrets.source.Ref().String(), at)
	}) // on failure, the next look retries
}

// provenElsewhere returns the version that was the last to obtain a token in the fleet, and
// when, if a history is to begin with it. It returns the zero values if the secret has a
// history, or if this replica's own version has obtained a token as well: then the other
// version is the newer one, and a replica that has it begins the history.
func (c *client) provenElsewhere() (version string, at time.Time) {
	u := c.secrets.now()
	if c.secrets.source == nil || c.secrets.follows() || !u.loaded || u.fault != nil || u.history.Generation > 0 || u.current.usedAt.Load() > 0 {
		return "", time.Time{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proven == "" || c.proven == noProof || c.proven == u.current.ID {
		return "", time.Time{}
	}
	return c.proven, c.provenUntil.Add(-proofLasts)
}

// putInForce activates a proven version, if the current version is the expected one. A
// failed write is retried after the next token.
func (b *Broker) putInForce(ctx context.Context, c *client, v *version, expected string) {
	now := time.Now()
	made, err := b.changeHistory(ctx, c, func(h secret.History) (secret.History, error) {
		switch {
		case h.CurrentID() != expected:
			return h, nil
		case c.secrets.source != nil:
			return h.Adopt(v.ID, c.secrets.source.Ref().String(), now)
		default:
			return h.Activate(v.ID, false, now)
		}
	})
	if err != nil {
		b.log.Warn("a proven secret is used, but could not be put in force", "client", c.name, "secret_version", v.ID, "error", err)
		return
	}
	if made.CurrentID() == v.ID && expected != "" {
		b.log.Info("a secret came in force", "client", c.name, "secret_version", v.ID, "instead_of", expected)
		b.rotated(activating, audit.Event{Client: c.name, SecretVersion: v.ID}, nil)
	}
}
