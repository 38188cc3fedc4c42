package store

import (
	"context"
	"errors"
	"sync/atomic"
)

// What the store is to keep for good (revocations, secrets) is changed in one way: a
// replica replaces a value only if it has read the one that is there, with a number that
// is one higher; and it raises a counter with each change, so that other replicas see by
// one number whether there was a change. If a replica knows what the store does not, then
// the store has lost it, and the replica puts it back.

const (
	// maxWrites is how often a change is tried that others get in the way of.
	maxWrites = 8
	// ReloadRounds is after how many polls a replica reads everything again, whatever the
	// counter says.
	ReloadRounds = 12
)

var errOvertaken = errors.New("another replica changed the same at the same time")

// CompareAndSwap puts a value in the place of one that was read with a number, and
// returns the number of the new one.
func CompareAndSwap(ctx context.Context, s Store, key string, number uint64, value []byte) (uint64, error) {
	number++
	applied, err := s.Apply(ctx, Change{Puts: []Put{{Key: key, Number: number, Value: value}}})
	switch {
	case err != nil:
		return 0, err
	case !applied[0]:
		return 0, errOvertaken
	}
	return number, nil
}

// RetryOvertaken makes a change, and makes it again if CompareAndSwap found that another
// replica was faster.
func RetryOvertaken(change func() error) error {
	err := errOvertaken
	for range maxWrites {
		if err = change(); !errors.Is(err, errOvertaken) {
			break
		}
	}
	return err
}

// ChangeCount is a counter of changes in the store.
type ChangeCount struct {
	Store Store
	Key   string
	// Seen is the count of the changes that are known here.
	Seen atomic.Uint64
}

// Moved reports whether the store has seen another number of changes than this
// replica. The store may have lost some.
func (t *ChangeCount) Moved(ctx context.Context) (count uint64, moved bool, err error) {
	found, err := t.Store.Get(ctx, t.Key)
	if err != nil {
		return 0, false, err
	}
	return found[0].Number, found[0].Number != t.Seen.Load(), nil
}

// Raise counts a change that was made here.
func (t *ChangeCount) Raise(ctx context.Context) error {
	seen := t.Seen.Load()
	count, err := t.Store.Raise(ctx, t.Key, seen, 1)
	if err == nil && count == seen+1 {
		t.Seen.Store(count) // else others made changes too, which are still to be read
	}
	return err
}
