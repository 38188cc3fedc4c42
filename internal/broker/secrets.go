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

// propagation is how long an IdP may take until a new secret works everywhere:
// so long after a version came in force it is no news that it is refused at times.
const propagation = 2 * time.Minute

// version is a secret that a client can authenticate with, and how it fares. As
// long as a version is of use here it is the same one.
type version struct {
	secret.Version

	key string // in the store, of refused
	// unfit says why the value cannot be a secret of the client at all.
	unfit error
	// refused is the last refusal; none after a success.
	refused backoff.Slot
	// introspected is how the version fares where the IdP is asked about tokens.
	introspected introspected
	// usedAt is when a token was last obtained with it, in Unix nanoseconds, as far
	// as this replica knows.
	usedAt atomic.Int64
}

// usable are the versions that a client can authenticate with here. It is
// immutable, but for how the versions fare.
type usable struct {
	// nil: there is none in that state, or its value is not known here.
	current, previous, pending *version
	// history is what the store has, or had; of the zero generation: it has none.
	history secret.History
	loaded  bool // the store was asked
	// fault keeps the history in the store from being read.
	fault error

	read *secret.Version // what the source had: a change shows as another pointer
}

// secrets are those of one client.
//
// What is in force is decided by the history in the store, which replicas share;
// the values are there too if the secret is managed. Else each replica has read
// them from the source, at a time of its own: a replica may know of a version by
// name only, and goes on with those whose value it knows.
type secrets struct {
	source  *secret.Source // nil: managed, or none is needed
	managed bool
	mac     secret.MAC
	check   func(redact.String) error // of a value's form
	key     func(id string) string    // in the store, of a version's refusals
	// credential stands for the secret where none is needed.
	credential func() secret.Version
	// news, mending, settling and proving coalesce what is to be done.
	news, mending, settling, proving store.Coalescer
	proved                           atomic.Pointer[proved]

	view atomic.Pointer[usable]

	mu       sync.Mutex
	history  secret.History
	loaded   bool
	fault    error
	versions map[string]*version // by ID: those of view
	// observed is the ID of what the source last had, wanted that of what it was
	// seen to change to. A source that has an older version when the process starts
	// wants nothing: another replica was merely ahead.
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

// after carries over what is known of the secrets of a client of the same name that
// was configured otherwise: its history, and the values if they are of one source.
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

// now returns the versions as they are now.
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

// publish makes the view anew. The caller holds mu, or is alone.
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

// known are the versions whose values are known here.
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

// version returns the version that is in use already, or a new one. The zero
// Version is none.
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

// place adds what the source has. Its first version is to be put in force if it
// is new to the history, or was seen to take the place of another one.
func (s *secrets) place(u *usable, known map[string]secret.Version) {
	here := s.source.Versions()
	first, before := here[0], s.observed
	if before != "" && before != first.ID {
		s.wanted = first.ID
	}
	u.read, s.observed = &here[0], first.ID
	record, there := s.history.Find(first.ID)
	switch {
	case s.history.Generation == 0: // nothing has obtained a token yet
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

// placeSecond adds what the source has to fall back to, unless it was retired.
func (s *secrets) placeSecond(u *usable, second secret.Version) {
	record, _ := s.history.Find(second.ID)
	v := s.version(second)
	if record.State != secret.Retired && v != u.current && v != u.pending {
		u.previous = v
	}
}

// saw takes what the store has, and returns what it should have: something else
// where it lacks what is known here.
func (s *secrets) saw(stored secret.History) (right secret.History) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.history
	switch {
	case stored.Descends(known):
		known, right = stored, stored
	case known.Descends(stored): // it has lost some
		right = known
	default: // it has lost some, and others were made since
		right = known.Merge(stored)
	}
	if !s.loaded || s.fault != nil || known.ID != s.history.ID {
		s.history, s.loaded, s.fault = known, true, nil
		s.publish()
	}
	return right
}

// failed notes why the history cannot be read, and reports whether that is news.
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

// kept reports whether there is a history: not where no secret is needed.
func (s *secrets) kept() bool { return s.managed || s.source != nil }

// all are the versions that there are, in the order in which they are tried.
func (u *usable) all() []*version {
	return slices.DeleteFunc([]*version{u.current, u.previous, u.pending}, func(v *version) bool { return v == nil })
}

// named returns one of the versions, or nil.
func (u *usable) named(id string) *version {
	for _, v := range [...]*version{u.current, u.previous, u.pending} {
		if v != nil && v.ID == id {
			return v
		}
	}
	return nil
}

// next is the version to authenticate with: the current one unless it was refused
// lately, else the previous one, else the one that is staged. Those that were tried
// are not. nil: there is none, or none that may be tried now.
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

// refusal is the failure of a client whose versions the IdP refuses: that of the
// current one, until the first of them may be tried again. nil: there is one to
// try, or none at all.
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

// stateOf is where a version stands here: what only the source has is pending.
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

// failing reports whether each version was refused when it was last tried.
func (u *usable) failing() bool {
	return u.current != nil && !slices.ContainsFunc(u.all(), func(v *version) bool { return v.refused.Load() == nil })
}

// rotating reports whether a refusal may be about to end: another version is
// staged, or the current one is so new that the IdP may not know it everywhere.
func (u *usable) rotating(now time.Time) bool {
	if u.pending != nil {
		return true
	}
	record, there := u.history.In(secret.Current)
	return there && now.Sub(record.Since) < propagation
}
