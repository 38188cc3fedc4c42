package credential

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// propagation is how long an IdP may take until a new secret works everywhere. Within this
// time after a version became current, an occasional refusal of it is expected.
const propagation = 2 * time.Minute

// Version is a secret that a client can authenticate with, and its status. Its pointer
// stays the same as long as the version is usable here.
type Version struct {
	secret.Version

	key string // store key of refused
	// unfit is the reason why the value can never be a secret of the client.
	unfit error
	// refused is the last refusal; empty after a success.
	refused backoff.Slot
	// introspected is the status of the version at the introspection endpoint.
	introspected introspected
	// usedAt is when a token was last obtained with it, in Unix nanoseconds, as far as this
	// replica knows.
	usedAt atomic.Int64
}

// Refusal returns the last refusal of the version at the token endpoint; nil after a
// success.
func (v *Version) Refusal() *backoff.Failure { return v.refused.Load() }

// View is the set of versions that a client can authenticate with here. It is immutable,
// except for the status of the versions.
type View struct {
	// Nil: no version is in that state, or its value is not known here.
	Current, Previous, Pending *Version
	// History is the last one known from the store; generation 0: no history.
	History secret.History
	Loaded  bool // the store has been read
	// Fault is the error that prevents reading the history in the store.
	Fault error

	read *secret.Version // last version read from the source; a changed pointer shows a change
}

// All returns the versions in the order in which they are tried.
func (u *View) All() []*Version {
	return slices.DeleteFunc([]*Version{u.Current, u.Previous, u.Pending}, func(v *Version) bool { return v == nil })
}

// Named returns the version with an ID, or nil.
func (u *View) Named(id string) *Version {
	for _, v := range [...]*Version{u.Current, u.Previous, u.Pending} {
		if v != nil && v.ID == id {
			return v
		}
	}
	return nil
}

// Next returns the version to authenticate with, skipping those in tried: the current one
// unless it was refused lately, then the previous one, then the staged one. It returns nil
// if no version may be tried now.
func (u *View) Next(now time.Time, tried []*Version) *Version {
	for _, v := range [...]*Version{u.Current, u.Previous, u.Pending} {
		switch {
		case v == nil, v.unfit != nil, slices.Contains(tried, v):
		case !v.refused.Load().Active(now):
			return v
		}
	}
	return nil
}

// Refusal returns the failure of the current version if all versions are refused, to be
// retried when the first of them may be. It returns nil if a version can be tried, or if
// there are no versions.
func (u *View) Refusal(now time.Time) *backoff.Failure {
	if u.Next(now, nil) != nil {
		return nil
	}
	var first *backoff.Failure
	for _, v := range u.All() {
		if t := v.refused.Load(); t.Active(now) && (first == nil || t.Until.Before(first.Until)) {
			first = t
		}
	}
	if first == nil || u.Current == nil {
		return first
	}
	if t := u.Current.refused.Load(); t != nil && t != first {
		failure := *t
		failure.Until = first.Until
		return &failure
	}
	return first
}

// Failing reports whether the last attempt with each version was refused.
func (u *View) Failing() bool {
	return u.Current != nil && !slices.ContainsFunc(u.All(), func(v *Version) bool { return v.refused.Load() == nil })
}

// stateOf returns the state of a version here. A version that only the source has is
// pending.
func (u *View) stateOf(v *Version) secret.State {
	switch v {
	case u.Current:
		return secret.Current
	case u.Previous:
		return secret.Previous
	case u.Pending:
		return secret.Pending
	default:
		return secret.Retired
	}
}

// rotating reports whether a refusal may be temporary: another version is staged, or the
// current one is so new that the IdP may not have propagated it.
func (u *View) rotating(now time.Time) bool {
	if u.Pending != nil {
		return true
	}
	record, recorded := u.History.In(secret.Current)
	return recorded && now.Sub(record.Since) < propagation
}

// VersionStatus describes a version for operators.
type VersionStatus struct {
	ID        string
	State     secret.State
	Since     time.Time // when the state began
	CreatedAt time.Time
	CreatedBy string
	// LastSuccess is when it last obtained a token. RefusedAt is when it was last refused,
	// with no success since, as far as this replica knows. Zero: never. A version that was
	// retired because it was refused keeps RefusedAt.
	LastSuccess, RefusedAt time.Time
	// Here: this replica knows the value.
	Here bool
}

// DescribeAll describes all versions, newest first, except a key that is only published so
// far: operators have nothing to decide about it.
func (u *View) DescribeAll() []VersionStatus {
	var all []VersionStatus
	for _, v := range u.All() {
		if _, recorded := u.History.Find(v.ID); !recorded { // only a source has it
			all = append(all, u.Describe(v.ID))
		}
	}
	for _, record := range u.History.Versions {
		if record.State != secret.Pending || record.Publication.Key == "" || record.Publication.Usable {
			all = append(all, u.Describe(record.ID))
		}
	}
	return all
}

// Describe describes one version.
func (u *View) Describe(id string) VersionStatus {
	status := VersionStatus{ID: id}
	if record, recorded := u.History.Find(id); recorded {
		status.State, status.Since, status.CreatedAt, status.CreatedBy = record.State, record.Since, record.CreatedAt, record.CreatedBy
		status.RefusedAt = record.RefusedAt
	}
	v := u.Named(id)
	if v == nil {
		return status
	}
	status.Here = true
	if status.State == 0 || v == u.Pending {
		status.State, status.Since = u.stateOf(v), v.SeenAt
	}
	if status.CreatedAt.IsZero() {
		status.CreatedAt = v.SeenAt
	}
	if at := v.usedAt.Load(); at > 0 {
		status.LastSuccess = time.Unix(0, at)
	}
	if t := v.refused.Load(); t != nil {
		status.RefusedAt = t.At
	}
	return status
}
