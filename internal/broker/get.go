package broker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/token"
)

// Ask is a question for a token. Its slices are not changed and may be kept.
type Ask struct {
	Client string
	// Audience, Resources and Scopes default to the client's own.
	Audience  string
	Resources []string
	Scopes    []string
	// MinTTL is how long the token must live at least. Zero: no wish.
	MinTTL time.Duration
	// Rejected is the SHA-256 of a token that an API refused. Nil: none.
	Rejected *[32]byte
}

// Source says where a token came from.
type Source int

// The sources.
const (
	FromMemory Source = iota + 1 // this replica's memory
	FromIdP                      // the IdP, while the caller waited
)

// Answer is a token for a question.
type Answer struct {
	Token *token.Token
	// RefreshAt is when asking again pays.
	RefreshAt time.Time
	Source    Source
	// Degraded: the token is good, but a fresher one is due and was not to be
	// had.
	Degraded bool
}

// Get answers ask with a token. The error is always an [*Error]. A token that is
// held and fresh is answered without I/O, without a lock and without a log line;
// one that is due to be replaced is answered the same, and replaced behind the
// caller's back.
func (b *Broker) Get(ctx context.Context, ask Ask) (Answer, error) {
	c := b.clients[ask.Client]
	if c == nil {
		b.metrics.failed.Inc()
		return Answer{}, notEntitled(ask.Client)
	}
	e := b.entryFor(c, ask)
	if answer, ok := b.hit(e, ask, time.Now()); ok {
		return b.metrics.counted(answer), nil
	}
	answer, err := b.miss(ctx, e, ask)
	if err != nil {
		b.metrics.failed.Inc()
		return Answer{}, err
	}
	return b.metrics.counted(answer), nil
}

func notEntitled(client string) *Error {
	return &Error{
		Code:    PermissionDenied,
		Reason:  ReasonNotEntitled,
		Message: fmt.Sprintf("there is no client %q, or it is not for this caller; see the clients in the broker's configuration", client),
	}
}

// entryFor resolves the defaults of ask.
func (b *Broker) entryFor(c *client, ask Ask) *entry {
	if ask.Audience == "" && len(ask.Resources) == 0 && len(ask.Scopes) == 0 {
		return c.entry
	}
	full := c.own
	if ask.Audience != "" {
		full.Audience = ask.Audience
	}
	if len(ask.Resources) > 0 {
		full.Resources = ask.Resources
	}
	if len(ask.Scopes) > 0 {
		full.Scopes = canonicalScopes(ask.Scopes)
	}
	if full.Audience == c.own.Audience && slices.Equal(full.Resources, c.own.Resources) && slices.Equal(full.Scopes, c.own.Scopes) {
		return c.entry
	}
	return b.entries.get(keyOf(c.name, full), func() *entry { return &entry{client: c, ask: full} })
}

// hit answers from memory if it can, and sees to it that a token that is due
// gets replaced.
func (b *Broker) hit(e *entry, ask Ask, now time.Time) (Answer, bool) {
	tok := e.token.Load()
	if tok == nil || !tok.Usable(now, ask.MinTTL) || ask.rejects(tok) {
		return Answer{}, false
	}
	if tok.Fresh(now) {
		return held(tok, now, false), true
	}
	degraded := e.failing()
	if e.flight.Load() == nil && e.troubleNow(now) == nil {
		b.refresh(e, tok)
	}
	return held(tok, now, degraded), true
}

func (a Ask) rejects(tok *token.Token) bool { return a.Rejected != nil && *a.Rejected == tok.SHA256 }

func held(tok *token.Token, now time.Time, degraded bool) Answer {
	return Answer{Token: tok, RefreshAt: refreshHint(tok, now), Source: FromMemory, Degraded: degraded}
}

// refreshHint is never nearer than minRefreshHint, so that a caller who obeys
// it does not ask in a loop, unless the token does not live so long.
func refreshHint(tok *token.Token, now time.Time) time.Time {
	hint := tok.RefreshAt
	if soonest := now.Add(minRefreshHint); hint.Before(soonest) {
		hint = soonest
	}
	if hint.After(tok.UsableUntil) {
		hint = tok.UsableUntil
	}
	return hint
}

