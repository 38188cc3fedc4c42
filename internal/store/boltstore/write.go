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
	// maxBatch is the maximum number of calls in one transaction.
	maxBatch = 256
	// sweepPerCall is the maximum number of expired items that a call frees: more than one
	// call can add, so that they do not pile up.
	sweepPerCall = 2 * (store.MaxPuts + 1)
)

// errUnchanged rolls back a transaction that has nothing to commit: a claim of a
// held lease must not cost an fsync.
var errUnchanged = errors.New("nothing to commit")

// call is a call that waits for the writer.
type call struct {
	ended func() error // error of the caller's ctx
	do    func(*tx) error
	// done receives the outcome. The results of do may be read only after it.
	done chan error
}

// write passes do to the writer and returns when its transaction is on disk. An error of
// do fails only this call: do must not have written then.
func (b *Store) write(ctx context.Context, do func(*tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	call := &call{ended: ctx.Err, do: do, done: make(chan error, 1)}
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
	case err := <-call.done: // the call was in the last transaction
		return err
	default:
		return store.ErrClosed
	}
}

// run is the writer's loop.
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

// gather adds the queued calls to the first.
func (b *Store) gather(first *call) []*call {
	calls := []*call{first}
	for len(calls) < maxBatch {
		select {
		case call := <-b.calls:
			calls = append(calls, call)
		default:
			return calls
		}
	}
	return calls
}

// commit runs the calls in one transaction, which is on disk before they return.
func (b *Store) commit(calls []*call) {
	outcomes := make([]error, len(calls))
	var changed []string
	err := b.guard(func() error {
		return b.db.Update(func(tx *bolt.Tx) error {
			t := newTx(tx, b.maxBytes)
			for i, call := range calls {
				if outcomes[i] = call.ended(); outcomes[i] == nil {
					outcomes[i] = call.do(t)
				}
			}
			if !t.dirty() {
				return errUnchanged
			}
			t.Sweep(sweepPerCall * len(calls))
			changed = t.Changed
			return t.err()
		})
	})
	if err == nil {
		b.events.Notify(changed...)
	}
	for i, call := range calls {
		if err != nil && !errors.Is(err, errUnchanged) {
			outcomes[i] = err
		}
		call.done <- outcomes[i]
	}
}

// view runs a read-only transaction.
func (b *Store) view(read func(*tx)) error {
	return b.guard(func() error {
		return b.db.View(func(tx *bolt.Tx) error {
			read(newTx(tx, b.maxBytes))
			return nil
		})
	})
}

// guard adds the file name to errors, and turns a panic over a damaged file into an
// error.
func (b *Store) guard(do func() error) error {
	err := recoverDamage(do)
	switch {
	case err == nil, errors.Is(err, errUnchanged):
		return err
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return store.ErrClosed
	case errors.Is(err, errDamaged):
		return fmt.Errorf("%s %w", b.path, err)
	default:
		return fmt.Errorf("the store's file %s: %w", b.path, err)
	}
}

var errDamaged = errors.New("is damaged: restore it from a backup, or move it away and the broker begins a new one")

// recoverDamage turns a panic into an error. bbolt panics at an invalid page, and access to
// a page beyond the end of the file is a fault of the mapped memory.
func recoverDamage(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch cause := recover().(type) {
		case nil:
		case error: // from the runtime
			err = fmt.Errorf("%w (%w)", errDamaged, cause)
		default: // a text of bbolt, which may contain keys
			err = errDamaged
		}
	}()
	return do()
}
