// Package boltstore is the store in a file, for a broker of one node. Only this package
// uses bbolt.
package boltstore

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/cezzis/tokenbroker/internal/store"
)

// DefaultBytes is the default limit of a Bolt.
const DefaultBytes = 256 << 20

// Config configures a Bolt.
type Config struct {
	// Path is the file, which is created with mode 0600 if it is absent. Its
	// directory must exist, on a local disk. Required.
	Path string
	// MaxBytes limits the size of keys and values, with about 128 bytes added for each.
	// At the limit, items are dropped and writes fail with ErrFull as in MemoryConfig.
	// The file takes up to about twice as much, because pages are not full, and never
	// shrinks. 0: DefaultBytes.
	MaxBytes int
}

// Store is a [store.Store] in a file, for a broker of one node. A call that changes
// something returns after the change is on disk: it survives a crash of the process and
// of the machine.
//
// One goroutine writes. It puts the calls that came while it waited for the disk into
// one transaction, so that many callers share one fsync, and a single caller does not
// wait for others.
//
// Lifetimes are stored as times of the wall clock: they continue while no broker runs,
// and a clock that is set moves them. Expired items are invisible at once; later writes
// free them, some at a time.
//
// Events report only the calls of this process. There are no others: the file is locked
// while it is open.
type Store struct {
	path     string
	maxBytes int
	db       *bolt.DB

	calls   chan *call
	closing chan struct{} // closed when the writer must end
	stopped chan struct{} // closed when the writer has ended
	once    sync.Once

	events store.Broadcast
}

var _ store.Store = (*Store)(nil)

// Open opens the file, creating it if it is absent, and checks its integrity. It waits
// up to a second for a file that another process has open. A file that is refused as
// damaged may stay locked until the process ends.
func Open(config Config) (*Store, error) {
	if config.MaxBytes == 0 {
		config.MaxBytes = DefaultBytes
	}
	db, err := openFile(config.Path)
	if err != nil {
		return nil, err
	}
	b := &Store{
		path:     config.Path,
		maxBytes: config.MaxBytes,
		db:       db,
		calls:    make(chan *call, maxBatch),
		closing:  make(chan struct{}),
		stopped:  make(chan struct{}),
	}
	go b.run()
	return b, nil
}

// Get implements Store.
func (b *Store) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	if err := store.CheckKeys(keys); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var entries []store.Entry
	err := b.view(func(t *tx) { entries = t.Get(keys) })
	if err != nil {
		return nil, err
	}
	return entries, nil
}

// Acquire implements Store.
func (b *Store) Acquire(ctx context.Context, claim store.Claim) (store.Claimed, error) {
	if err := claim.Check(); err != nil {
		return store.Claimed{}, err
	}
	claim.Read = slices.Clone(claim.Read) // the writer may still use it when ctx has ended
	var claimed store.Claimed
	err := b.write(ctx, func(t *tx) (err error) {
		claimed, err = t.Acquire(claim)
		return err
	})
	if err != nil {
		return store.Claimed{}, err
	}
	return claimed, nil
}

// Renew implements Store.
func (b *Store) Renew(ctx context.Context, lease store.Lease, ttl time.Duration) (bool, error) {
	if err := store.CheckTTL(ttl); err != nil {
		return false, err
	}
	var held bool
	err := b.write(ctx, func(t *tx) error {
		held = t.Renew(lease, ttl)
		return nil
	})
	if err != nil {
		return false, err
	}
	return held, nil
}

// Apply implements Store.
func (b *Store) Apply(ctx context.Context, change store.Change) ([]bool, error) {
	if err := change.Check(); err != nil {
		return nil, err
	}
	// A caller that returns when its ctx ends may change its values while they are still
	// being written.
	change.Puts = slices.Clone(change.Puts)
	for i, put := range change.Puts {
		change.Puts[i].Value = bytes.Clone(put.Value)
	}
	var applied []bool
	err := b.write(ctx, func(t *tx) (err error) {
		applied, err = t.Apply(change)
		return err
	})
	if err != nil {
		return nil, err
	}
	return applied, nil
}

// Raise implements Store.
func (b *Store) Raise(ctx context.Context, key string, floor, by uint64) (uint64, error) {
	if err := store.CheckKey(key); err != nil {
		return 0, err
	}
	var count uint64
	err := b.write(ctx, func(t *tx) (err error) {
		count, err = t.Raise(key, floor, by)
		return err
	})
	if err != nil {
		return 0, err
	}
	return count, nil
}

// Confirm implements Store. A successful change is always on disk.
func (b *Store) Confirm(context.Context, string) store.Safety { return store.Safety{Disk: true} }

// Subscribe implements Store.
func (b *Store) Subscribe(ctx context.Context) <-chan string { return b.events.Subscribe(ctx) }

// Close implements Store. It waits for the calls that are being written; the queued
// calls fail with ErrClosed.
func (b *Store) Close() (err error) {
	b.once.Do(func() {
		close(b.closing)
		<-b.stopped
		b.events.Close()
		err = b.db.Close()
	})
	return err
}
