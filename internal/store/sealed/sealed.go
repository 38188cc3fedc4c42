// Package sealed encrypts the values of a store, with a ring of sealing keys that
// replicas share: the store, and its readers and writers, are not trusted.
package sealed

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

// Store is a [store.Store] that seals the values of another one with AES-256-GCM: a
// reader of that store learns no value, and a writer can remove a value or restore an
// older one of the same key, but cannot forge one, move one to another key or number, or
// prolong one. Numbers, lifetimes, leases and the lengths of values stay visible; so do
// keys, which the caller hashes.
//
// The expiry of a value is sealed with it, by the clock of the replica that puts it, and
// a value is not returned after that, whatever the other store reports: its clock may be
// set back, and any writer of the store can change lifetimes. The earlier of the two
// expiries counts. A replica whose clock is ahead therefore expires the values of others
// early, by the difference of the clocks.
//
// A value that cannot be opened is a miss, an Entry with Unopened and nothing else, and
// is counted: its key is not in the ring, or the value was altered. Keys can therefore
// be changed without moving values. Such a value still holds its place: a put with a
// higher number, which a fence always is, replaces it, and a put with a lower one is not
// applied. An entry without a value is a counter and passes unchanged.
//
// One key should seal no more than 2^32 values.
type Store struct {
	inner store.Store
	rings *RingFile

	notSealed, unknownKey, refused, outlived atomic.Uint64
}

var _ store.Store = (*Store)(nil)

// Unopened counts the values that could not be opened, since the start.
type Unopened struct {
	// NotSealed counts values without an envelope, or too short for one.
	NotSealed uint64
	// UnknownKey counts values sealed with a key that the ring does not have.
	UnknownKey uint64
	// Refused counts values that were altered, or moved to another key or number.
	Refused uint64
	// Outlived counts values that were still in the store a second after their sealed
	// expiry.
	Outlived uint64
}

// New returns a Store that seals values and keeps them in inner, with the ring that is
// current at each call.
func New(inner store.Store, rings *RingFile) *Store { return &Store{inner: inner, rings: rings} }

// Unopened returns the current counts.
func (s *Store) Unopened() Unopened {
	return Unopened{NotSealed: s.notSealed.Load(), UnknownKey: s.unknownKey.Load(), Refused: s.refused.Load(), Outlived: s.outlived.Load()}
}

// Get implements Store.
func (s *Store) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	entries, err := s.inner.Get(ctx, keys...) // some may have been read in spite of err
	s.openAll(keys, entries)
	return entries, err
}

// openAll opens the values of keys in place.
func (s *Store) openAll(keys []string, entries []store.Entry) {
	ring := s.rings.Current()
	for i, entry := range entries {
		if len(entry.Value) > 0 {
			entries[i] = s.open(ring, keys[i], entry)
		}
	}
}

// Health returns the health of the inner store's servers; nil if it does not report it.
func (s *Store) Health() []store.Health {
	if inner, tells := s.inner.(interface{ Health() []store.Health }); tells {
		return inner.Health()
	}
	return nil
}

// Apply implements Store. A value is too large if it is so with Overhead.
func (s *Store) Apply(ctx context.Context, change store.Change) ([]bool, error) {
	ring, now := s.rings.Current(), time.Now()
	puts := make([]store.Put, len(change.Puts))
	for i, put := range change.Puts {
		var end time.Time
		if put.TTL > 0 {
			end = now.Add(put.TTL + time.Millisecond - 1) // lifetimes are whole milliseconds, rounded up
		}
		put.Value = ring.seal(put.Key, put.Number, end, put.Value)
		puts[i] = put
	}
	return s.inner.Apply(ctx, store.Change{Puts: puts, Release: change.Release, Quiet: change.Quiet})
}

// Acquire implements Store.
func (s *Store) Acquire(ctx context.Context, claim store.Claim) (store.Claimed, error) {
	claimed, err := s.inner.Acquire(ctx, claim)
	s.openAll(claim.Read, claimed.Entries)
	return claimed, err
}

// Renew implements Store.
func (s *Store) Renew(ctx context.Context, lease store.Lease, ttl time.Duration) (bool, error) {
	return s.inner.Renew(ctx, lease, ttl)
}

// Raise implements Store.
func (s *Store) Raise(ctx context.Context, key string, floor, by uint64) (uint64, error) {
	return s.inner.Raise(ctx, key, floor, by)
}

// Confirm implements Store.
func (s *Store) Confirm(ctx context.Context, key string) store.Safety {
	return s.inner.Confirm(ctx, key)
}

// Subscribe implements Store.
func (s *Store) Subscribe(ctx context.Context) <-chan string { return s.inner.Subscribe(ctx) }

// open returns the entry with its value opened, in the memory of the envelope.
func (s *Store) open(ring *Ring, key string, entry store.Entry) store.Entry {
	content, err := ring.open(key, entry.Number, entry.Value)
	switch {
	case err == nil:
		entry.Value, entry.Aged = content.value, content.with != ring.primary
		return s.bounded(entry, content.end, time.Now())
	case errors.Is(err, errNotSealed):
		s.notSealed.Add(1)
	case errors.Is(err, errUnknownKey):
		s.unknownKey.Add(1)
	default:
		s.refused.Add(1)
	}
	return store.Entry{Unopened: true}
}

// writeDelay is how much longer than its sealed expiry a value may be in the store: the
// store's clock for it starts when the write arrives.
const writeDelay = time.Second

// bounded limits an entry to its sealed expiry. An entry without one has no lifetime,
// whatever the inner store reports.
func (s *Store) bounded(entry store.Entry, end, now time.Time) store.Entry {
	if end.IsZero() {
		entry.TTL = 0
		return entry
	}
	left := end.Sub(now)
	switch {
	case left <= 0:
		if left < -writeDelay {
			s.outlived.Add(1)
		}
		return store.Entry{}
	case entry.TTL == 0: // the inner store keeps it forever
		entry.TTL = left
	case left < entry.TTL:
		entry.TTL, entry.Excess = left, entry.TTL-left
	}
	return entry
}
