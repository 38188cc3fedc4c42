package sealed

import (
	"context"
	"crypto/hmac"
	"errors"

	"github.com/cezzis/tokenbroker/internal/store"
)

// ErrAnotherRing means that the store belongs to replicas with another ring. With its
// own names key a replica would find nothing that they stored.
var ErrAnotherRing = errors.New("the store is used with another ring of sealing keys (its names key differs), so this replica could not read what the others stored: " +
	"give it the ring of the others; or, to start empty with this ring, give it another Redis prefix or another Bolt file")

var errMarkerLost = errors.New("the store lost its marker right after it was written")

// markerKey is the same for every ring.
const markerKey = "marker"

// Marked reports whether the store has the marker of replicas with this names key; the
// other keys of the ring do not matter. The error is ErrAnotherRing if the store has
// another marker. A store without a marker is new, or has lost its data.
func (s *Store) Marked(ctx context.Context) (bool, error) {
	entries, err := s.inner.Get(ctx, markerKey)
	if err != nil || entries[0].Number == 0 {
		return false, err
	}
	if !hmac.Equal(entries[0].Value, s.marker()) {
		return false, ErrAnotherRing
	}
	return true, nil
}

// Mark writes the marker, if the store has no marker. The error is ErrAnotherRing if it
// has another one.
func (s *Store) Mark(ctx context.Context) error {
	_, err := s.inner.Apply(ctx, store.Change{Puts: []store.Put{{Key: markerKey, Number: 1, Value: s.marker()}}})
	if err != nil {
		return err
	}
	marked, err := s.Marked(ctx) // another replica may have been first
	if err == nil && !marked {
		err = errMarkerLost
	}
	return err
}

// marker is not sealed, so that a replica with another ring can detect the mismatch. It
// reveals nothing: it is a MAC of a constant.
func (s *Store) marker() []byte {
	mac := s.rings.Current().MAC([]byte("marker of the store"))
	return mac[:]
}
