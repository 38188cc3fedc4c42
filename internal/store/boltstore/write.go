package boltstore

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/cezzis/tokenbroker/internal/store"
)

const (
	// boltBatch is the most calls in one transaction.
	boltBatch = 256
	// boltSweep is how many expired items a call frees at most: more than one
	// call can add, so that they do not pile up.
	boltSweep = 2 * (store.MaxPuts + 1)
)

// errBoltUnchanged rolls a transaction back that has nothing to commit: a
// claim of a lease that is held must not cost an fsync.
var errBoltUnchanged = errors.New("nothing to commit")

// boltCall is a call that waits for the writer.
type boltCall struct {
	ended func() error // of the caller's ctx
	do    func(*boltTx) error
	// done receives the outcome. What do found out may be read only after it.
	done chan error
}

// write has the writer call do in a transaction and returns when that is on
// disk. An error of do refuses its call alone: do must not have written then.
func (b *Store) write(ctx context.Context, do func(*boltTx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	call := &boltCall{ended: ctx.Err, do: do, done: make(chan error, 1)}
	select {
	case b.calls <- call:
	case <-b.closing:
		return store.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-call.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-b.stopped:
	}
	select {
	case err := <-call.done: // the last that was written
		return err
	default:
		return store.ErrClosed
	}
}

// run is the writer.
func (b *Store) run() {
	defer close(b.stopped)
	for {
		select {
		case <-b.closing:
			return
		case call := <-b.calls:
			b.commit(b.gather(call))
		}
	}
}

// gather adds to the first call all that wait behind it.
func (b *Store) gather(first *boltCall) []*boltCall {
	calls := []*boltCall{first}
	for len(calls) < boltBatch {
		select {
		case call := <-b.calls:
			calls = append(calls, call)
		default:
			return calls
		}
	}
	return calls
}

// commit makes the calls in one transaction, on disk before they are answered.
func (b *Store) commit(calls []*boltCall) {
	outcomes := make([]error, len(calls))
	var changed []string
	err := b.guard(func() error {
		return b.db.Update(func(tx *bolt.Tx) error {
			t := newBoltTx(tx, b.maxBytes)
			for i, call := range calls {
				if outcomes[i] = call.ended(); outcomes[i] == nil {
					outcomes[i] = call.do(t)
				}
			}
			if !t.dirty() {
				return errBoltUnchanged
			}
			t.sweep(boltSweep * len(calls))
			changed = t.changed
			return t.err()
		})
	})
	if err == nil {
		b.listeners.tell(changed)
	}
	for i, call := range calls {
		if err != nil && !errors.Is(err, errBoltUnchanged) {
			outcomes[i] = err
		}
		call.done <- outcomes[i]
	}
}

// view reads.
func (b *Store) view(read func(*boltTx)) error {
	return b.guard(func() error {
		return b.db.View(func(tx *bolt.Tx) error {
			read(newBoltTx(tx, b.maxBytes))
			return nil
		})
	})
}

// guard says of which file an error is, and makes an error of a damaged one.
func (b *Store) guard(do func() error) error {
	err := guardBolt(do)
	switch {
	case err == nil, errors.Is(err, errBoltUnchanged):
		return err
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return store.ErrClosed
	case errors.Is(err, errBoltDamaged):
		return fmt.Errorf("%s %w", b.path, err)
	default:
		return fmt.Errorf("the store's file %s: %w", b.path, err)
	}
}

var errBoltDamaged = errors.New("is damaged: restore it from a backup, or move it away and the broker begins a new one")

// guardBolt makes an error of a panic. bbolt panics at a page that makes no
// sense, and a page that the file does not reach is a fault of the memory that
// it is mapped to.
func guardBolt(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch cause := recover().(type) {
		case nil:
		case error: // of the runtime
			err = fmt.Errorf("%w (%w)", errBoltDamaged, cause)
		default: // a text of bbolt, which may show keys
			err = errBoltDamaged
		}
	}()
	return do()
}
