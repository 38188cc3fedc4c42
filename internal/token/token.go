// Package token defines access tokens and computes when to refresh and when to stop
// using them. The current time is always an argument.
//
// The lifetime L of a token begins just before it was requested:
//
//	minted ........ refresh at ....... usable until .. expires
//	0               L - lead           L - margin      L
//
// Until "refresh at" a token is fresh. Then callers still receive it while the broker
// fetches a new one in the background. From "usable until" on, callers do not receive
// it, even if the broker cannot fetch a new one.
package token

import (
	"crypto/sha256"
	"math/rand/v2"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// Bounds of the arithmetic.
const (
	// DefaultLifetime applies if an IdP does not declare the lifetime of a token.
	DefaultLifetime = 5 * time.Minute
	// MaxLifetime bounds lifetimes. Longer ones are reduced to it.
	MaxLifetime = 24 * time.Hour

	maxMargin = time.Minute
	maxLead   = 30 * time.Minute
)

// Token is an access token. It is immutable and safe for concurrent use.
type Token struct {
	Value redact.String
	// SHA256 of Value identifies the token in logs, and in the request of a caller that
	// reports a refused token.
	SHA256 [sha256.Size]byte
	// Type is the token type in canonical case: "Bearer".
	Type string
	// Scopes that the IdP granted, sorted.
	Scopes []string
	// Extras are the members of the IdP's response that the configuration names. They
	// may be nil.
	Extras map[string]string
	// IssuedType is the type of a token on behalf of a subject, an identifier of RFC 8693
	// section 3. It is empty for a token of the client itself.
	IssuedType string
	// SecretVersion is the ID of the secret with which the token was obtained.
	SecretVersion string
	// Epoch is the client's epoch at the start of the fetch. A purge raises the epoch
	// of the client, and tokens of older epochs are no longer used.
	Epoch uint64
	// Fence orders the tokens for one request: the newer token has the higher fence. A
	// token that was fetched without a lease has the highest fence known at that time.
	Fence uint64

	// MintedAt is the time just before the token was requested.
	MintedAt time.Time
	// RefreshAt is the time to fetch a new token. It is part of the token, so that all
	// replicas agree on it.
	RefreshAt time.Time
	// UsableUntil is the time from which callers do not receive the token.
	UsableUntil time.Time
	// ExpiresAt is the time at which the token expires.
	ExpiresAt time.Time
}

// Grant is the successful response of an IdP to a token request.
type Grant struct {
	Value         redact.String
	Type          string
	Scopes        []string
	Extras        map[string]string
	IssuedType    string
	SecretVersion string
	// RequestedAt is the time just before the request was sent.
	RequestedAt time.Time
	// Lifetime, counted from RequestedAt. It is reduced to MaxLifetime.
	Lifetime time.Duration
	// RefreshIn is the time after which the IdP recommends to request a new token,
	// counted from RequestedAt, or zero.
	RefreshIn time.Duration
}

// rounding bounds the apparent delay of a repeated token's expiry.
const rounding = 2 * time.Second

// Repeating returns the grant with the expiry of held if both have the same token. IdPs
// that repeat a token round its remaining lifetime to whole seconds each time. If the
// token expires much later than held, the IdP has extended its lifetime.
func (g Grant) Repeating(held *Token) Grant {
	if held == nil || held.SHA256 != g.Value.SHA256() {
		return g
	}
	if later := g.RequestedAt.Add(g.Lifetime).Sub(held.ExpiresAt); later > 0 && later <= rounding {
		g.Lifetime -= later
	}
	return g
}

// New returns the Token of a grant. Its lead is min(L/4, 30 min), randomized by a fifth
// in both directions so that tokens minted together are not refreshed together. Epoch
// and fence become the fields of the same name.
func New(g Grant, epoch, fence uint64) *Token {
	life := min(g.Lifetime, MaxLifetime)
	return &Token{
		Value:         g.Value,
		SHA256:        g.Value.SHA256(),
		Type:          g.Type,
		Scopes:        g.Scopes,
		Extras:        g.Extras,
		IssuedType:    g.IssuedType,
		SecretVersion: g.SecretVersion,
		Epoch:         epoch,
		Fence:         fence,
		MintedAt:      g.RequestedAt,
		RefreshAt:     g.RequestedAt.Add(refreshIn(life, g.RefreshIn)),
		UsableUntil:   g.RequestedAt.Add(life - margin(life)),
		ExpiresAt:     g.RequestedAt.Add(life),
	}
}

func refreshIn(life, advised time.Duration) time.Duration {
	if advised > 0 && advised < life-margin(life) {
		return advised
	}
	spread := 0.8 + 0.4*rand.Float64()
	return life - time.Duration(float64(min(life/4, maxLead))*spread)
}

// margin returns the time that a caller has at least to use a token.
func margin(life time.Duration) time.Duration { return min(maxMargin, life/10) }

// Lifetime returns the whole lifetime of the token.
func (t *Token) Lifetime() time.Duration { return t.ExpiresAt.Sub(t.MintedAt) }

// Usable reports whether a caller that needs a remaining lifetime of more than minTTL
// may receive the token. Zero means no requirement.
func (t *Token) Usable(now time.Time, minTTL time.Duration) bool {
	return until(t.UsableUntil, now) > 0 && until(t.ExpiresAt, now) > minTTL
}

// Fresh reports whether it is too early to fetch a new token.
func (t *Token) Fresh(now time.Time) bool { return until(t.RefreshAt, now) > 0 }

// until returns the time from now to end by the monotonic or the wall clock, whichever
// is less. A wall clock that is set back must not extend the lifetime, and the
// monotonic clock stops while the machine sleeps.
func until(end, now time.Time) time.Duration {
	return min(end.Sub(now), end.Round(0).Sub(now.Round(0)))
}

// RefreshHint is the time to request the token again. It is not sooner than after least, so
// that a caller that follows it does not poll in a loop, unless the token ends earlier.
func (t *Token) RefreshHint(now time.Time, least time.Duration) time.Time {
	hint := t.RefreshAt
	if soonest := now.Add(least); hint.Before(soonest) {
		hint = soonest
	}
	if hint.After(t.UsableUntil) {
		hint = t.UsableUntil
	}
	return hint
}

// Late is the middle of the refresh window.
func (t *Token) Late() time.Time {
	return t.RefreshAt.Add(t.UsableUntil.Sub(t.RefreshAt) / 2)
}
