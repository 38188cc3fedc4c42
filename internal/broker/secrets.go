package broker

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
)

// propagation is how long an IdP may take until a new secret works everywhere. Within this
// time after a version became current, an occasional refusal of it is expected.
const propagation = 2 * time.Minute

// version is a secret that a client can authenticate with, and its status. Its pointer stays
// the same as long as it is usable here.
type version struct {
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

// usable is the set of versions that a client can authenticate with here. It is immutable,
// except for the status of the versions.
type usable struct {
	// nil: no version is in that state, or its value is not known here.
	current, previous, pending *version
	// history is the last one known from the store; generation 0: no history.
	history secret.History
	loaded  bool // the store has been read
	// fault is the error that prevents reading the history in the store.
	fault error

	read *secret.Version // last version read from the source; a changed pointer shows a change
}

// secrets holds the secrets of one client.
//
// The history in the store, which the replicas share, decides which version is current. If
// the secret is managed, the store has the values too. Otherwise each replica reads them
// from the source at its own time: it may know a version by name only, and uses only the
// versions with a known value.
type secrets struct {
	source  *secret.Source // nil: managed, or no secret is needed
	managed bool
	mac     secret.MAC
	check   func(redact.String) error // checks the form of a value
	key     func(id string) string    // store key of a version's refusals
	// credential replaces the secret where no secret is needed.
	credential func() secret.Version
	// news, mending, settling and proving coalesce their tasks.
	news, mending, settling, proving store.Coalescer
	proved                           atomic.Pointer[proved]

	view atomic.Pointer[usable]

	mu       sync.Mutex
	history  secret.History
	loaded   bool
	fault    error
	versions map[string]*version // by ID: those in view
	// observed is the ID of the source's latest version, wanted the ID of the version that
	// it was seen to change to. An older version in the source at process start does not
	// set wanted: another replica was merely ahead.
	observed, wanted string
}

func newSecrets(cfg ClientConfig, mac secret.MAC, key func(id string) string) *secrets {
	s := &secrets{
		source: cfg.Secret, managed: cfg.Managed, mac: mac, check: cfg.CheckSecret, key: key,
		credential: cfg.IdP.Credential, versions: map[string]*version{},
	}
	s.publish()
	return s
}

// after adopts the state of the same client under its old configuration: the history, and
// the values if both have the same source.
func (s *secrets) after(old *secrets) {
	old.mu.Lock()
	history, loaded, versions, observed, wanted := old.history, old.loaded, old.versions, old.observed, old.wanted
	old.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.kept() || !old.kept() {
		return
	}
	s.history, s.loaded = history, loaded
	if s.source == old.source {
		for id, v := range versions {
			s.versions[id] = s.version(v.Version)
		}
		s.observed, s.wanted = observed, wanted
	}
	s.publish()
}

// now returns the current view of the versions.
func (s *secrets) now() *usable {
	u := s.view.Load()
	switch {
	case s.managed:
		return u
	case s.source == nil:
		if u.current.ID == s.credential().ID {
			return u
		}
	case u.read == &s.source.Versions()[0]:
		return u
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.publish()
}

// publish rebuilds the view. The caller holds mu, or has the only reference.
func (s *secrets) publish() *usable {
	u := &usable{history: s.history, loaded: s.loaded, fault: s.fault}
	known := s.known()
	inState := func(state secret.State) *version {
		record, _ := s.history.In(state)
		return s.version(known[record.ID])
	}
	u.current, u.previous, u.pending = inState(secret.Current), inState(secret.Previous), inState(secret.Pending)
	switch {
	case s.source != nil:
		s.place(u, known)
	case !s.managed:
		u.current = s.version(s.credential())
	}
	s.versions = map[string]*version{}
	for _, v := range u.all() {
		s.versions[v.ID] = v
	}
	s.view.Store(u)
	return u
}

// known returns the versions with a value that is known here.
func (s *secrets) known() map[string]secret.Version {
	known := map[string]secret.Version{}
	for id, v := range s.versions {
		known[id] = v.Version
	}
	for _, record := range s.history.Versions {
		if !record.Value.IsZero() {
			known[record.ID] = secret.Version{ID: record.ID, Value: record.Value, SeenAt: record.CreatedAt}
		}
	}
	if s.source != nil {
		for _, v := range s.source.Versions() {
			known[v.ID] = v
		}
	}
	return known
}

// version returns the existing version, or a new one; nil for the zero Version.
func (s *secrets) version(v secret.Version) *version {
	if v.ID == "" {
		return nil
	}
	if same := s.versions[v.ID]; same != nil {
		return same
	}
	made := &version{Version: v, key: s.key(v.ID)}
	if s.check != nil {
		made.unfit = s.check(v.Value)
	}
	return made
}

// place adds the first version of the source. It is to be activated if it is new to the
// history or was seen to replace another one.
func (s *secrets) place(u *usable, known map[string]secret.Version) {
	here := s.source.Versions()
	first, before := here[0], s.observed
	if before != "" && before != first.ID {
		s.wanted = first.ID
	}
	u.read, s.observed = &here[0], first.ID
	record, there := s.history.Find(first.ID)
	switch {
	case s.history.Generation == 0: // no token has been obtained yet
		u.current, u.previous = s.version(first), s.version(known[before])
	case record.State == secret.Current:
		s.wanted = ""
	case !there, s.wanted == first.ID:
		u.pending = s.version(first)
	}
	if u.previous == u.pending || u.previous == u.current {
		u.previous = nil
	}
	if u.previous == nil && len(here) > 1 {
		s.placeSecond(u, here[1])
	}
}

// placeSecond adds the fallback version of the source, unless it was retired.
func (s *secrets) placeSecond(u *usable, second secret.Version) {
	record, _ := s.history.Find(second.ID)
	v := s.version(second)
	if record.State != secret.Retired && v != u.current && v != u.pending {
		u.previous = v
	}
}

// saw adopts the history read from the store, and returns the history that the store should
// have. They differ if the store lacks entries that are known here.
func (s *secrets) saw(stored secret.History) (right secret.History) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.history
	switch {
	case stored.Descends(known):
		known, right = stored, stored
	case known.Descends(stored): // the store has lost entries
		right = known
	default: // the store has lost entries, and has newer ones
		right = known.Merge(stored)
	}
	if !s.loaded || s.fault != nil || known.ID != s.history.ID {
		s.history, s.loaded, s.fault = known, true, nil
		s.publish()
	}
	return right
}

// failed records why the history cannot be read, and reports whether this is the first
// failure since the last success.
func (s *secrets) failed(fault error) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault != nil {
		return false
	}
	s.fault = fault
	s.publish()
	return true
}

