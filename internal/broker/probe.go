package broker

import (
	"context"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/lease"
	"github.com/cezzis/tokenbroker/internal/store"
)

// admission is the permission of a fetch to use a version of the secret.
type admission struct {
	version *credential.Version
	probe   bool // the fetch is the only one that uses the version
	// end is called after the result of the fetch was published.
	end func()
}

// admitSecret chooses the secret of a fetch and admits the fetch: at once if the secret has
// just obtained a token; soon if it did so earlier and was not refused since;
// otherwise as the one probe of the secret, or after it. An IdP thus sees a wrong
// secret a few times at most, not once for each audience and replica: accounts get
// locked. A fence of zero means that the fetch has no lease.
//
// A probe holds two leases: that of the request, which every fetch of its token holds, and
// that of the client's secret. One of them would not do: fetches of the same token with
// and without proof would run side by side when the proof changes.
func (b *Broker) admitSecret(ctx context.Context, e *entry, tried []*credential.Version, fence uint64) (admission, *apierror.Error) {
	c := e.client
	begun, unconfirmed := time.Now(), c.secrets.SinceProof(fence)
	for {
		verdict := c.secrets.Verdict()
		v, err := e.choose(tried, time.Now())
		if err != nil {
			return admission{}, err
		}
		ever, recently := c.secrets.Proven(v.ID)
		wait := unconfirmed.Wait() - time.Since(begun)
		switch {
		case recently, ever && !unconfirmed.Alone() && wait <= 0:
			return admission{version: v, end: func() {}}, nil
		case ever && !unconfirmed.Alone():
			if !backoff.Sleep(ctx, verdict, wait) {
				return admission{}, b.outOfTime(e)
			}
			if fence > 0 {
				_ = b.synchronize(ctx, e) // the IdP may have refused another replica
			}
			continue
		}
		probe, outcome := b.probe(ctx, e, fence > 0, func() bool {
			next, err := e.choose(tried, time.Now())
			return err != nil || c.secrets.ProvenRecently(next)
		})
		switch outcome {
		case lease.NotNeeded:
		case lease.ContextEnd:
			return admission{}, b.outOfTime(e)
		default:
			if v, err = e.choose(tried, time.Now()); err != nil {
				probe.leave()
				return admission{}, err
			}
			return admission{v, true, probe.leave}, nil
		}
	}
}

// choose returns the secret to try next, or the reason why there is no usable one.
func (e *entry) choose(tried []*credential.Version, now time.Time) (*credential.Version, *apierror.Error) {
	if t := e.activeFailure(now); t != nil {
		return nil, t.ErrorAt(now)
	}
	return e.client.secrets.Next(now, tried)
}

// probing is the turn of the one fetch that tries a secret.
type probing struct {
	lease store.Lease // zero: the probe has no lease of the fleet
	leave func()
}

// probe takes the turn to try a secret of the entry's client, in this replica and,
// with fleet, in the fleet; or waits until the turn is no longer needed.
func (b *Broker) probe(ctx context.Context, e *entry, fleet bool, unneeded func() bool) (probing, lease.Outcome) {
	c := e.client
	for running := c.secrets.TryProbe(); running != nil; running = c.secrets.TryProbe() {
		select {
		case <-running:
		case <-ctx.Done():
			return probing{}, lease.ContextEnd
		}
		if unneeded() {
			return probing{}, lease.NotNeeded
		}
	}
	if !fleet {
		return probing{leave: c.secrets.EndProbe}, lease.StoreAway
	}
	granted, outcome := b.awaitLease(ctx, e, c.keys.Probe, unneeded)
	switch outcome {
	case lease.Acquired:
		stop := b.leases.Renew(ctx, granted)
		return probing{granted, func() {
			stop()
			b.leases.Write(ctx, store.Change{Release: granted})
			c.secrets.EndProbe()
		}}, lease.Acquired
	case lease.StoreAway: // still the only probe in this replica
		return probing{leave: c.secrets.EndProbe}, lease.StoreAway
	default:
		c.secrets.EndProbe()
		return probing{}, outcome
	}
}

// prove obtains a token with a version that is not current, bypassing the cache: once for
// the fleet, while other fetches continue with the current version. The token is valid and
// replaces the cached one. A failure is recorded against this version only, unless the IdP
// throttles.
func (b *Broker) prove(ctx context.Context, c *client, v *credential.Version) *apierror.Error {
	e := c.provingEntry()
	probe, outcome := b.probe(ctx, e, true, func() bool { return c.secrets.View().Named(v.ID) == nil || c.secrets.ProvenRecently(v) })
	switch outcome {
	case lease.NotNeeded:
		if c.secrets.ProvenRecently(v) {
			return nil
		}
		return c.secrets.NotStaged(v.ID)
	case lease.ContextEnd:
		return b.notProved(ctx, c)
	case lease.StoreAway:
		probe.leave()
		return c.secrets.Unconfirmed(nil)
	case lease.Acquired:
	}
	defer probe.leave()
	if err := c.mayProve(v, time.Now()); err != nil {
		return err
	}
	return b.proveNow(ctx, e, v, probe.lease)
}

// mayProve returns the reason why a version must not be tried now, or nil.
func (c *client) mayProve(v *credential.Version, now time.Time) *apierror.Error {
	if t := c.failure.Load(); t.Active(now) {
		return t.ErrorAt(now)
	}
	t := v.Refusal()
	if t == nil {
		return nil
	}
	if wait := t.At.Add(backoff.LeastPause).Sub(now); wait > 0 {
		return t.Err.WithRetryAfter(wait)
	}
	return nil
}

func (b *Broker) proveNow(ctx context.Context, e *entry, v *credential.Version, granted store.Lease) *apierror.Error {
	c := e.client
	ctx, cancel := context.WithTimeout(ctx, idp.Budget)
	defer cancel()
	got := b.mint(ctx, e, v, granted.Fence)
	switch {
	case got.err == nil:
		b.leases.Write(ctx, store.Change{Puts: b.success(e, got)})
		b.remember(e, got)
		return nil
	case ctx.Err() != nil:
		return b.notProved(ctx, c)
	case got.refused(), e.doubts(got):
		b.leases.Write(ctx, store.Change{Puts: b.refusedSecret(e, got)})
	case idp.ClassOf(got.err) == idp.Throttled:
		_, puts := b.failed(e, got, false)
		b.leases.Write(ctx, store.Change{Puts: puts})
	}
	return backoff.ErrorOf(c.name, v.ID, got.err)
}

// provingEntry returns the entry to test a secret with: the client's default request,
// unless only another one is known to succeed.
func (c *client) provingEntry() *entry {
	if c.entry.token.Load() == nil {
		if good := c.good.Load(); good != nil {
			return good
		}
	}
	return c.entry
}
