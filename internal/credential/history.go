package credential

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
)

// historyChunk is how many histories are read at once. Histories with values may be large.
const historyChunk = 50

// Fleet is the state that the Sets of a broker share.
type Fleet struct {
	Store store.Store
	// Changes counts the changes of all histories.
	Changes store.ChangeCount
	// MAC names versions and requests.
	MAC secret.MAC
	// Spawn runs work in a goroutine, unless the broker is closed. Lifetime ends then.
	Spawn    func(work func()) bool
	Lifetime context.Context //nolint:containedctx // it is that of the broker
	Audit    *audit.Log      // nil: no audit log
	Log      *slog.Logger
}

// Names of the steps of a change, in the API, the log and the audit log.
const (
	StepStage    = "stage"
	StepProve    = "prove"
	StepActivate = "activate"
)

// RecordStep logs and audits a step with a version of a secret, or its failure. e
// identifies the change; the broker's own steps have no caller.
func (s *Set) RecordStep(ctx context.Context, step string, e audit.Event, err *apierror.Error) {
	f := s.fleet
	e.Event, e.Outcome, e.Step, e.Client, e.Peer = audit.Rotation, audit.OK, step, s.Client, f.Audit.From(ctx)
	if err != nil {
		e.Outcome, e.Reason, e.Detail = audit.Failed, err.Reason, err.Message
	}
	f.Log.Info("secret rotation step", "client", e.Client, "step", e.Step, "outcome", string(e.Outcome), "secret_version", e.SecretVersion,
		"caller", e.Caller, "reason", e.Reason)
	f.Audit.Record(&e)
}

// Poll checks whether another replica changed the secrets of a client, or the store lost
// them, and proves pending versions.
func (f *Fleet) Poll(ctx context.Context, round int, sets []*Set) {
	count, moved, err := f.Changes.Moved(ctx)
	if err != nil || moved || round%store.ReloadRounds == 0 { // the count may be on another server than the secrets
		if f.Load(ctx, sets...) && err == nil {
			f.Changes.Seen.Store(count)
		}
	} else {
		f.Load(ctx, slices.DeleteFunc(slices.Clone(sets), func(s *Set) bool { return s.View().Loaded })...)
	}
	for _, s := range sets {
		s.proveWanted()
	}
}

// Load reads the histories of Sets, and reports whether the store returned all of them.
func (f *Fleet) Load(ctx context.Context, sets ...*Set) (complete bool) {
	return store.GetEach(ctx, f.Store, sets, historyChunk, func(s *Set) string { return s.Keys.History }, (*Set).adoptHistory)
}

// Reload reads the history in the background.
func (s *Set) Reload() {
	s.reloads.Run(s.fleet.Spawn, func() { s.fleet.Load(s.fleet.Lifetime, s) })
}

var errUnopened = errors.New("the secrets in the store cannot be opened: put the sealing key that they were sealed with back into the ring")

// decoded is a stored history that was decoded last. It keeps a digest of the bytes, which
// contain secrets.
type decoded struct {
	digest  [sha256.Size]byte
	history secret.History
}

// historyOf decodes the history in a store entry. An unreadable value is an error, not an
// empty history. Each fetch reads the history, so bytes that did not change are not decoded
// again.
func (s *Set) historyOf(stored store.Entry) (secret.History, error) {
	switch {
	case stored.Unopened:
		return secret.History{}, errUnopened
	case stored.Number == 0:
		return secret.History{}, nil
	}
	digest := sha256.Sum256(stored.Value)
	if last := s.decoded.Load(); last != nil && last.digest == digest {
		return last.history, nil
	}
	h, err := secret.FromStored(stored.Value)
	if err == nil {
		s.decoded.Store(&decoded{digest, h})
	}
	return h, err
}

// adoptHistory adopts the history from the store. It schedules a repair if the store lacks
// versions that are known here, or if the value is sealed with an old key.
func (s *Set) adoptHistory(stored store.Entry) {
	h, err := s.historyOf(stored)
	if err != nil {
		s.unreadable(err)
		return
	}
	if merged := s.merge(h); merged.ID != h.ID || stored.Aged {
		s.repairs.Run(s.fleet.Spawn, func() { s.repair(s.fleet.Lifetime) })
	}
}

// merge adopts the history read from the store, and returns the history that the store
// should have. They differ if the store lacks entries that are known here.
func (s *Set) merge(stored secret.History) (merged secret.History) {
	s.mu.Lock()
	defer s.mu.Unlock()
	latest := s.history
	switch {
	case stored.Descends(latest):
		latest, merged = stored, stored
	case latest.Descends(stored): // the store has lost entries
		merged = latest
	default: // the store has lost entries, and has newer ones
		merged = latest.Merge(stored)
	}
	if !s.loaded || s.fault != nil || latest.ID != s.history.ID {
		s.history, s.loaded, s.fault = latest, true, nil
		s.publish()
	}
	return merged
}

// unreadable records why the history cannot be read, and logs the first failure since the
// last success.
func (s *Set) unreadable(err error) {
	s.mu.Lock()
	first := s.fault == nil
	if first {
		s.fault = err
		s.publish()
	}
	s.mu.Unlock()
	if !first {
		return
	}
	s.fleet.Log.Error("the secrets of a client cannot be read from the store; those read before stay in use", "client", s.Client, "error", err)
}

// repair writes back what the store has lost, and reseals values that are sealed with an
// old key.
func (s *Set) repair(ctx context.Context) {
	_ = store.RetryOvertaken(func() error { // on failure, the next look retries
		entry, stored, err := s.read(ctx)
		if err != nil {
			return err
		}
		merged := s.merge(stored)
		lost := merged.ID != stored.ID
		if !lost && !entry.Aged {
			return nil
		}
		if err := s.write(ctx, entry.Number, merged); err != nil {
			return err
		}
		s.fleet.Log.Info("the history of a client's secrets was written to the store again", "client", s.Client, "lost", lost)
		return nil
	})
}

