// Package credential selects the version of a client's secret (a shared secret, a key
// or a certificate) with which the broker authenticates at the IdP. It keeps the
// history of the versions in the store, proves new versions, and remembers which
// versions the IdP accepted and refused.
package credential

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/secretsource"
	"github.com/cezzis/tokenbroker/internal/store"
)

// Config configures the secret of one client.
type Config struct {
	// Client is the name of the client.
	Client string
	IdP    *idp.Client
	// Source is the source of the secret. Nil: the secret is Managed, or the client needs
	// no secret.
	Source *secret.Source
	// Managed: operators supply the secret, and the store keeps it.
	Managed bool
	// Made configures the key that the broker makes and rotates; Managed is then true.
	// Zero: the broker makes no key.
	Made Made
	// Supplied is where another program keeps the secret, instead of operators: see
	// [Set.Supply]. Managed is then true. Nil: operators supply it.
	Supplied *secretsource.Source
	// Check returns an error for a secret of the wrong form. Nil: any text is accepted.
	Check func(value redact.String) error
	// Keys are the keys of the store for the state of this Set.
	Keys Keys
	// Prove obtains a token with a version that is not current, once for the fleet.
	Prove func(ctx context.Context, v *Version) *apierror.Error
	// ProvesByUse: the client cannot obtain a token to prove a new version, because it only
	// exchanges tokens of users. The next exchange tries the new version first.
	ProvesByUse bool
	// DropTokens makes all replicas drop the tokens obtained before now.
	DropTokens func(ctx context.Context) *apierror.Error
}

// Made configures a private key that the broker makes, publishes and rotates.
type Made struct {
	// Algorithm signs. Empty: the broker makes no key.
	Algorithm string
	// RotateEvery is how long a key is current.
	RotateEvery time.Duration
	// PublishBefore is how long a key is published before its first use, and how long it
	// stays a fallback afterwards.
	PublishBefore time.Duration
	// URL is where the IdP reads the public keys.
	URL string
}

// Makes reports whether the broker makes the key.
func (m Made) Makes() bool { return m.Algorithm != "" }

// Keys are the keys of the store for a Set.
type Keys struct {
	// History is the key of the history.
	History string
	// Proof is the key of the version that was the last to obtain a token.
	Proof string
	// Refusals returns the key of the refusals of one version.
	Refusals func(version string) string
	// Making is the key of the lease of the replica that makes and publishes the key.
	Making string
	// Supply is the key of the lease of the replica that reads Supplied.
	Supply string
}

// Set holds the versions of one client's secret.
//
// The history in the store, which the replicas share, decides which version is current. If
// the secret is managed, the store has the values too. Otherwise each replica reads them
// from the source at its own time: it may know a version by name only, and uses only the
// versions with a known value. A Set is safe for concurrent use.
type Set struct {
	Config

	fleet *Fleet
	proof proof
	// repairs, activations, proofs and reloads coalesce their tasks.
	repairs, activations, proofs, reloads store.Coalescer
	activate                              atomic.Pointer[activation] // the latest one

	view    atomic.Pointer[View]
	newest  atomic.Pointer[Issue]
	decoded atomic.Pointer[decoded] // nil: no history was read yet

	mu       sync.Mutex
	history  secret.History
	loaded   bool
	fault    error
	versions map[string]*Version // by ID: those in view
	// observed is the ID of the source's latest version, wanted the ID of the version that
	// it was seen to change to. An older version in the source at process start does not
	// set wanted: another replica was merely ahead.
	observed, wanted string
}

// New returns the Set of a client. It reads nothing from the store.
func (f *Fleet) New(cfg Config) *Set {
	s := &Set{Config: cfg, fleet: f, versions: map[string]*Version{}}
	s.publish()
	return s
}

// Inherit adopts the state of the same client under its old configuration: the history,
// and the values if both have the same source.
func (s *Set) Inherit(old *Set) {
	old.mu.Lock()
	history, loaded, versions, observed, wanted := old.history, old.loaded, old.versions, old.observed, old.wanted
	old.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.Kept() || !old.Kept() {
		return
	}
	s.history, s.loaded = history, loaded
	if s.Source == old.Source {
		for id, v := range versions {
			s.versions[id] = s.version(v.Version)
		}
		s.observed, s.wanted = observed, wanted
	}
	s.publish()
}

