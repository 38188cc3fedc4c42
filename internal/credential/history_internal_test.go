package credential

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
)

// managedSet returns a Set with a store in memory. Its background tasks run at once.
func managedSet(t *testing.T) *Set {
	t.Helper()
	memory := store.NewMemory(store.MemoryConfig{})
	fleet := &Fleet{
		Store: memory, Changes: store.ChangeCount{Store: memory, Key: "changes"}, MAC: secret.NewMAC(),
		Spawn: func(work func()) bool { work(); return true }, Lifetime: t.Context(), Log: slog.New(slog.DiscardHandler),
	}
	return fleet.New(Config{Client: "orders", Managed: true, Keys: Keys{
		History: "history", Proof: "proof", Refusals: func(version string) string { return "refusals:" + version },
	}})
}

// stage puts a version into the stored history, and returns its ID.
func stage(t *testing.T, s *Set, value string) string {
	t.Helper()
	version := s.NewVersion(redact.New(value))
	_, err := s.Change(t.Context(), func(h secret.History) (secret.History, error) {
		staged, err := h.Stage(version, "ann", time.Now())
		if err != nil {
			return h, err
		}
		return staged.Activate(version.ID, false, time.Now())
	})
	if err != nil {
		t.Fatal(err)
	}
	return version.ID
}

func storedEntry(t *testing.T, s *Set) store.Entry {
	t.Helper()
	entries, err := s.fleet.Store.Get(t.Context(), s.Keys.History)
	if err != nil {
		t.Fatal(err)
	}
	return entries[0]
}

// Each fetch reads the history. It is decoded only if its bytes changed.
func TestHistoryIsDecodedOnce(t *testing.T) {
	s := managedSet(t)
	first := stage(t, s, "first secret")
	s.adoptHistory(storedEntry(t, s))
	decoded := s.decoded.Load()
	s.adoptHistory(storedEntry(t, s))
	if s.decoded.Load() != decoded {
		t.Error("the same bytes were decoded twice")
	}
	if u := s.View(); u.Current == nil || u.Current.ID != first || u.Fault != nil {
		t.Errorf("the view is %+v", u)
	}
	second := stage(t, s, "second secret")
	s.adoptHistory(storedEntry(t, s))
	if s.decoded.Load() == decoded || s.View().Current.ID != second {
		t.Error("the changed history was not adopted")
	}
}

// Other bytes with the same number, as after the loss of a write, are decoded.
func TestHistoryIsDecoded_sameNumber(t *testing.T) {
	s, other := managedSet(t), managedSet(t)
	stage(t, s, "one secret")
	another := stage(t, other, "another secret")
	s.adoptHistory(storedEntry(t, s))
	changed := storedEntry(t, other)
	if changed.Number != storedEntry(t, s).Number {
		t.Fatal("the numbers differ")
	}
	if h, err := s.historyOf(changed); err != nil || h.CurrentID() != another {
		t.Errorf("the number decided, not the bytes: %+v, %v", h, err)
	}
}

// A history that was decoded before is no substitute for one that cannot be opened, was
// lost, or is sealed with an old key.
func TestHistoryIsDecodedOnce_faults(t *testing.T) {
	s := managedSet(t)
	current := stage(t, s, "a secret")
	good := storedEntry(t, s)
	s.adoptHistory(good)

	s.adoptHistory(store.Entry{Unopened: true})
	if s.View().Fault == nil {
		t.Error("a history that cannot be opened is no fault")
	}
	s.adoptHistory(store.Entry{Number: good.Number, Value: []byte("{}")})
	if s.View().Fault == nil || s.View().Current.ID != current {
		t.Error("a history that is not valid is no fault, or its secret is no longer used")
	}
	s.adoptHistory(good)
	if s.View().Fault != nil {
		t.Error("the fault stays although the history can be read")
	}

	aged := good
	aged.Aged = true
	s.fleet.Store = agedStore{s.fleet.Store}
	s.adoptHistory(aged)
	if got := storedEntry(t, s); got.Number != good.Number+1 {
		t.Errorf("a history that is sealed with an old key has the number %d, and was not written again", got.Number)
	}

	s.fleet.Store = store.NewMemory(store.MemoryConfig{}) // the store has lost everything
	s.adoptHistory(storedEntry(t, s))
	if h, err := s.historyOf(storedEntry(t, s)); err != nil || h.CurrentID() != current {
		t.Errorf("the lost history was not written again: %+v, %v", h, err)
	}
}

// agedStore reports values as sealed with an old key.
type agedStore struct{ store.Store }

func (a agedStore) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	entries, err := a.Store.Get(ctx, keys...)
	for i := range entries {
		entries[i].Aged = true
	}
	return entries, err
}
