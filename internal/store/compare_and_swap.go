package store

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
)

// Permanent state (revocations, secrets) is changed in one way: a replica replaces a
// value only if it has read the present one, and writes with the next higher number. It
// also raises a counter with each change, so that other replicas detect changes by one
// number. If a replica knows a value that the store does not have, the store has lost
// it, and the replica writes it again.

const (
	// maxWrites is how often a change is tried while other replicas overtake it.
	maxWrites = 8
	// ReloadRounds is the number of polls after which a replica reads everything again,
	// whatever the counter says.
	ReloadRounds = 12
)

var errOvertaken = errors.New("another replica changed the same value at the same time")

// CompareAndSwap replaces the value that was read with the given number, and returns the
// number of the new value.
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

// RetryOvertaken makes a change, and repeats it if CompareAndSwap found that another
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
	// Seen is the count of the changes that this replica knows.
	Seen atomic.Uint64
}

// Moved reports whether the store's count differs from this replica's. It may also be
// lower: the store may have lost some.
func (t *ChangeCount) Moved(ctx context.Context) (count uint64, moved bool, err error) {
	entries, err := t.Store.Get(ctx, t.Key)
	if err != nil {
		return 0, false, err
	}
	return entries[0].Number, entries[0].Number != t.Seen.Load(), nil
}

// Raise counts a change that this replica made.
func (t *ChangeCount) Raise(ctx context.Context) error {
	seen := t.Seen.Load()
	count, err := t.Store.Raise(ctx, t.Key, seen, 1)
	if err == nil && count == seen+1 {
		t.Seen.Store(count) // else others made changes too, which are still to be read
	}
	return err
}

// Unconfirmed is the error for a change that the store did not confirm. If the store
// accepts no writes, a retry does not help until that is fixed.
func Unconfirmed(cause error, what, again string, about map[string]string) *apierror.Error {
	err := &apierror.Error{
		Code: apierror.Unavailable, Reason: apierror.ReasonStoreUnavailable, RetryAfter: time.Second, Metadata: about, Cause: cause,
		Message: what + ", which may or may not have happened; " + again,
	}
	if errors.Is(cause, ErrNoWrites) {
		err.Message = fmt.Sprintf("%s: %v; fix that, then %s", what, cause, again)
	}
	return err
}