// refresh starts a fetch that nobody waits for, unless one is under way or the
// token was replaced meanwhile.
func (b *Broker) refresh(e *entry, old *token.Token) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.flight.Load() == nil && e.token.Load() == old {
		b.start(e)
	}
}

// miss answers a question that what is held does not answer: from a fetch that
// it joins or starts, or with the reason why there is none.
func (b *Broker) miss(ctx context.Context, e *entry, ask Ask) (Answer, error) {
	f, answer, err := b.join(e, ask, time.Now())
	switch {
	case err != nil:
		return Answer{}, err
	case f == nil:
		return answer, nil
	}
	if err := f.wait(ctx); err != nil {
		return Answer{}, err
	}
	answer, err = e.land(f, ask, time.Now())
	if err != nil {
		return Answer{}, err
	}
	return answer, nil
}

// join returns the flight to wait for, or the answer or error that needs none.
func (b *Broker) join(e *entry, ask Ask, now time.Time) (*flight, Answer, *Error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	// A flight may have landed since the caller looked.
	tok := e.token.Load()
	if tok != nil && tok.Usable(now, ask.MinTTL) && !ask.rejects(tok) {
		return nil, held(tok, now, false), nil
	}
	if f := e.flight.Load(); f != nil {
		return f, Answer{}, nil
	}
	if err := e.unattainable(tok, ask, now); err != nil {
		return nil, Answer{}, err
	}
	if t := e.troubleNow(now); t != nil {
		answer, err := instead(tok, ask, now, t.err.after(t.until.Sub(now)))
		return nil, answer, err
	}
	if tok != nil && tok.Usable(now, 0) {
		if wait := e.forcedAt.Add(ForcedInterval).Sub(now); wait > 0 {
			answer, err := instead(tok, ask, now, forcedTooOften(e.client.name).after(wait))
			return nil, answer, err
		}
		e.forcedAt = now
	}
	return b.start(e), Answer{}, nil
}

// instead answers with the held token where it is good enough for ask (it was
// rejected, but nothing better is to be had), else with err.
func instead(tok *token.Token, ask Ask, now time.Time, err *Error) (Answer, *Error) {
	if tok != nil && tok.Usable(now, ask.MinTTL) {
		return held(tok, now, true), nil
	}
	return Answer{}, err
}

func forcedTooOften(client string) *Error {
	return &Error{
		Code:     ResourceExhausted,
		Reason:   ReasonForcedFetchLimited,
		Metadata: map[string]string{"client": client},
		Message:  fmt.Sprintf("client %q: the token held does not live long enough for min_ttl, and a fresher one was fetched less than %v ago; ask again later or for less", client, ForcedInterval),
	}
}

// unattainable says that ask wants a longer life than the IdP was lately seen to
// give.
func (e *entry) unattainable(tok *token.Token, ask Ask, now time.Time) *Error {
	if tok == nil || ask.MinTTL < tok.Lifetime() || now.Sub(e.learnedAt) > rememberLifetime {
		return nil
	}
	return tooShort(e.client.name, tok)
}

func tooShort(client string, tok *token.Token) *Error {
	return &Error{
		Code:     FailedPrecondition,
		Reason:   ReasonMinTTLUnattainable,
		Metadata: map[string]string{"client": client, "lifetime": tok.Lifetime().Round(time.Second).String()},
		Message: fmt.Sprintf("client %q: the IdP issues tokens that live %v, which is too short for min_ttl; ask for less, or have the lifetime raised at the IdP",
			client, tok.Lifetime().Round(time.Second)),
	}
}

// land judges for one caller what a flight brought.
func (e *entry) land(f *flight, ask Ask, now time.Time) (Answer, *Error) {
	if f.err != nil {
		return instead(e.token.Load(), ask, now, f.err)
	}
	switch {
	case f.token.Usable(now, ask.MinTTL):
		// An IdP may give the same token again: then it is also the rejected one.
		return Answer{Token: f.token, RefreshAt: refreshHint(f.token, now), Source: FromIdP, Degraded: ask.rejects(f.token)}, nil
	case f.token.Usable(now, 0):
		return Answer{}, tooShort(e.client.name, f.token)
	default:
		return Answer{}, &Error{
			Code: Unavailable, Reason: ReasonIdPUnavailable, RetryAfter: time.Second,
			Metadata: map[string]string{"client": e.client.name},
			Message: fmt.Sprintf("client %q: the IdP took so long that the token, which lives %v, can no longer be used; have its lifetime raised at the IdP",
				e.client.name, f.token.Lifetime().Round(time.Second)),
		}
	}
}

