// Package token is the access token itself: a value that cannot print itself,
// and the arithmetic of its life. The predicates take the time as an argument
// and keep no clock.
//
// A token's life, for a lifetime L that began just before it was asked for:
//
//	minted ........ refresh at ....... usable until .. expires
//	0               L - lead           L - margin      L
//
// Before "refresh at" a token is fresh. From then on it is handed out while a
// fresher one is fetched in the background. From "usable until" on it is not
// handed out any more, whatever else fails.
package token

import (
	"crypto/sha256"
	"math/rand/v2"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// Bounds of the arithmetic.
const (
	// DefaultLifetime is assumed where an IdP does not say how long a token
	// lives.
	DefaultLifetime = 5 * time.Minute
	// MaxLifetime is the longest life that is believed.
	MaxLifetime = 24 * time.Hour

	maxMargin = time.Minute
	maxLead   = 30 * time.Minute
)

// Token is an access token. It is immutable once made and safe for concurrent
// use.
type Token struct {
	Value redact.String
	// SHA256 of Value: what a caller names when its API refused the token, and
	// what logs may show of it.
	SHA256 [sha256.Size]byte
	// Type says how to present the token, in canonical case: "Bearer".
	Type string
	// Scopes that the IdP granted, sorted.
	Scopes []string
	// Extras are the members of the IdP's answer that the configuration lets
	// through; may be nil.
	Extras map[string]string
	// SecretVersion names the client secret that obtained the token.
	SecretVersion string
	// Epoch is the client's epoch as it stood when the fetch of the token began:
	// a purge opens a new one, and tokens of older epochs are used no more.
	Epoch uint64
	// Fence orders the tokens of one question: the higher is the newer. A token
	// that was fetched without a lease has the highest fence known by then.
	Fence uint64

	// MintedAt is the instant just before the token was asked for.
	MintedAt time.Time
	// RefreshAt is when a fresher one should be fetched. It is fixed when the
	// token is minted, so that all who hold the token agree.
	RefreshAt time.Time
	// UsableUntil is when the token is handed out no more.
	UsableUntil time.Time
	// ExpiresAt is when the token ends.
	ExpiresAt time.Time
}

// Grant is what an IdP gave.
type Grant struct {
	Value         redact.String
	Type          string
	Scopes        []string
	Extras        map[string]string
	SecretVersion string
	// RequestedAt is the instant just before the request was sent.
	RequestedAt time.Time
	// Lifetime counted from RequestedAt. More than MaxLifetime is cut to it.
	Lifetime time.Duration
	// RefreshIn is the IdP's own advice on when to ask again, counted from
	// RequestedAt. Zero: none.
	RefreshIn time.Duration
}

// rounding is how much later a repeated token may seem to end than before.
const rounding = 2 * time.Second

// Repeating returns the grant, with the end of the token that is held if it is the same
// token. IdPs that repeat a token round what is left of its life to whole seconds, each
// time anew. If the IdP says that the token ends much later, its life was prolonged.
func (g Grant) Repeating(held *Token) Grant {
	if held == nil || held.SHA256 != g.Value.SHA256() {
		return g
	}
	if later := g.RequestedAt.Add(g.Lifetime).Sub(held.ExpiresAt); later > 0 && later <= rounding {
		g.Lifetime -= later
	}
	return g
}

// New makes a Token of what an IdP gave. The lead by which it is refreshed is
// min(L/4, 30 min), spread by a fifth either way so that tokens minted together
// are not refreshed together. For epoch and fence see [Token].
func New(g Grant, epoch, fence uint64) *Token {
	life := min(g.Lifetime, MaxLifetime)
	return &Token{
		Value:         g.Value,
		SHA256:        g.Value.SHA256(),
		Type:          g.Type,
		Scopes:        g.Scopes,
		Extras:        g.Extras,
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

// margin is the end of a token's life in which it is not handed out: time for
// the caller to use it.
func margin(life time.Duration) time.Duration { return min(maxMargin, life/10) }

// Lifetime is how long the token lives in all.
func (t *Token) Lifetime() time.Duration { return t.ExpiresAt.Sub(t.MintedAt) }

// Usable reports whether the token may be handed out to a caller who needs it
// to live longer than minTTL (zero: no wish).
func (t *Token) Usable(now time.Time, minTTL time.Duration) bool {
	return until(t.UsableUntil, now) > 0 && until(t.ExpiresAt, now) > minTTL
}

// Fresh reports whether the token need not be replaced yet.
func (t *Token) Fresh(now time.Time) bool { return until(t.RefreshAt, now) > 0 }

// until is the time from now to end, by whichever of the monotonic and the wall
// clock leaves less: a wall clock that was set back must not lengthen a token's
// life, and the monotonic clock stands still while a machine sleeps.
func until(end, now time.Time) time.Duration {
	return min(end.Sub(now), end.Round(0).Sub(now.Round(0)))
}
