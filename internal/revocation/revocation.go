// Package revocation holds the revocations by which valid tokens are refused: a set that
// every replica keeps in memory and synchronizes with the store. A replica that cannot know
// all revocations accepts no token.
package revocation

import (
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/verify"
)

// Bounds of revocations.
const (
	// MaxRevocations bounds the revocations, including deleted ones that have not expired.
	MaxRevocations = 10_000
	// MaxRevocationLife bounds the time until a revocation expires.
	MaxRevocationLife = 10 * 365 * 24 * time.Hour
)

// Revocation makes verification refuse tokens of one issuer: those selected by one of
// TokenID, Subject and ClientID, or All.
type Revocation struct {
	ID      string `json:"id"`
	Issuer  string `json:"iss"`
	TokenID string `json:"jti,omitempty"`
	Subject string `json:"sub,omitempty"`
	// ClientID is the client that the tokens were issued to.
	ClientID string `json:"client,omitempty"`
	All      bool   `json:"all,omitempty"`
	// IssuedBefore limits it to tokens that were issued earlier or have no issue time.
	// Zero: all.
	IssuedBefore time.Time `json:"before,omitzero"`
	// ExpiresAt is when the last affected token has expired; zero in a request: the
	// latest possible. It is forgotten when no affected token can be valid: see Over.
	ExpiresAt time.Time `json:"exp"`
	CreatedAt time.Time `json:"created"`
	CreatedBy string    `json:"by,omitempty"`
	Reason    string    `json:"reason,omitempty"`
	// Deleted: it was lifted. It is kept until it expires, so that replicas which hold it
	// learn that; absence carries no information.
	Deleted bool `json:"deleted,omitempty"`
}

// Target is the lookup key of a revocation for a token.
type Target struct{ Issuer, Kind, Value string }

// Target returns the target of the revocation.
func (r *Revocation) Target() Target {
	switch {
	case r.TokenID != "":
		return Target{r.Issuer, "jti", r.TokenID}
	case r.Subject != "":
		return Target{r.Issuer, "sub", r.Subject}
	case r.ClientID != "":
		return Target{r.Issuer, "client", r.ClientID}
	default:
		return Target{r.Issuer, "all", ""}
	}
}

// Over reports whether no affected token can be valid any more. It includes the leeway for
// expired tokens, which must not make a revoked token valid again.
func (r *Revocation) Over(now time.Time) bool { return !now.Before(r.ExpiresAt.Add(verify.MaxLeeway)) }

// concerns reports whether a token with these facts, which has the same target, is
// affected. Token times are truncated to whole seconds: a token of the same second counts
// as issued before.
func (r *Revocation) concerns(f *verify.Facts, now time.Time) bool {
	return !r.Over(now) && (r.IssuedBefore.IsZero() || f.IssuedAt.Before(r.IssuedBefore))
}

// View is an immutable set of revocations.
type View struct {
	byID     map[string]*Revocation
	byTarget map[Target][]*Revocation // without deleted ones
}

func newView(all []*Revocation) *View {
	r := &View{byID: make(map[string]*Revocation, len(all)), byTarget: map[Target][]*Revocation{}}
	for _, one := range all {
		r.byID[one.ID] = one
		if !one.Deleted {
			r.byTarget[one.Target()] = append(r.byTarget[one.Target()], one)
		}
	}
	return r
}

// Revokes returns the revocation that affects a token, or nil.
func (r *View) Revokes(f *verify.Facts, now time.Time) *Revocation {
	if len(r.byTarget) == 0 {
		return nil
	}
	for _, t := range [...]Target{
		{f.Issuer, "all", ""}, {f.Issuer, "jti", f.TokenID}, {f.Issuer, "sub", f.Subject}, {f.Issuer, "client", f.ClientID},
	} {
		for _, one := range r.byTarget[t] {
			if one.concerns(f, now) {
				return one
			}
		}
	}
	return nil
}

// merged returns the union of both sets without expired revocations. A revocation that is
// deleted in one of them is deleted in the result.
func merged(a, b []*Revocation, now time.Time) []*Revocation {
	byID := make(map[string]*Revocation, len(a)+len(b))
	for _, one := range slices.Concat(a, b) {
		if before := byID[one.ID]; !one.Over(now) && (before == nil || one.Deleted) {
			byID[one.ID] = one
		}
	}
	all := make([]*Revocation, 0, len(byID))
	for _, one := range byID {
		all = append(all, one)
	}
	slices.SortFunc(all, oldestFirst)
	return all
}

func oldestFirst(a, b *Revocation) int {
	if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
		return c
	}
	return strings.Compare(a.ID, b.ID)
}

// same reports whether two sorted lists are equal.
func same(a, b []*Revocation) bool {
	return slices.EqualFunc(a, b, func(x, y *Revocation) bool { return x.ID == y.ID && x.Deleted == y.Deleted })
}
