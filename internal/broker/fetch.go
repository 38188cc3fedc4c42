package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/token"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

// start begins a flight, on account of the call that ctx is of, and apart from it.
// The caller holds e.mu and has seen that there is none.
func (b *Broker) start(ctx context.Context, e *entry, f *flight) *flight {
	f.done = make(chan struct{})
	e.flight.Store(f)
	apart := tracing.Detached(b.flying, ctx)
	if !b.spawn(func() { b.fly(apart, e, f) }) {
		e.flight.Store(nil)
		f.err = ShuttingDown(e.client.name)
		close(f.done)
	}
	return f
}

// fly gets a token and lets everybody know, whatever happens.
func (b *Broker) fly(ctx context.Context, e *entry, f *flight) {
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
	lease, how := b.await(ctx, e, e.leaseKey(), func() bool { return f.settle(e, time.Now()) })
	switch how {
	case leased:
		b.lead(ctx, e, f, lease)
	case unanswered:
		b.alone(ctx, e, f)
	case ended:
		f.err = b.outOfTime(e)
	case settled:
	}
}

// settle ends the flight if what became known meanwhile is what it is after, or
// says that there is none to be had.
func (f *flight) settle(e *entry, now time.Time) bool {
	if tok := e.token.Load(); tok != f.old && e.usable(tok, now, 0) {
		f.token, f.source = tok, FromShared
		return true
	}
	if t := e.troubleNow(now); t != nil {
		f.err = t.told(now)
		return true
	}
	return false
}

// lead fetches on behalf of the fleet.
func (b *Broker) lead(ctx context.Context, e *entry, f *flight, lease store.Lease) {
	stop := b.keep(ctx, lease)
	defer stop()
	if f.forced && !b.mayForce(ctx, e) {
		b.write(ctx, store.Change{Release: lease})
		f.err = forcedTooOften(e.client.name).after(guardInterval)
		e.mayForceAt(time.Now().Add(guardInterval))
		return
	}
	b.fetch(ctx, e, f, lease)
}

// mayForce reports whether no replica has forced a fetch lately. The lease that
// it takes is not released: it is the guard.
func (b *Broker) mayForce(ctx context.Context, e *entry) bool {
	guard := store.Claim{
		Key: e.forcedKey(), Owner: rand.Text(), TTL: ForcedInterval,
		Counter: e.client.keys.fences, Floor: e.client.fence.Load(),
	}
	_, acquired, err := b.store.Acquire(ctx, guard)
	return acquired || err != nil
}

// mayForceAt sets when this replica tries again to force a fetch.
func (e *entry) mayForceAt(next time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forcedAt = next.Add(-ForcedInterval)
}

// alone fetches without a lease, because the store does not say who has it. A
// refresh can wait for a while: the store may come back, and the fleet is spared
// a fetch by each replica.
func (b *Broker) alone(ctx context.Context, e *entry, f *flight) {
	now := time.Now()
	if !f.forced && e.usable(f.old, now, 0) && now.Before(late(f.old)) {
		e.quietUntil.Store(now.Add(time.Second).UnixNano())
		f.token, f.source = f.old, FromMemory
		return
	}
	if !sleep(ctx, nil, mathrand.N(maxStagger)) {
		f.err = b.outOfTime(e)
		return
	}
	if !f.settle(e, time.Now()) {
		b.fetch(ctx, e, f, store.Lease{})
	}
}

// late is the middle of the time in which a token is to be refreshed.
func late(tok *token.Token) time.Time {
	return tok.RefreshAt.Add(tok.UsableUntil.Sub(tok.RefreshAt) / 2)
}

