package credential

import (
	"slices"

	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/idp"
)

// Unresolved returns the last failure of the client, or nil if a fetch has succeeded since.
// A success that only its token reports counts too. last may be nil.
func (s *Set) Unresolved(last *backoff.Last) *backoff.Last {
	if last == nil || last.Resolved {
		return nil
	}
	if newest := s.Newest(); newest != nil && newest.Fence >= last.Fence && newest.At.After(last.At) {
		return nil
	}
	return last
}

// AffectedBy reports whether a failure affects the client, rather than only a new version
// that was refused when it was proved. A nil failure affects nothing.
func (u *View) AffectedBy(last *backoff.Last) bool {
	return last != nil && (last.Class != idp.CredentialRefused || u.Current == nil || last.Version == u.Current.ID)
}

// Recovered reports whether the last failure is resolved, and every failure that this
// replica remembers is older: those in remembered, which may be nil, and the refusals of
// versions.
func (u *View) Recovered(last *backoff.Last, remembered ...*backoff.Failure) bool {
	if last == nil || !last.Resolved {
		return false
	}
	for _, v := range u.All() {
		remembered = append(remembered, v.Refusal())
	}
	return !slices.ContainsFunc(remembered, func(t *backoff.Failure) bool { return t != nil && t.Fence >= last.Fence })
}
