package broker

import (
	"context"
	"slices"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/authz"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/token"
	"github.com/cezzis/tokenbroker/internal/tokenerror"
)

// Ask is a request for a token. The broker may keep its slices and does not change
// them.
type Ask struct {
	Client string
	// Audience and Resources default to the client's own, Scopes to those of its
	// scopes that the caller may have.
	Audience  string
	Resources []string
	Scopes    []string
	// MinTTL is the minimum remaining lifetime of the token. Zero: no minimum.
	MinTTL time.Duration
	// Rejected is the SHA-256 of a token that an API rejected. Nil: no token was
	// rejected.
	Rejected *[32]byte
}

// Origin is the place where the broker found a token.
type Origin int

// The origins.
const (
	OriginMemory  Origin = iota + 1 // this replica's memory
	OriginShared                    // the store, or a fetch by another replica while the caller waited
	OriginFetched                   // the IdP, while the caller waited
)

func (o Origin) String() string {
	switch o {
	case OriginMemory:
		return "memory"
	case OriginShared:
		return "shared"
	case OriginFetched:
		return "fetched"
	default:
		return "unknown"
	}
}

// Answer is a token and its state, the response to a request.
type Answer struct {
	Token *token.Token
	// RefreshAt is the time from which another request is useful.
	RefreshAt time.Time
	Origin    Origin
	// Degraded: the token is good, but a due replacement could not be obtained.
	Degraded bool
}

// Get returns a token if the caller may have it. The error is always an
// [*apierror.Error]. A held, fresh token is returned without I/O, without a lock and
// without a log line; one that is due for replacement is returned the same way, and
// replaced in the background.
func (b *Broker) Get(ctx context.Context, caller *policy.Caller, ask Ask) (Answer, error) {
	answer, err := b.get(ctx, caller, ask)
	if err != nil {
		b.metrics.Failed.Add(1)
		return Answer{}, err
	}
	return b.counted(answer), nil
}

func (b *Broker) get(ctx context.Context, caller *policy.Caller, ask Ask) (Answer, *apierror.Error) {
	c, full, denied := b.admit(ctx, caller, ask)
	if denied != nil {
		return Answer{}, denied
	}
	e := b.entryFor(c, full)
	answer, err := b.answer(ctx, e, ask)
	if err != nil {
		return Answer{}, err
	}
	if denied := b.mayHave(ctx, caller, e, answer.Token); denied != nil {
		return Answer{}, denied
	}
	if unwritten := b.recordGiven(ctx, caller, e, answer); unwritten != nil {
		return Answer{}, unwritten
	}
	return answer, nil
}

// admit fills in the defaults of the request, narrows them to the caller's grants and
// authorizes the request. A client that does not exist and one without a grant yield
// the same error.
func (b *Broker) admit(ctx context.Context, caller *policy.Caller, ask Ask) (*client, idp.Request, *apierror.Error) {
	c, requested := b.client(ask.Client), idp.Request{Audience: ask.Audience, Resources: ask.Resources, Scopes: ask.Scopes}
	if c == nil {
		return nil, idp.Request{}, b.DenyToken(ctx, caller, ask.Client, requested)
	}
	full := requested.WithDefaults(c.own)
	judged := c.judged(full)
	judged.Narrow = len(ask.Scopes) == 0
	scopes, may := caller.Resolve(judged)
	if !may && caller.HasGrant(c.name) {
		return nil, idp.Request{}, b.DenyTarget(ctx, caller, c.name, requested, full)
	}
	if !may {
		b.deniedToken(ctx, caller, c.name, full, apierror.ReasonNotEntitled)
		return nil, idp.Request{}, authz.NotEntitled(caller, c.name, requested)
	}
	full.Scopes = scopes
	return c, full, nil
}

// judged converts a request to the client into a policy request.
func (c *client) judged(full idp.Request) policy.Request {
	return policy.Request{Client: c.name, Audience: full.Audience, Resources: full.Resources, Scopes: full.Scopes}
}

