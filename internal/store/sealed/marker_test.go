package sealed_test

import (
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
)

// grown returns the ring with another primary key, and the ring that is left when the
// old key was dropped.
func grown(t *testing.T, ring *sealed.Ring) (promoted, dropped *sealed.Ring) {
	t.Helper()
	added, id := ring.Add()
	promoted, err := added.Promote(id)
	if err != nil {
		t.Fatal(err)
	}
	if dropped, err = promoted.Drop(ring.Primary()); err != nil {
		t.Fatal(err)
	}
	return promoted, dropped
}

func TestMarkerDetectsAnotherRing(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) store.Store{
		"memory": func(*testing.T) store.Store { return store.NewMemory(store.MemoryConfig{}) },
		"bolt":   func(t *testing.T) store.Store { return inBolt(t, filepath.Join(t.TempDir(), "broker.db")) },
		"redis": func(t *testing.T) store.Store {
			return inRedis(t, redistest.Start(t, redistest.Options{}).Addr())
		},
	} {
		t.Run(name, func(t *testing.T) {
			inner, ring := open(t), sealed.GenerateRing()
			with := func(r *sealed.Ring) *sealed.Store { return sealed.New(inner, openRing(t, r)) }
			own, other := with(ring), with(sealed.GenerateRing())
			for _, s := range []*sealed.Store{own, other} {
				if marked, err := s.Marked(t.Context()); marked || err != nil {
					t.Fatalf("an empty store: marked %v, %v", marked, err)
				}
			}
			for range 2 {
				if err := own.Mark(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			promoted, dropped := grown(t, ring)
			for _, s := range []*sealed.Store{own, with(promoted), with(dropped)} {
				if marked, err := s.Marked(t.Context()); !marked || err != nil {
					t.Errorf("a ring with the same names key: marked %v, %v", marked, err)
				}
			}
			_, err := other.Marked(t.Context())
			for _, err := range []error{err, other.Mark(t.Context())} {
				if !errors.Is(err, sealed.ErrAnotherRing) || !strings.Contains(err.Error(), "give it the ring of the others") {
					t.Errorf("another ring: %v", err)
				}
			}
			if marked, err := own.Marked(t.Context()); !marked || err != nil {
				t.Errorf("after another ring tried to mark the store: marked %v, %v", marked, err)
			}
		})
	}
}

// Of replicas with different rings that begin with an empty store at once, those with
// one of the rings win.
func TestMarker_concurrentRings(t *testing.T) {
	inner := store.NewMemory(store.MemoryConfig{})
	rings := []*sealed.Ring{sealed.GenerateRing(), sealed.GenerateRing(), sealed.GenerateRing()}
	errs := make([]error, 30)
	var all sync.WaitGroup
	for i := range errs {
		sealed := sealed.New(inner, openRing(t, rings[i%3]))
		all.Go(func() { errs[i] = sealed.Mark(t.Context()) })
	}
	all.Wait()
	won := 0
	for i, err := range errs {
		if (err == nil) != (errs[i%3] == nil) {
			t.Errorf("replica %d: %v, but the first one with its ring: %v", i, err, errs[i%3])
		}
		if err == nil {
			won++
		}
	}
	if won != 10 {
		t.Errorf("%d of 30 replicas marked the store: those with one ring must", won)
	}
}