// fetch asks the IdP. What came of it is told to the fleet, in one step with
// giving up the lease, before anybody here gets to see it. The zero lease: there
// is no fleet to tell.
func (b *Broker) fetch(ctx context.Context, e *entry, f *flight, lease store.Lease) {
	version := e.client.version()
	leave, probing, told := b.enter(ctx, e, version.ID, lease.Fence > 0)
	if told != nil {
		f.err = told
		b.tell(ctx, lease)
		return
	}
	defer leave()
	before := standing{e.trouble.Load(), e.client.trouble.Load()}
	tok, err := b.mint(ctx, e, version, max(lease.Fence, e.client.fence.Load()))
	switch {
	case err == nil:
		newest := b.tell(ctx, lease, before.success(e, tok)...)
		before.fetched(e, tok)
		f.token, f.source = tok, FromIdP
		if !newest {
			_ = b.look(ctx, e) // some IdPs end a token when they issue the next one
		}
	case b.flying.Err() != nil:
		f.err = ShuttingDown(e.client.name)
		b.tell(ctx, lease)
	default:
		t, puts := b.failed(e, version.ID, err, probing, max(lease.Fence, e.client.fence.Load()))
		f.err = t.told(time.Now())
		b.tell(ctx, lease, puts...)
	}
}

// tell gives up the lease of a fetch and stores what came of it.
func (b *Broker) tell(ctx context.Context, lease store.Lease, puts ...store.Put) (newest bool) {
	if lease.Fence == 0 {
		return true
	}
	return b.write(ctx, store.Change{Puts: puts, Release: lease})
}

// mint asks the IdP for a token, and once more if all of the client's were
// purged meanwhile.
func (b *Broker) mint(ctx context.Context, e *entry, version secret.Version, fence uint64) (tok *token.Token, err error) {
	for range maxPurged {
		epoch, begun := e.client.epoch.Load(), time.Now()
		ask := e.ask
		ask.Once = e.usable(e.token.Load(), begun, 0)
		grant, err := e.client.idp.Fetch(ctx, version, ask)
		b.metrics.fetch(e.client.name, time.Since(begun), err)
		if err != nil {
			return nil, err
		}
		tok = token.New(grant, epoch, fence)
		if e.client.epoch.Load() == epoch {
			break
		}
	}
	return tok, nil
}

// standing are the troubles that stood when a fetch began: its success ends
// them and no others, for a throttling that came meanwhile is to be obeyed.
type standing struct{ entry, client *trouble }

// success is what the fleet is told of a new token.
func (s standing) success(e *entry, tok *token.Token) []store.Put {
	keys := e.client.keys
	var puts []store.Put
	if value, ttl := tok.Stored(time.Now()); ttl > 0 {
		puts = append(puts, store.Put{Key: e.tokenKey(), Number: tok.Fence, Value: value, TTL: ttl})
	}
	puts = append(puts, store.Put{Key: keys.proof, Number: tok.Fence, Value: []byte(tok.SecretVersion), TTL: proofLasts})
	if s.entry != nil {
		puts = append(puts, over(e.troubleKey(), tok.Fence))
	}
	if s.client != nil {
		puts = append(puts, over(keys.trouble, tok.Fence))
	}
	return puts
}

// fetched publishes the new token in this replica.
func (s standing) fetched(e *entry, tok *token.Token) {
	e.client.prove(tok.SecretVersion, time.Now().Add(proofLasts), tok.Fence)
	e.trouble.CompareAndSwap(s.entry, nil)
	e.trouble.lift(tok.Fence)
	e.client.trouble.CompareAndSwap(s.client, nil)
	e.publish(tok, func(held *token.Token) bool { return tok.Fence >= held.Fence })
}

// publish makes tok the one that is held, unless the one that is held is good
// and not to be replaced by it.
func (e *entry) publish(tok *token.Token, replaces func(held *token.Token) bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if held := e.token.Load(); e.usable(held, time.Now(), 0) && !replaces(held) {
		return
	}
	e.token.Store(tok)
	e.changed.fire()
}

// sawToken adopts the token that the store has, if it is good and newer.
func (b *Broker) sawToken(e *entry, found store.Entry, asked time.Time) {
	if found.Number == 0 {
		return
	}
	tok, err := token.FromStored(found.Value, found.Number, asked, found.TTL)
	if err != nil {
		b.metrics.unreadable.Inc() // it was sealed by a replica of ours: one of another version
		return
	}
	if !e.usable(tok, time.Now(), 0) {
		return
	}
	e.publish(tok, func(held *token.Token) bool { return tok.Fence > held.Fence })
	e.trouble.lift(tok.Fence)
	e.client.trouble.lift(tok.Fence)
}

