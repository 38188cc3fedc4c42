package broker

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/token"
)

// Ask is a question for a token. Its slices are not changed and may be kept.
type Ask struct {
	Client string
	// Audience and Resources default to the client's own, Scopes to those of the
	// client's own that the caller may have.
	Audience  string
	Resources []string
	Scopes    []string
	// MinTTL is how long the token must live at least. Zero: no wish.
	MinTTL time.Duration
	// Rejected is the SHA-256 of a token that an API refused. Nil: none.
	Rejected *[32]byte
}

// Origin is the place where the broker found a token.
type Origin int

// The origins.
const (
	OriginMemory  Origin = iota + 1 // this replica's memory
	OriginShared                    // the store, or a replica that fetched it meanwhile
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

// Answer is a token for a question.
type Answer struct {
	Token *token.Token
	// RefreshAt is when asking again pays.
	RefreshAt time.Time
	Origin    Origin
	// Degraded: the token is good, but a fresher one is due and was not to be
	// had.
	Degraded bool
}

// Get answers ask with a token, if the caller may have it. The error is always an
// [*apierror.Error]. A token that is held and fresh is answered without I/O, without a
// lock and without a log line; one that is due to be replaced is answered the
// same, and replaced behind the caller's back.
func (b *Broker) Get(ctx context.Context, caller *policy.Caller, ask Ask) (Answer, error) {
	answer, err := b.get(ctx, caller, ask)
	if err != nil {
		b.metrics.failed.Inc()
		return Answer{}, err
	}
	return b.metrics.counted(answer), nil
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
	if unwritten := b.giving(ctx, caller, e, answer); unwritten != nil {
		return Answer{}, unwritten
	}
	return answer, nil
}

// admit fills in the defaults of ask, narrowed to what the caller may have, and
// judges it. It denies in the same words what does not exist and what the caller
// has no grant for.
func (b *Broker) admit(ctx context.Context, caller *policy.Caller, ask Ask) (*client, idp.Request, *apierror.Error) {
	c := b.client(ask.Client)
	if c == nil {
		asked := idp.Request{Audience: ask.Audience, Resources: ask.Resources, Scopes: ask.Scopes}
		b.deniedToken(ctx, caller, ask.Client, asked, apierror.ReasonNotEntitled)
		return nil, idp.Request{}, notEntitled(caller, ask)
	}
	full := c.resolve(ask)
	judged := c.judged(full)
	judged.Narrow = len(ask.Scopes) == 0
	scopes, may := caller.Resolve(judged)
	if !may {
		b.deniedToken(ctx, caller, c.name, full, apierror.ReasonNotEntitled)
		if caller.HasGrant(c.name) {
			return nil, idp.Request{}, notGranted(caller, ask, full)
		}
		return nil, idp.Request{}, notEntitled(caller, ask)
	}
	full.Scopes = scopes
	return c, full, nil
}

// judged is a question to the client as policy sees it.
func (c *client) judged(full idp.Request) policy.Request {
	return policy.Request{Client: c.name, Audience: full.Audience, Resources: full.Resources, Scopes: full.Scopes}
}

// mayHave judges the scopes that the IdP granted, which may be more than were asked
// for.
func (b *Broker) mayHave(ctx context.Context, caller *policy.Caller, e *entry, tok *token.Token) *apierror.Error {
	if caller.MayReceive(e.client.judged(e.ask), tok.Scopes) {
		return nil
	}
	denied := grantedTooMuch(caller, e.client.name, e.ask.Scopes, tok.Scopes)
	b.deniedToken(ctx, caller, e.client.name, e.ask, denied.Reason)
	return denied
}

func (b *Broker) answer(ctx context.Context, e *entry, ask Ask) (Answer, *apierror.Error) {
	if answer, ok := b.hit(ctx, e, ask, time.Now()); ok {
		return answer, nil
	}
	return b.miss(ctx, e, ask)
}

// resolve fills in the defaults of ask.
func (c *client) resolve(ask Ask) idp.Request {
	full := c.own
	if ask.Audience == "" && len(ask.Resources) == 0 && len(ask.Scopes) == 0 {
		return full
	}
	if ask.Audience != "" {
		full.Audience = ask.Audience
	}
	if len(ask.Resources) > 0 {
		full.Resources = ask.Resources
	}
	if len(ask.Scopes) > 0 {
		full.Scopes = canonicalScopes(ask.Scopes)
	}
	return full
}

// entryFor returns the place of the token that answers a resolved question.
func (b *Broker) entryFor(c *client, full idp.Request) *entry {
	if full.Audience == c.own.Audience && slices.Equal(full.Resources, c.own.Resources) && slices.Equal(full.Scopes, c.own.Scopes) {
		return c.entry
	}
	return b.entryAt(c, keyOf(c.name, full), full)
}

func (b *Broker) entryAt(c *client, k key, ask idp.Request) *entry {
	return b.entries.get(k, c, func() *entry { return b.newEntry(c, k, ask) })
}

// hit answers from memory if it can, and sees to it that a token that is due
// gets replaced.
func (b *Broker) hit(ctx context.Context, e *entry, ask Ask, now time.Time) (Answer, bool) {
	tok := e.token.Load()
	if !e.usable(tok, now, ask.MinTTL) || ask.rejects(tok) {
		return Answer{}, false
	}
	if tok.Fresh(now) {
		return held(tok, now, false), true
	}
	degraded := e.failing()
	if e.flight.Load() == nil && e.activeFailure(now) == nil && now.UnixNano() >= e.quietUntil.Load() {
		b.refresh(ctx, e, tok)
	}
	return held(tok, now, degraded), true
}

func (a Ask) rejects(tok *token.Token) bool { return a.Rejected != nil && *a.Rejected == tok.SHA256 }

func held(tok *token.Token, now time.Time, degraded bool) Answer {
	return Answer{Token: tok, RefreshAt: refreshHint(tok, now), Origin: OriginMemory, Degraded: degraded}
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

// refresh starts a flight that nobody waits for, unless one is under way or the
// token was replaced meanwhile.
func (b *Broker) refresh(ctx context.Context, e *entry, old *token.Token) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.flight.Load() == nil && e.token.Load() == old {
		b.start(ctx, e, &flight{old: old})
	}
}

// miss answers a question that what is held does not answer: from a flight that
// it joins or starts, or with the reason why there is none. A flight that was
// after any good token may bring one that does not suit this caller, who then
// asks for more.
func (b *Broker) miss(ctx context.Context, e *entry, ask Ask) (Answer, *apierror.Error) {
	e.client.asked.Store(true)
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
		return e.land(f, ask, now)
	}
	return e.instead(ask, time.Now(), forcedTooOften(e.client.name).WithRetryAfter(ForcedInterval))
}