// start begins a flight. The caller holds e.mu and has seen that there is none.
func (b *Broker) start(e *entry) *flight {
	f := &flight{done: make(chan struct{})}
	b.mu.Lock()
	closed := b.closed
	if !closed {
		b.flights.Add(1)
	}
	b.mu.Unlock()
	if closed {
		f.err = shuttingDown(e.client.name)
		close(f.done)
		return f
	}
	e.flight.Store(f)
	go b.fly(e, f)
	return f
}

func shuttingDown(client string) *Error {
	return &Error{
		Code: Unavailable, Reason: ReasonShuttingDown, RetryAfter: time.Second,
		Metadata: map[string]string{"client": client},
		Message:  "this replica is shutting down; ask another one",
	}
}

// fly fetches a token and lets everybody know, whatever happens.
func (b *Broker) fly(e *entry, f *flight) {
	defer b.flights.Done()
	defer func() {
		if cause := recover(); cause != nil {
			f.token, f.err = nil, b.crashed(e, cause)
		}
		e.mu.Lock()
		e.flight.Store(nil)
		e.mu.Unlock()
		close(f.done)
	}()
	ctx, cancel := context.WithTimeout(b.flying, FlightTimeout)
	defer cancel()
	version, before := e.client.secret.Current(), e.client.trouble.Load()
	grant, err := b.fetch(ctx, e, version)
	if err != nil {
		f.err = b.fetchFailed(e, version.ID, err)
		return
	}
	f.token = e.fetched(grant, before)
}

// fetch asks the IdP. As long as the secret is not proven, the client's fetches
// go one at a time, so that an IdP sees a wrong secret once and not once for
// each audience: accounts get locked.
func (b *Broker) fetch(ctx context.Context, e *entry, version secret.Version) (grant token.Grant, err error) {
	leave, err := e.client.pass(ctx, version.ID)
	if err != nil {
		return token.Grant{}, err
	}
	defer func() { leave(err) }()
	begun := time.Now()
	grant, err = e.client.idp.Fetch(ctx, version, e.ask)
	b.metrics.fetch(e.client.name, time.Since(begun), err)
	return grant, err
}

// fetched publishes the new token. It ends the client's trouble that stood when
// the fetch began, and no other: a throttling that came meanwhile is obeyed.
func (e *entry) fetched(grant token.Grant, before *trouble) *token.Token {
	tok := token.New(grant)
	e.client.prove(grant.SecretVersion)
	e.client.trouble.CompareAndSwap(before, nil)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.learnedAt = time.Now()
	e.token.Store(tok)
	e.trouble.Store(nil)
	return tok
}

// fetchFailed remembers the failure for as long as its class deserves.
func (b *Broker) fetchFailed(e *entry, version string, err error) *Error {
	if b.flying.Err() != nil {
		return shuttingDown(e.client.name)
	}
	class := idp.ClassOf(err)
	told := refused(e.client.name, version, err)
	next := &trouble{class: class, err: told}
	place := &e.trouble
	switch class {
	case idp.CredentialRefused:
		next.secretVersion = version
		fallthrough
	case idp.Throttled:
		place = &e.client.trouble
		e.client.doubt(version)
	default:
	}
	now := time.Now()
	next.tries = place.Load().triesBefore(class, next.secretVersion) + 1
	wait := backoff(err, next.tries, e.token.Load(), now)
	next.until = now.Add(wait)
	place.Store(next)
	b.log.Warn("no token from the IdP", "client", e.client.name, "audience", e.ask.Audience,
		"resources", e.ask.Resources, "scopes", e.ask.Scopes, "class", class.String(), "error", err,
		"secret_version", version, "tries", next.tries, "next_try_in", wait.Round(time.Millisecond))
	return told.after(wait)
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
	const most = 30 * time.Second
	wait := most
	if n <= 5 {
		wait = time.Second << (n - 1)
	}
	wait = time.Duration(float64(wait) * (0.5 + rand.Float64()))
	if tok != nil && tok.Usable(now, 0) {
		wait = min(wait, tok.UsableUntil.Sub(now)/4)
	}
	return max(wait, 100*time.Millisecond)
}