// failed remembers a failure for as long as its class deserves, and returns what
// the fleet is to be told of it.
func (b *Broker) failed(e *entry, version string, err error, probing bool, fence uint64) (*trouble, []store.Put) {
	c, class, now := e.client, idp.ClassOf(err), time.Now()
	next := &trouble{class: class, err: refused(c.name, version, err), fence: fence}
	place, key := &e.trouble, e.troubleKey()
	var puts []store.Put
	switch {
	case class == idp.CredentialRefused:
		next.secretVersion = version
		fallthrough
	case class == idp.Throttled:
		place, key = &c.trouble, c.keys.trouble
		c.prove(noProof, now, fence)
		puts = append(puts, store.Put{Key: c.keys.proof, Number: fence, Value: []byte(noProof), TTL: proofLasts})
	case class == idp.Transient && probing:
		// Those who waited for the probe must not all try in turn.
		pause := &trouble{class: class, err: next.err, fence: fence, until: now.Add(probePause)}
		c.trouble.set(pause)
		puts = append(puts, pause.put(c.keys.trouble, fence, now))
	}
	next.tries = place.Load().triesBefore(class, next.secretVersion) + 1
	wait := backoff(err, next.tries, e.token.Load(), now)
	next.until = now.Add(wait)
	place.set(next)
	b.log.Warn("no token from the IdP", "client", c.name, "audience", e.ask.Audience,
		"resources", e.ask.Resources, "scopes", e.ask.Scopes, "class", class.String(), "error", err,
		"secret_version", version, "tries", next.tries, "next_try_in", wait.Round(time.Millisecond))
	return next, append(puts, next.put(key, fence, now))
}

// ShuttingDown is the error for those whom this replica can serve no longer.
func ShuttingDown(client string) *Error {
	return &Error{
		Code: Unavailable, Reason: ReasonShuttingDown, RetryAfter: time.Second,
		Metadata: map[string]string{"client": client},
		Message:  "this replica is shutting down; ask another one",
	}
}

// outOfTime is the error of a flight that ended before it got to the IdP.
func (b *Broker) outOfTime(e *entry) *Error {
	if b.flying.Err() != nil {
		return ShuttingDown(e.client.name)
	}
	return &Error{
		Code: Unavailable, Reason: ReasonIdPUnavailable, RetryAfter: time.Second,
		Metadata: map[string]string{"client": e.client.name},
		Message:  fmt.Sprintf("client %q: no token came in time", e.client.name),
	}
}

// crashed tells of a panic by its type and place: its value may hold anything.
func (b *Broker) crashed(e *entry, cause any) *Error {
	b.log.Error("a fetch crashed", "client", e.client.name, "type", fmt.Sprintf("%T", cause), "stack", string(debug.Stack()))
	return &Error{Code: Internal, Reason: ReasonInternal, Message: internalMessage}
}

// backoff is how long the IdP is not asked again after the n-th failure of a
// kind in a row.
func backoff(err error, n int, tok *token.Token, now time.Time) time.Duration {
	step := func(steps ...time.Duration) time.Duration { return steps[min(n, len(steps))-1] }
	refusal, ok := errors.AsType[*idp.Error](err)
	if !ok {
		return transientBackoff(n, tok, now)
	}
	switch refusal.Class {
	case idp.Throttled:
		return refusal.RetryAfter
	case idp.CredentialRefused:
		return step(30*time.Second, 2*time.Minute, 5*time.Minute, 10*time.Minute)
	case idp.RequestRefused:
		return step(time.Minute, 5*time.Minute)
	case idp.Misconfigured:
		return time.Minute
	default:
		return transientBackoff(n, tok, now)
	}
}

// transientBackoff doubles from 1 s to 30 s, spread by half either way. While a
// token is held it leaves room for a few more tries before the token ends.
func transientBackoff(n int, tok *token.Token, now time.Time) time.Duration {
	const (
		most       = 30 * time.Second
		minBackoff = 500 * time.Millisecond
	)
	wait := most
	if n <= 5 {
		wait = time.Second << (n - 1)
	}
	wait = time.Duration(float64(wait) * (0.5 + mathrand.Float64()))
	if tok != nil && tok.Usable(now, 0) {
		wait = min(wait, tok.UsableUntil.Sub(now)/4)
	}
	return max(wait, minBackoff)
}