// join returns the flight to wait for, or the answer or error that needs none.
func (b *Broker) join(ctx context.Context, e *entry, ask Ask, now time.Time) (*flight, Answer, *apierror.Error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	// A flight may have landed since the caller looked.
	tok := e.token.Load()
	if e.usable(tok, now, ask.MinTTL) && !ask.rejects(tok) {
		return nil, held(tok, now, false), nil
	}
	if f := e.flight.Load(); f != nil {
		return f, Answer{}, nil
	}
	if err := e.unattainable(tok, ask, now); err != nil {
		return nil, Answer{}, err
	}
	if t := e.activeFailure(now); t != nil {
		answer, err := e.instead(ask, now, t.ErrorAt(now))
		return nil, answer, err
	}
	f := &flight{old: tok, forced: e.usable(tok, now, 0)}
	if f.forced {
		if wait := e.forcedAt.Add(ForcedInterval).Sub(now); wait > 0 {
			answer, err := e.instead(ask, now, forcedTooOften(e.client.name).WithRetryAfter(wait))
			return nil, answer, err
		}
		e.forcedAt = now
	}
	return b.start(ctx, e, f), Answer{}, nil
}

// instead answers with the held token where it is good enough for ask (it was
// rejected, but nothing better is to be had), else with err.
func (e *entry) instead(ask Ask, now time.Time, err *apierror.Error) (Answer, *apierror.Error) {
	if tok := e.token.Load(); e.usable(tok, now, ask.MinTTL) {
		return held(tok, now, true), nil
	}
	return Answer{}, err
}

// unattainable says that ask wants a longer life than the IdP was lately seen to
// give, in the token that is held. The next token may live longer: an IdP that repeats
// a token until it ends was last seen to give the rest of its life.
func (e *entry) unattainable(tok *token.Token, ask Ask, now time.Time) *apierror.Error {
	if !e.usable(tok, now, 0) || ask.MinTTL < tok.Lifetime() || now.Sub(tok.MintedAt) > rememberLifetime {
		return nil
	}
	return tooShort(e.client.name, tok)
}

// land judges for one caller what a flight brought.
func (e *entry) land(f *flight, ask Ask, now time.Time) (Answer, *apierror.Error) {
	if f.err != nil {
		return e.instead(ask, now, f.err)
	}
	switch {
	case e.usable(f.token, now, ask.MinTTL):
		// An IdP may give the same token again: then it is also the rejected one.
		return Answer{Token: f.token, RefreshAt: refreshHint(f.token, now), Origin: f.origin, Degraded: ask.rejects(f.token)}, nil
	case e.usable(f.token, now, 0):
		return Answer{}, tooShort(e.client.name, f.token)
	case f.token.Epoch < e.client.epoch.Load():
		return Answer{}, &apierror.Error{
			Code: apierror.Unavailable, Reason: apierror.ReasonPurged, RetryAfter: time.Second,
			Metadata: map[string]string{"client": e.client.name},
			Message:  fmt.Sprintf("client %q: its tokens were purged while one was being fetched; ask again", e.client.name),
		}
	default:
		return Answer{}, &apierror.Error{
			Code: apierror.Unavailable, Reason: apierror.ReasonIdPUnavailable, RetryAfter: time.Second,
			Metadata: map[string]string{"client": e.client.name},
			Message: fmt.Sprintf("client %q: the IdP took so long that the token, which lives %v, can no longer be used; have its lifetime raised at the IdP",
				e.client.name, f.token.Lifetime().Round(time.Second)),
		}
	}
}
