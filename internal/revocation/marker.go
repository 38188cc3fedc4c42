package revocation

import (
	"context"
	"errors"
	"time"

	"github.com/cezzis/tokenbroker/internal/store/sealed"
)

// DefaultPutBack is how long a replica that has just started waits for others to restore
// the revocations that the store has lost. They check every few seconds.
const DefaultPutBack = 10 * time.Second

// Marker is a value in the store that depends on the ring of sealing keys, under a key that
// does not. It shows that the store is used with another ring, with which this replica
// would find no values of the other replicas.
type Marker interface {
	// Marked reports whether the store has the marker of this ring. The error is
	// sealed.ErrAnotherRing if it has the marker of another ring.
	Marked(ctx context.Context) (bool, error)
	// Mark writes the marker, unless the store has one.
	Mark(ctx context.Context) error
}

// Errors for a replica that must not use the revocations that it knows, because others may
// have stored revocations that it cannot read. sealed.ErrAnotherRing is another such error.
var (
	errSealedRevocations = errors.New("the revocations in the store cannot be opened: put the sealing key that they were sealed with back into the ring")
	errNewerRevocations  = errors.New("the revocations in the store have a form of a newer version of the broker: run the newer version")
)

// errStoreLost means that other replicas may still restore the revocations.
var errStoreLost = errors.New("the store is new or has lost its data: other replicas have 10 s to put back their revocations")

// marked compares the ring with the store's marker, and reports whether there is one.
func (r *Set) marked(ctx context.Context) (bool, error) {
	if r.marker == nil {
		return true, nil
	}
	return r.marker.Marked(ctx)
}

// mark writes the marker.
func (r *Set) mark(ctx context.Context) error {
	if r.marker == nil {
		return nil
	}
	return r.marker.Mark(ctx)
}

// mayBegin returns nil if this replica can take the revocations in the store as complete.
// If the store is new or has lost its data, only a replica that already knows the
// revocations can, or one that gave the others time to restore them.
func (r *Set) mayBegin(lost bool) error {
	switch {
	case !lost:
		r.lostSince = time.Time{}
		return nil
	case r.view.Load() != nil || r.putBack == 0:
		return nil
	case r.lostSince.IsZero():
		r.lostSince = time.Now()
		r.log.Warn("the store is new or has lost its data; tokens are not verified until other replicas had time to put back their revocations", "wait", r.putBack)
		return errStoreLost
	case time.Since(r.lostSince) < r.putBack:
		return errStoreLost
	}
	return nil
}

// note records whether the store has revocations that this replica cannot read. An
// inconclusive error, such as an unreachable store, changes nothing.
func (r *Set) note(err error) {
	switch {
	case err == nil:
		if r.unreadable.Swap(nil) != nil {
			r.log.Info("the revocations in the store can be read again; tokens are verified")
		}
	case errors.Is(err, sealed.ErrAnotherRing), errors.Is(err, errSealedRevocations), errors.Is(err, errNewerRevocations):
		if r.unreadable.Swap(&err) == nil {
			r.log.Error("tokens are not verified, because this replica may have missed revocations", "error", err)
		}
	}
}

// usable returns the revocations, or nil while they are not known.
func (r *Set) usable() *View {
	if r.unreadable.Load() != nil {
		return nil
	}
	return r.view.Load()
}