// follows reports whether the secret can change while the process runs, without an operator's call.
func (s *secrets) follows() bool { return s.source != nil && s.source.CanChange() }

// kept reports whether the secret has a history; false where no secret is needed.
func (s *secrets) kept() bool { return s.managed || s.source != nil }

// all returns the known versions in the order in which they are tried.
func (u *usable) all() []*version {
	return slices.DeleteFunc([]*version{u.current, u.previous, u.pending}, func(v *version) bool { return v == nil })
}

// named returns the version with an ID, or nil.
func (u *usable) named(id string) *version {
	for _, v := range [...]*version{u.current, u.previous, u.pending} {
		if v != nil && v.ID == id {
			return v
		}
	}
	return nil
}

// next returns the version to authenticate with, skipping those in tried: the current one
// unless it was refused lately, then the previous one, then the staged one. It returns nil
// if no version may be tried now.
func (u *usable) next(now time.Time, tried []*version) *version {
	for _, v := range [...]*version{u.current, u.previous, u.pending} {
		switch {
		case v == nil, v.unfit != nil, slices.Contains(tried, v):
		case !v.refused.Load().Active(now):
			return v
		}
	}
	return nil
}

// refusal returns the failure of the current version if all versions are refused, to be
// retried when the first of them may be. It returns nil if a version can be tried, or if
// there are no versions.
func (u *usable) refusal(now time.Time) *backoff.Failure {
	if u.next(now, nil) != nil {
		return nil
	}
	var first *backoff.Failure
	for _, v := range u.all() {
		if t := v.refused.Load(); t.Active(now) && (first == nil || t.Until.Before(first.Until)) {
			first = t
		}
	}
	if first == nil || u.current == nil {
		return first
	}
	if t := u.current.refused.Load(); t != nil && t != first {
		told := *t
		told.Until = first.Until
		return &told
	}
	return first
}

// stateOf returns the state of a version here. A version that only the source has is
// pending.
func (u *usable) stateOf(v *version) secret.State {
	switch v {
	case u.current:
		return secret.Current
	case u.previous:
		return secret.Previous
	case u.pending:
		return secret.Pending
	default:
		return secret.Retired
	}
}

// failing reports whether the last attempt with each version was refused.
func (u *usable) failing() bool {
	return u.current != nil && !slices.ContainsFunc(u.all(), func(v *version) bool { return v.refused.Load() == nil })
}

// rotating reports whether a refusal may be temporary: another version is staged, or the
// current one is so new that the IdP may not have propagated it.
func (u *usable) rotating(now time.Time) bool {
	if u.pending != nil {
		return true
	}
	record, there := u.history.In(secret.Current)
	return there && now.Sub(record.Since) < propagation
}