// read reads the history from the store, with its entry.
func (s *Set) read(ctx context.Context) (store.Entry, secret.History, error) {
	values, err := s.fleet.Store.Get(ctx, s.Keys.History)
	if err != nil {
		return store.Entry{}, secret.History{}, err
	}
	stored, err := s.historyOf(values[0])
	if err != nil {
		s.unreadable(err)
		return store.Entry{}, secret.History{}, err
	}
	return values[0], stored, nil
}

// write replaces the stored history that was read with number.
func (s *Set) write(ctx context.Context, number uint64, h secret.History) error {
	if _, err := store.CompareAndSwap(ctx, s.fleet.Store, s.Keys.History, number, h.Stored()); err != nil {
		return err
	}
	s.merge(h)
	if err := s.fleet.Changes.Raise(ctx); err != nil {
		s.fleet.Log.Warn("a change of a client's secrets was stored, but not counted: other replicas may notice it late", "client", s.Client, "error", err)
	}
	return nil
}

// Change applies a change to the latest history, in the store and here, and returns the
// resulting history. A change that returns its input writes nothing. It may run several
// times, until no concurrent write conflicts with it.
func (s *Set) Change(ctx context.Context, change func(secret.History) (secret.History, error)) (secret.History, error) {
	var result secret.History
	err := store.RetryOvertaken(func() error {
		entry, latest, err := s.read(ctx)
		if err != nil {
			return err
		}
		latest = s.merge(latest)
		if result, err = change(latest); err != nil || result.ID == latest.ID {
			return err
		}
		return s.write(ctx, entry.Number, result)
	})
	return result, err
}

// Confirm reports how safely the store has the history.
func (s *Set) Confirm(ctx context.Context) store.Safety {
	safety := s.fleet.Store.Confirm(ctx, s.Keys.History)
	if safety.Doubt != "" {
		s.fleet.Log.Warn("the store may lose a client's secret", "client", s.Client, "doubt", safety.Doubt)
	}
	return safety
}

// begin writes the first history of a secret that cannot change while the process runs
// (env:). Such a secret has no history as long as all replicas have the same value.
// Replicas that were restarted with another value see in the store that a version which
// they do not have obtained tokens. The history then says that this version is current, so
// that theirs is staged, proved and activated like any other. It must be written before
// theirs obtains a token: afterwards the store shows theirs, and replicas that were not
// restarted could take it for the older one.
func (s *Set) begin(ctx context.Context) {
	before, at := s.provenElsewhere()
	if before == "" {
		return
	}
	_, _ = s.Change(ctx, func(h secret.History) (secret.History, error) {
		if h.Generation > 0 {
			return h, nil
		}
		return h.Adopt(before, s.Source.Ref().String(), at)
	}) // on failure, the next look retries
}

// provenElsewhere returns the version that was the last to obtain a token in the fleet, and
// when, if a history is to begin with it. It returns the zero values if the secret has a
// history, or if this replica's own version has obtained a token as well: then the other
// version is the newer one, and a replica that has it begins the history.
func (s *Set) provenElsewhere() (version string, at time.Time) {
	u := s.View()
	if s.Source == nil || s.follows() || !u.Loaded || u.Fault != nil || u.History.Generation > 0 || u.Current.usedAt.Load() > 0 {
		return "", time.Time{}
	}
	p := &s.proof
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.version == "" || p.version == noProof || p.version == u.Current.ID {
		return "", time.Time{}
	}
	return p.version, p.until.Add(-proofLasts)
}

// activation is a version to make current in place of another one.
type activation struct {
	version *Version
	before  secret.Record
}

// ActivateProven makes a version current that has obtained a token: one that was staged,
// or the first version of a source that can change while the process runs. The first
// version of another source needs no history: see [Set.begin].
func (s *Set) ActivateProven(v *Version) {
	u := s.View()
	if v != u.Pending && (u.History.Generation > 0 || !s.follows()) {
		return
	}
	before, _ := u.History.In(secret.Current)
	s.activate.Store(&activation{v, before})
	s.activations.Run(s.fleet.Spawn, func() {
		last := s.activate.Load()
		s.makeCurrent(s.fleet.Lifetime, last.version, last.before)
	})
}

// makeCurrent activates a proven version, if the current version is the expected one and was
// not made current again since: that was the decision of an operator. A failed write is
// retried after the next token.
func (s *Set) makeCurrent(ctx context.Context, v *Version, expected secret.Record) {
	now := time.Now()
	h, err := s.Change(ctx, func(h secret.History) (secret.History, error) {
		current, _ := h.In(secret.Current)
		switch {
		case current.ID != expected.ID || !current.Since.Equal(expected.Since):
			return h, nil
		case s.Source != nil:
			return h.Adopt(v.ID, s.Source.Ref().String(), now)
		default:
			record, _ := h.Find(v.ID)
			return h.Activate(v.ID, record.Publication.Urgent, now)
		}
	})
	if err != nil {
		s.fleet.Log.Warn("a proved secret is used, but could not be made current", "client", s.Client, "secret_version", v.ID, "error", err)
		return
	}
	if h.CurrentID() == v.ID && expected.ID != "" {
		s.fleet.Log.Info("a secret became current", "client", s.Client, "secret_version", v.ID, "instead_of", expected.ID)
		s.RecordStep(ctx, StepActivate, audit.Event{SecretVersion: v.ID}, nil)
	}
}
