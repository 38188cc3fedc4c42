// Package revocation has the revocations by which good tokens are refused: a set that
// every replica holds in memory and keeps the same as the one in the store. A replica that
// cannot know all revocations calls no token good.
package revocation

import (
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/verify"
)

// Bounds of revocations.
const (
	// MaxRevocations is how many are kept, those that were deleted and have not
	// expired included.
	MaxRevocations = 10_000
	// MaxRevocationLife is how far ahead one may expire.
	MaxRevocationLife = 10 * 365 * 24 * time.Hour
)

// Revocation makes verification refuse tokens of one issuer: those that one of
// TokenID, Subject and ClientID names, or All.
type Revocation struct {
	ID      string `json:"id"`
	Issuer  string `json:"iss"`
	TokenID string `json:"jti,omitempty"`
	Subject string `json:"sub,omitempty"`
	// ClientID is whom the tokens were issued to.
	ClientID string `json:"client,omitempty"`
	All      bool   `json:"all,omitempty"`
	// IssuedBefore: only tokens that were issued before, or do not say when.
	// Zero: all.
	IssuedBefore time.Time `json:"before,omitzero"`
	// ExpiresAt is when the last token that it concerns has expired; of one that is
	// asked for, zero: as late as any can. It is forgotten when none of them can be
	// good any more: see Over.
	ExpiresAt time.Time `json:"exp"`
	CreatedAt time.Time `json:"created"`
	CreatedBy string    `json:"by,omitempty"`
	Reason    string    `json:"reason,omitempty"`
	// Deleted: it was lifted. It is kept until it expires, so that replicas which
	// hold it learn that; from absence nobody learns anything.
	Deleted bool `json:"deleted,omitempty"`
}

// Target is what a revocation names. Tokens are looked up by it.
type Target struct{ Issuer, Kind, Value string }

// Target returns what the revocation names.
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

// Over reports whether no token that it concerns can be good any more. It counts the
// leeway that is granted to expired tokens, which must not bring a revoked token back.
func (r *Revocation) Over(now time.Time) bool { return !now.Before(r.ExpiresAt.Add(verify.MaxLeeway)) }

// concerns reports whether it is about a token with these facts, which its
// target names. The instants of tokens are whole seconds, cut off: a token of the
// same second counts as issued before.
func (r *Revocation) concerns(f *verify.Facts, now time.Time) bool {
	return !r.Over(now) && (r.IssuedBefore.IsZero() || f.IssuedAt.Before(r.IssuedBefore))
}

// View is an immutable set of them.
type View struct {
	byID     map[string]*Revocation
	byTarget map[Target][]*Revocation // without those that were deleted
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

// Revokes returns the revocation that a token falls under, or nil.
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

// merged is the union of both sets without what has expired. Of a revocation
// that only one of them knows as deleted, the deletion holds.
func merged(a, b []*Revocation, now time.Time) []*Revocation {
	byID := make(map[string]*Revocation, len(a)+len(b))
	for _, one := range slices.Concat(a, b) {
		if known := byID[one.ID]; !one.Over(now) && (known == nil || one.Deleted) {
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

// same reports whether two sorted lists tell the same.
func same(a, b []*Revocation) bool {
	return slices.EqualFunc(a, b, func(x, y *Revocation) bool { return x.ID == y.ID && x.Deleted == y.Deleted })
}