// View returns the current view of the versions.
func (s *Set) View() *View {
	u := s.view.Load()
	switch {
	case s.Managed:
		return u
	case s.Source == nil:
		if u.Current.ID == s.IdP.Credential().ID {
			return u
		}
	case u.read == &s.Source.Versions()[0]:
		return u
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.publish()
}

// publish rebuilds the view. The caller holds mu, or has the only reference.
func (s *Set) publish() *View {
	u := &View{History: s.history, Loaded: s.loaded, Fault: s.fault}
	values := s.values()
	inState := func(state secret.State) *Version {
		record, _ := s.history.In(state)
		return s.version(values[record.ID])
	}
	u.Current, u.Previous = inState(secret.Current), inState(secret.Previous)
	if pending, _ := s.history.In(secret.Pending); !s.Made.Makes() || pending.Publication.Usable {
		u.Pending = inState(secret.Pending)
	}
	s.forgiveCurrent(u)
	switch {
	case s.Source != nil:
		s.place(u, values)
	case !s.Managed:
		u.Current = s.version(s.IdP.Credential())
	}
	s.versions = map[string]*Version{}
	for _, v := range u.All() {
		s.versions[v.ID] = v
	}
	s.view.Store(u)
	return u
}

// forgiveCurrent forgets a refusal of the current version from before its activation: a
// proof preceded that, perhaps on another replica.
func (s *Set) forgiveCurrent(u *View) {
	record, _ := s.history.In(secret.Current)
	if u.Current == nil {
		return
	}
	if t := u.Current.refused.Load(); t != nil && t.At.Before(record.Since) {
		u.Current.refused.CompareAndSwap(t, nil)
	}
}

// values returns the versions whose values this replica has, by ID.
func (s *Set) values() map[string]secret.Version {
	values := map[string]secret.Version{}
	for id, v := range s.versions {
		values[id] = v.Version
	}
	for _, record := range s.history.Versions {
		if !record.Value.IsZero() {
			values[record.ID] = secret.Version{ID: record.ID, Value: record.Value, SeenAt: record.CreatedAt}
		}
	}
	if s.Source != nil {
		for _, v := range s.Source.Versions() {
			values[v.ID] = v
		}
	}
	return values
}

// version returns the existing version, or a new one; nil for the zero Version.
func (s *Set) version(v secret.Version) *Version {
	if v.ID == "" {
		return nil
	}
	if existing := s.versions[v.ID]; existing != nil {
		return existing
	}
	created := &Version{Version: v, key: s.Keys.Refusals(v.ID)}
	if s.Check != nil {
		created.unfit = s.Check(v.Value)
	}
	return created
}

// place adds the first version of the source. It is to be activated if it is new to the
// history or was seen to replace another one.
func (s *Set) place(u *View, values map[string]secret.Version) {
	read := s.Source.Versions()
	first, before := read[0], s.observed
	if before != "" && before != first.ID {
		s.wanted = first.ID
	}
	u.read, s.observed = &read[0], first.ID
	record, recorded := s.history.Find(first.ID)
	switch {
	case s.history.Generation == 0: // no token has been obtained yet
		u.Current, u.Previous = s.version(first), s.version(values[before])
	case record.State == secret.Current:
		s.wanted = ""
	case !recorded, s.wanted == first.ID:
		u.Pending = s.version(first)
	}
	if u.Previous == u.Pending || u.Previous == u.Current {
		u.Previous = nil
	}
	if u.Previous == nil && len(read) > 1 {
		s.placeSecond(u, read[1])
	}
}

// placeSecond adds the fallback version of the source, unless it was retired.
func (s *Set) placeSecond(u *View, second secret.Version) {
	record, _ := s.history.Find(second.ID)
	v := s.version(second)
	if record.State != secret.Retired && v != u.Current && v != u.Pending {
		u.Previous = v
	}
}

// Kept reports whether the secret has a history; false where no secret is needed.
func (s *Set) Kept() bool { return s.Managed || s.Source != nil }

// follows reports whether the secret can change while the process runs, without an
// operator's call.
func (s *Set) follows() bool { return s.Source != nil && s.Source.CanChange() }

// Next returns the version to authenticate with, other than those in tried, or the reason
// why there is no usable one.
func (s *Set) Next(now time.Time, tried []*Version) (*Version, *apierror.Error) {
	u := s.View()
	if v := s.ToProve(now); v != nil && !slices.Contains(tried, v) {
		return v, nil
	}
	if v := u.Next(now, tried); v != nil {
		return v, nil
	}
	for _, v := range tried {
		if t := v.refused.Load(); t != nil {
			return nil, t.ErrorAt(now)
		}
	}
	if len(tried) > 0 {
		return nil, s.refusedMeanwhile()
	}
	return nil, s.NoSecret()
}

// ToProve returns the version that the next exchange tries first (see
// [Config.ProvesByUse]), or nil.
func (s *Set) ToProve(now time.Time) *Version {
	v := s.View().Pending
	if !s.ProvesByUse || v == nil || v.unfit != nil || v.refused.Load().Active(now) || v.introspected.refusal.Load().Active(now) {
		return nil
	}
	return v
}

// NewVersion returns the version of a new value.
func (s *Set) NewVersion(value redact.String) secret.Version {
	return secret.NewVersion(s.fleet.MAC, value)
}

// Digest returns a keyed hash of a change.
func (s *Set) Digest(kind string, parts ...[]byte) string {
	return secret.Name(s.fleet.MAC, kind, parts...)
}