// mayHave authorizes the scopes that the IdP granted, which may exceed the requested
// ones.
func (b *Broker) mayHave(ctx context.Context, caller *policy.Caller, e *entry, tok *token.Token) *apierror.Error {
	if caller.MayReceive(e.client.judged(e.ask), tok.Scopes) {
		return nil
	}
	return b.deniedScopes(ctx, caller, e, tok)
}

func (b *Broker) deniedScopes(ctx context.Context, caller *policy.Caller, e *entry, tok *token.Token) *apierror.Error {
	denied := authz.GrantedTooMuch(caller, e.client.name, e.ask.Scopes, tok.Scopes)
	b.deniedToken(ctx, caller, e.client.name, e.ask, denied.Reason)
	return denied
}

// DenyTarget records and returns the denial of a request of a caller that has other grants
// for the client.
func (b *Broker) DenyTarget(ctx context.Context, caller *policy.Caller, client string, requested, full idp.Request) *apierror.Error {
	b.deniedToken(ctx, caller, client, full, apierror.ReasonNotEntitled)
	return authz.NotGranted(caller, client, requested, full)
}

// DenyToken records and returns the denial of a token of a client that does not exist, or
// for which the caller has no grant.
func (b *Broker) DenyToken(ctx context.Context, caller *policy.Caller, client string, requested idp.Request) *apierror.Error {
	b.deniedToken(ctx, caller, client, requested, apierror.ReasonNotEntitled)
	return authz.NotEntitled(caller, client, requested)
}

func (b *Broker) answer(ctx context.Context, e *entry, ask Ask) (Answer, *apierror.Error) {
	if answer, ok := b.hit(ctx, e, ask, time.Now()); ok {
		return answer, nil
	}
	return b.miss(ctx, e, ask)
}

// entryFor returns the entry of a resolved request.
func (b *Broker) entryFor(c *client, full idp.Request) *entry {
	if full.Audience == c.own.Audience && slices.Equal(full.Resources, c.own.Resources) && slices.Equal(full.Scopes, c.own.Scopes) {
		return c.entry
	}
	return b.entryAt(c, full.Key(c.name), full)
}

func (b *Broker) entryAt(c *client, k idp.Key, ask idp.Request) *entry {
	var old *entry // of an earlier configuration
	current := func(e *entry) bool {
		old = e
		return e.client == c
	}
	return b.entries.Get(k, current, func() *entry { return b.newEntry(c, k, ask).after(old) })
}

// hit returns the held token if it suits, and starts the replacement of a token that
// is due.
func (b *Broker) hit(ctx context.Context, e *entry, ask Ask, now time.Time) (Answer, bool) {
	tok := e.token.Load()
	if !e.usable(tok, now, ask.MinTTL) || ask.rejects(tok) {
		return Answer{}, false
	}
	if tok.Fresh(now) {
		return held(tok, now, false), true
	}
	degraded := e.failing()
	if e.flight.Load() == nil && e.outlives(tok) && e.activeFailure(now) == nil && now.UnixNano() >= e.quietUntil.Load() {
		b.refresh(ctx, e, tok)
	}
	return held(tok, now, degraded), true
}

func (a Ask) rejects(tok *token.Token) bool { return a.Rejected != nil && *a.Rejected == tok.SHA256 }

func held(tok *token.Token, now time.Time, degraded bool) Answer {
	return Answer{Token: tok, RefreshAt: tok.RefreshHint(now, minRefreshHint), Origin: OriginMemory, Degraded: degraded}
}

// refresh starts a flight without waiting for it, unless a flight is running or the
// token has been replaced.
func (b *Broker) refresh(ctx context.Context, e *entry, old *token.Token) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.flight.Load() == nil && e.token.Load() == old {
		b.start(ctx, e, &flight{old: old})
	}
}

