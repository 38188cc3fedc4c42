package broker

import (
	"context"
	"crypto/rand"
	"errors"
	mathrand "math/rand/v2"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/lease"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/token"
	"github.com/cezzis/tokenbroker/internal/tokenerror"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

// flight is one attempt to get a token, shared by all callers that wait for it. A
// caller that leaves does not end it.
type flight struct {
	old    *token.Token // held at the start; the flight looks for a newer one
	forced bool         // although old is good
	done   chan struct{}
	// Set before done is closed.
	token  *token.Token
	origin Origin
	err    *apierror.Error
}

// start begins a flight that is traced with the call of ctx but does not end with it.
// The caller holds e.mu and has checked that no flight is running.
func (b *Broker) start(ctx context.Context, e *entry, f *flight) *flight {
	f.done = make(chan struct{})
	e.flight.Store(f)
	apart := tracing.Detached(b.flying, ctx)
	if !b.spawn(func() { b.run(apart, e, f) }) {
		e.flight.Store(nil)
		f.err = tokenerror.ShuttingDown(e.client.name)
		close(f.done)
	}
	return f
}

// run runs a flight and wakes its waiters in every case, even after a panic.
func (b *Broker) run(ctx context.Context, e *entry, f *flight) {
	defer func() {
		if cause := recover(); cause != nil {
			f.token, f.err = nil, b.crashed(e, cause)
		}
		e.mu.Lock()
		e.flight.Store(nil)
		e.mu.Unlock()
		close(f.done)
	}()
	ctx, cancel := context.WithTimeout(ctx, FlightTimeout)
	defer cancel()
	granted, outcome := b.awaitLease(ctx, e, e.leaseKey(), func() bool { return f.finish(e, time.Now()) })
	switch outcome {
	case lease.Acquired:
		b.runWithLease(ctx, e, f, granted)
	case lease.StoreAway:
		b.runWithoutLease(ctx, e, f)
	case lease.ContextEnd:
		f.err = b.outOfTime(e)
	case lease.NotNeeded:
	}
	if f.err == nil && f.origin == OriginShared {
		b.metrics.Avoided.Shared.Add(1)
	}
}

// finish ends the flight without a fetch if a newer token is known, or if an active failure or a
// missing secret prevents a fetch.
func (f *flight) finish(e *entry, now time.Time) bool {
	if tok := e.token.Load(); tok != f.old && e.usable(tok, now, 0) {
		f.token, f.origin = tok, OriginShared
		return true
	}
	if t := e.activeFailure(now); t != nil {
		f.err = t.ErrorAt(now)
		return true
	}
	f.err = e.client.secrets.Missing()
	return f.err != nil
}

// runWithLease fetches while it holds the fleet's lease.
func (b *Broker) runWithLease(ctx context.Context, e *entry, f *flight, granted store.Lease) {
	stop := b.leases.Renew(ctx, granted)
	defer stop()
	if f.forced && !b.mayForce(ctx, e) {
		b.leases.Write(ctx, store.Change{Release: granted})
		f.err = tokenerror.ForcedTooOften(e.client.name, ForcedInterval).WithRetryAfter(guardInterval)
		e.mayForceAt(time.Now().Add(guardInterval))
		return
	}
	b.fetch(ctx, e, f, granted)
}

// mayForce reports whether no replica has forced a fetch for ForcedInterval. Its lease
// is not released: it is the guard.
func (b *Broker) mayForce(ctx context.Context, e *entry) bool {
	guard := store.Claim{
		Key: e.forcedKey(), Owner: rand.Text(), TTL: ForcedInterval,
		Counter: e.client.keys.Fences, Floor: e.client.counters.Fence(),
	}
	claimed, err := b.store.Acquire(ctx, guard)
	return claimed.Acquired || err != nil
}

// mayForceAt sets the time from which this replica may force a fetch again.
func (e *entry) mayForceAt(next time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forcedAt = next.Add(-ForcedInterval)
}

// runWithoutLease fetches without a lease, because the store does not grant any. A refresh can
// wait: the store may come back, which spares the IdP a fetch by each replica. Callers
// without a token do not wait.
func (b *Broker) runWithoutLease(ctx context.Context, e *entry, f *flight) {
	now := time.Now()
	if !f.forced && e.usable(f.old, now, 0) && now.Before(f.old.Late()) {
		e.quietUntil.Store(now.Add(time.Second).UnixNano())
		f.token, f.origin = f.old, OriginMemory
		return
	}
	if e.usable(f.old, now, 0) && !backoff.Sleep(ctx, nil, mathrand.N(maxStagger)) {
		f.err = b.outOfTime(e)
		return
	}
	if !f.finish(e, time.Now()) {
		b.fetch(ctx, e, f, store.Lease{})
	}
}

// fetch requests a token from the IdP. One store change publishes the result to the
// fleet and releases the lease, before this replica uses the result. With the zero
// lease nothing is stored.
//
// After the refusal of a secret, clear or possible, fetch tries the next one, each
// once. It repeats the fetch of a token that was purged in the meantime, and of a
// token that the IdP repeats in its last moments.
func (b *Broker) fetch(ctx context.Context, e *entry, f *flight, granted store.Lease) {
	for before := (earlier{}); b.try(ctx, e, f, granted, &before); {
	}
}

// earlier describes the previous attempts of a fetch.
type earlier struct {
	// tried are the versions of the secret that must not be tried again.
	tried  []*credential.Version
	purged int
	// doubted is the first attempt that the IdP refused without a clear reason, so
	// that the secret may be the cause; nil if there was no such attempt.
	doubted *attempt
	// ending counts the attempts that returned a token at its end.
	ending int
}

// try makes one attempt and reports whether another must follow.
func (b *Broker) try(ctx context.Context, e *entry, f *flight, granted store.Lease, before *earlier) (again bool) {
	admitted, err := b.admitSecret(ctx, e, before.tried, granted.Fence)
	switch {
	case err != nil && before.doubted != nil:
		b.publish(ctx, e, f, granted, *before.doubted, false)
		return false
	case err != nil:
		f.err = err
		b.release(ctx, granted)
		return false
	}
	defer admitted.end()
	got := b.mint(ctx, e, admitted.version, max(granted.Fence, e.client.counters.Fence()))
	refusal := e.refusal(ctx, got)
	switch {
	case got.err == nil && got.token.Epoch < e.client.counters.Epoch() && before.purged < maxPurged-1:
		before.purged++
		return true
	case got.ending && before.awaitsNext(ctx, e):
		return true
	case refusal != nil && b.flying.Err() == nil:
		got.err = refusal
		before.tried = append(before.tried, admitted.version)
		b.storeProgress(ctx, granted, b.refusedSecret(e, got)...)
		_ = b.synchronize(ctx, e) // another version may have become the current one
		return true
	case e.doubts(got):
		if before.doubt(got); e.hasAnother(before) {
			return true
		}
	}
	b.publish(ctx, e, f, granted, b.decided(ctx, e, granted, got, before.doubted), admitted.probe)
	return false
}

// attempt is one token request to the IdP and its result.
type attempt struct {
	credential.Use
	// The failures remembered at the start: a success ends these only, because a
	// throttling that began later must be obeyed.
	entryFailure, clientFailure *backoff.Failure

	token *token.Token
	err   error
	// doubted: the secret may be the reason for err.
	doubted bool
	// ending: the IdP sent a token that has ended, or repeated one in its last
	// moments.
	ending bool
}

func (a attempt) refused() bool { return a.err != nil && idp.ClassOf(a.err) == idp.CredentialRefused }

// mint requests a token from the IdP.
func (b *Broker) mint(ctx context.Context, e *entry, v *credential.Version, fence uint64) attempt {
	c := e.client
	epoch := c.counters.Epoch()
	result := attempt{
		Use:          credential.Begin(v, fence),
		entryFailure: e.failure.Load(), clientFailure: c.failure.Load(),
	}
	ask, held := e.ask, e.token.Load()
	ask.Once = e.usable(held, result.Begun, 0)
	grant, err := e.request(ctx, v, ask)
	b.metrics.Fetch(c.name, time.Since(result.Begun), err)
	if result.err = err; err != nil {
		fault, ok := errors.AsType[*idp.Error](err)
		result.ending = ok && fault.Expired()
		return result
	}
	result.token = token.New(grant.Repeating(held), epoch, fence)
	result.ending = held != nil && held.SHA256 == result.token.SHA256 && time.Until(result.token.ExpiresAt) < lastMoments
	return result
}

// Some IdPs repeat a token until it ends. In its last second they send it with a
// lifetime of 0 s, or of a fraction. A pause before the next request then spares the
// waiting callers an error.
const (
	lastMoments = time.Second
	endingPause = 500 * time.Millisecond
	maxEnding   = 4 // pauses per fetch
)

// awaitsNext pauses after an attempt that returned a token at its end, and reports
// whether another attempt must follow. An IdP that was failing before gets no extra
// requests: its clock may be wrong.
func (b *earlier) awaitsNext(ctx context.Context, e *entry) bool {
	b.ending++
	return b.ending <= maxEnding && e.failure.Load() == nil && backoff.Sleep(ctx, nil, endingPause)
}

// doubt notes an attempt that was possibly refused because of its secret.
func (b *earlier) doubt(a attempt) {
	b.tried = append(b.tried, a.Version)
	if b.doubted == nil {
		a.doubted = true
		b.doubted = &a
	}
}

// hasAnother reports whether another secret must be tried after a doubted one: once
// per series of failures.
func (e *entry) hasAnother(before *earlier) bool {
	series := e.failure.Load()
	return (series == nil || series.Doubted != before.doubted.Version.ID) && e.client.secrets.View().Next(time.Now(), before.tried) != nil
}

// doubts reports whether the secret may be the reason for a refusal. A secret that has
// just obtained another token is not.
func (e *entry) doubts(a attempt) bool {
	if e.subject != nil && a.err != nil {
		return e.client.delegate.Doubted(a.Version, a.err)
	}
	fault, ok := errors.AsType[*idp.Error](a.err)
	return ok && fault.Unclear() && !e.client.secrets.ProvenRecently(a.Version)
}

// decided returns the attempt that determines the result of a fetch. If another secret
// obtained the token, the first secret was refused. If the other one failed too, the
// first refusal is the result, unless the IdP now throttles.
func (b *Broker) decided(ctx context.Context, e *entry, granted store.Lease, last attempt, doubted *attempt) attempt {
	switch {
	case doubted == nil:
		return last
	case last.err == nil:
		b.storeProgress(ctx, granted, b.refusedSecret(e, *doubted)...)
		return last
	case idp.ClassOf(last.err) == idp.Throttled:
		return last
	default:
		return *doubted
	}
}

// publish publishes the result of the last attempt.
func (b *Broker) publish(ctx context.Context, e *entry, f *flight, granted store.Lease, got attempt, probe bool) {
	switch {
	case got.err == nil:
		newest := b.release(ctx, granted, b.success(e, got)...)
		b.remember(e, got)
		e.client.secrets.ActivateProven(got.Version)
		f.token, f.origin = got.token, OriginFetched
		if !newest && !b.private {
			_ = b.synchronize(ctx, e) // some IdPs invalidate a token when they issue the next one
		}
	case b.flying.Err() != nil:
		f.err = tokenerror.ShuttingDown(e.client.name)
		b.release(ctx, granted)
	default:
		t, puts := b.failed(e, got, probe)
		f.err = t.ErrorAt(time.Now())
		b.release(ctx, granted, puts...)
	}
}

// release releases the lease of a fetch and stores its result.
func (b *Broker) release(ctx context.Context, granted store.Lease, puts ...store.Put) (newest bool) {
	if granted.Fence == 0 {
		return true
	}
	return b.leases.Write(ctx, store.Change{Puts: puts, Release: granted})
}

// storeProgress stores an intermediate result of a fetch that continues.
func (b *Broker) storeProgress(ctx context.Context, granted store.Lease, puts ...store.Put) {
	if granted.Fence > 0 && len(puts) > 0 {
		b.leases.Write(ctx, store.Change{Puts: puts})
	}
}

// success returns the store entries for a new token, itself first.
func (b *Broker) success(e *entry, a attempt) []store.Put {
	var puts []store.Put
	if !b.private {
		puts = a.tokenPuts(e)
	}
	puts = append(puts, e.client.secrets.SuccessPuts(a.Use)...)
	for key, failure := range map[string]*backoff.Failure{e.failureKey(): a.entryFailure, e.client.keys.Failure: a.clientFailure} {
		if failure != nil {
			puts = append(puts, backoff.EndPut(key, a.Fence, FlightTimeout))
		}
	}
	if resolved := e.client.lastFailure.Resolve(a.Fence); resolved != nil {
		puts = append(puts, resolved.Put(e.client.keys.LastFailure))
	}
	return puts
}

func (a attempt) tokenPuts(e *entry) []store.Put {
	value, ttl := a.token.Stored(time.Now())
	if ttl <= 0 {
		return nil
	}
	return []store.Put{{Key: e.tokenKey(), Number: a.Fence, Value: value, TTL: ttl}}
}

// remember publishes the new token in this replica.
func (b *Broker) remember(e *entry, a attempt) {
	c := e.client
	c.secrets.Succeeded(a.Use)
	e.failure.CompareAndSwap(a.entryFailure, nil)
	e.failure.Succeeded(a.Fence)
	c.failure.CompareAndSwap(a.clientFailure, nil)
	e.replace(a.token, func(held *token.Token) bool { return a.token.Fence >= held.Fence })
	e.obtained(a.token)
}

// obtained records a token that the IdP issued to any replica.
func (e *entry) obtained(tok *token.Token) {
	if e.client.secrets.Issued(tok) && e.subject == nil {
		e.client.good.Store(e)
	}
}

// replace stores tok, unless the held token is good and tok must not replace it.
func (e *entry) replace(tok *token.Token, replaces func(held *token.Token) bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if held := e.token.Load(); e.usable(held, time.Now(), 0) && !replaces(held) {
		return
	}
	e.token.Store(tok)
	e.changed.Fire()
}

// failed records a failure that the secret did not cause, for the backoff of its
// class, and returns the store entries for it.
func (b *Broker) failed(e *entry, a attempt, probe bool) (*backoff.Failure, []store.Put) {
	c, class, now := e.client, idp.ClassOf(a.err), time.Now()
	next := &backoff.Failure{Class: class, Err: backoff.ErrorOf(c.name, a.Version.ID, a.err), At: now, Fence: a.Fence}
	if a.doubted {
		next.Doubted = a.Version.ID
	}
	place, key := &e.failure, e.failureKey()
	var puts []store.Put
	switch {
	case class == idp.Throttled:
		place, key = &c.failure, c.keys.Failure
		puts = append(puts, c.secrets.Throttled(a.Use))
	case class == idp.Transient && probe:
		// The waiters of the probe must not all try in turn.
		pause := &backoff.Failure{Class: class, Err: next.Err, At: now, Fence: a.Fence, Until: now.Add(probePause)}
		c.failure.Record(pause)
		puts = append(puts, pause.Put(c.keys.Failure, a.Fence, now))
	}
	next.Tries = place.Load().TriesBefore(class) + 1
	wait := backoff.Delay(a.err, next.Tries, e.token.Load(), now)
	next.Until = now.Add(wait)
	place.Record(next)
	puts = append(puts, c.failedAs(next, a.Version.ID))
	b.log.Warn("no token from the IdP", "client", c.name, "audience", e.ask.Audience,
		"resources", e.ask.Resources, "scopes", e.ask.Scopes, "class", class.String(), "error", a.err,
		"secret_version", a.Version.ID, "tries", next.Tries, "next_try_in", wait.Round(time.Millisecond))
	return next, append(puts, next.Put(key, a.Fence, now))
}

// refusedSecret records that the IdP refused a secret and the time to retry it, and
// returns the store entries for it.
func (b *Broker) refusedSecret(e *entry, a attempt) []store.Put {
	held := e.token.Load()
	if !e.usable(held, time.Now(), 0) {
		held = nil
	}
	failure, puts := e.client.secrets.Refused(a.Use, a.err, held)
	if failure == nil {
		return nil
	}
	return append(puts, e.client.failedAs(failure, a.Version.ID))
}

// wait waits for the end of the flight or of ctx.
func (f *flight) wait(ctx context.Context) *apierror.Error {
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return apierror.GaveUp(ctx)
	}
}
