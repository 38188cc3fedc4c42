package broker

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/cezzis/tokenbroker/internal/store"
)

// What the store is to keep for good (revocations, secrets) is changed in one way:
// a value is replaced only by who has read it, its number is one more; and a
// counter grows with each change, so that a look whether there was one costs a
// number. What a replica knows and the store does not, the store has lost; it is
// put back.

const (
	// maxWrites is how often a change is tried that others get in the way of.
	maxWrites = 8
	// reloadRounds of polls later all is read again, whatever the counter says.
	reloadRounds = 12
)

var errOvertaken = errors.New("another replica changed the same at the same time")

// replace puts a value in the place of one that was read with a number, and
// returns the number of the new one.
func replace(ctx context.Context, s store.Store, key string, number uint64, value []byte) (uint64, error) {
	number++
	applied, err := s.Apply(ctx, store.Change{Puts: []store.Put{{Key: key, Number: number, Value: value}}})
	switch {
	case err != nil:
		return 0, err
	case !applied[0]:
		return 0, errOvertaken
	}
	return number, nil
}

// insist makes a change, again if another got in its way.
func insist(change func() error) error {
	err := errOvertaken
	for range maxWrites {
		if err = change(); !errors.Is(err, errOvertaken) {
			break
		}
	}
	return err
}

// tally is a counter of changes in the store.
type tally struct {
	store store.Store
	key   string
	seen  atomic.Uint64 // the count of what is known here
}

// moved reports whether the store has seen another number of changes than this
// replica. The store may have lost some.
func (t *tally) moved(ctx context.Context) (count uint64, moved bool, err error) {
	found, err := t.store.Get(ctx, t.key)
	if err != nil {
		return 0, false, err
	}
	return found[0].Number, found[0].Number != t.seen.Load(), nil
}

// raise counts a change that was made here.
func (t *tally) raise(ctx context.Context) error {
	seen := t.seen.Load()
	count, err := t.store.Raise(ctx, t.key, seen, 1)
	if err == nil && count == seen+1 {
		t.seen.Store(count) // else others made changes too, which are still to be read
	}
	return err
}