// miss serves a request that the held token does not satisfy: from a flight that it
// joins or starts, or with the reason for failure. A flight that accepts any good
// token may return one that does not suit this caller, which then starts another
// round.
func (b *Broker) miss(ctx context.Context, e *entry, ask Ask) (Answer, *apierror.Error) {
	e.client.requested.Store(true)
	for range maxRounds {
		f, answer, err := b.join(ctx, e, ask, time.Now())
		switch {
		case err != nil:
			return Answer{}, err
		case f == nil:
			return answer, nil
		}
		if err := f.wait(ctx); err != nil {
			return Answer{}, err
		}
		now := time.Now()
		if f.err == nil && f.origin != OriginFetched && e.usable(f.token, now, 0) && (!e.usable(f.token, now, ask.MinTTL) || ask.rejects(f.token)) {
			continue
		}
		return e.resolve(f, ask, now)
	}
	return e.instead(ask, time.Now(), tokenerror.ForcedTooOften(e.client.name, ForcedInterval).WithRetryAfter(ForcedInterval))
}

// join returns the flight to wait for, or an immediate response or error.
func (b *Broker) join(ctx context.Context, e *entry, ask Ask, now time.Time) (*flight, Answer, *apierror.Error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	// A flight may have ended since the caller looked.
	tok := e.token.Load()
	if e.usable(tok, now, ask.MinTTL) && !ask.rejects(tok) {
		return nil, held(tok, now, false), nil
	}
	if f := e.flight.Load(); f != nil {
		b.metrics.Avoided.Joined.Add(1)
		return f, Answer{}, nil
	}
	if err := e.unattainable(tok, ask, now); err != nil {
		return nil, Answer{}, err
	}
	if t := e.activeFailure(now); t != nil {
		b.metrics.Avoided.Backoff.Add(1)
		answer, err := e.instead(ask, now, t.ErrorAt(now))
		return nil, answer, err
	}
	f := &flight{old: tok, forced: e.usable(tok, now, 0)}
	if f.forced {
		if wait := e.forcedAt.Add(ForcedInterval).Sub(now); wait > 0 {
			answer, err := e.instead(ask, now, tokenerror.ForcedTooOften(e.client.name, ForcedInterval).WithRetryAfter(wait))
			return nil, answer, err
		}
		e.forcedAt = now
	}
	return b.start(ctx, e, f), Answer{}, nil
}

// instead returns the held token if it is good enough (it was rejected, but there is
// no better one), otherwise err.
func (e *entry) instead(ask Ask, now time.Time, err *apierror.Error) (Answer, *apierror.Error) {
	if tok := e.token.Load(); e.usable(tok, now, ask.MinTTL) {
		return held(tok, now, true), nil
	}
	return Answer{}, err
}

// unattainable returns an error if MinTTL exceeds the lifetime that the IdP recently
// gave the held token. The next token may live longer: an IdP that repeats a token
// until it ends has last given only the rest of its life.
func (e *entry) unattainable(tok *token.Token, ask Ask, now time.Time) *apierror.Error {
	if !e.usable(tok, now, 0) || ask.MinTTL < tok.Lifetime() || now.Sub(tok.MintedAt) > rememberLifetime {
		return nil
	}
	return tokenerror.TooShort(e.client.name, tok)
}

// resolve returns the result of a flight for one caller.
func (e *entry) resolve(f *flight, ask Ask, now time.Time) (Answer, *apierror.Error) {
	if f.err != nil {
		return e.instead(ask, now, f.err)
	}
	switch {
	case e.usable(f.token, now, ask.MinTTL):
		// An IdP may repeat a token, so this may be the rejected one.
		return Answer{Token: f.token, RefreshAt: f.token.RefreshHint(now, minRefreshHint), Origin: f.origin, Degraded: ask.rejects(f.token)}, nil
	case e.usable(f.token, now, 0):
		return Answer{}, tokenerror.TooShort(e.client.name, f.token)
	case f.token.Epoch < e.client.counters.Epoch():
		return Answer{}, tokenerror.Purged(e.client.name)
	default:
		return Answer{}, tokenerror.TooLate(e.client.name, f.token)
	}
}
