// Package sealed encrypts what a store keeps, with a ring of sealing keys that replicas
// share: the store, and those who can read or write it, are not trusted.
package sealed

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

// Store is a [store.Store] that seals the values of another one with AES-256-GCM:
// who can read that store learns no value, and who can write it can take a value
// away or bring back an older one of the same key, but not make one up, nor
// pass one off under another key or number, nor prolong one. Numbers, lifetimes,
// leases and the lengths of values stay in sight; so do keys, which the caller
// hashes.
//
// The end of a value is sealed with it, by the clock of the replica that puts it,
// and a value is not returned after that, whatever the other store says: its clock
// may be set back, and lifetimes are open to everybody who can write to it. Of the
// two ends the earlier counts. A replica whose clock is ahead therefore takes the
// values of others for older than they are, by as much as the clocks differ.
//
// A value that cannot be opened is a miss, an Entry that says Unopened and
// nothing else, and is counted: its key is not in the ring, or it is not what
// was put there. This is what lets
// keys be changed without moving values. Such a value still holds its place: it
// is replaced by a put with a higher number, which a fence always is, and a put
// with a lower one is not applied. An entry without a value is a counter and
// passes as it is.
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
	// NotSealed were not in an envelope, or too short for one.
	NotSealed uint64
	// UnknownKey were sealed with a key that the ring does not have.
	UnknownKey uint64
	// Refused were altered, or moved to another key or number.
	Refused uint64
	// Outlived were still in the store after their sealed end.
	Outlived uint64
}

// New returns a Store that keeps sealed in inner what is put in it, with
// the ring that is in force at each call.
func New(inner store.Store, rings *RingFile) *Store { return &Store{inner: inner, rings: rings} }

// Unopened returns the counts as they stand.
func (s *Store) Unopened() Unopened {
	return Unopened{NotSealed: s.notSealed.Load(), UnknownKey: s.unknownKey.Load(), Refused: s.refused.Load(), Outlived: s.outlived.Load()}
}

// Get implements Store.
func (s *Store) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	entries, err := s.inner.Get(ctx, keys...) // some may have been read in spite of err
	ring := s.rings.Current()
	for i, entry := range entries {
		if len(entry.Value) > 0 {
			entries[i] = s.open(ring, keys[i], entry)
		}
	}
	return entries, err
}

// Health returns the health of the inner store's servers; nil if it does not tell.
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
	return s.inner.Apply(ctx, store.Change{Puts: puts, Release: change.Release})
}

// Acquire implements Store.
func (s *Store) Acquire(ctx context.Context, claim store.Claim) (store.Lease, bool, error) {
	return s.inner.Acquire(ctx, claim)
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

// Close implements Store. It closes the inner store.
func (s *Store) Close() error { return s.inner.Close() }

// open returns the entry with its value opened, in the memory of the envelope.
func (s *Store) open(ring *Ring, key string, entry store.Entry) store.Entry {
	found, err := ring.open(key, entry.Number, entry.Value)
	switch {
	case err == nil:
		entry.Value, entry.Aged = found.value, found.with != ring.primary
		return s.bounded(entry, found.end, time.Now())
	case errors.Is(err, errNotSealed):
		s.notSealed.Add(1)
	case errors.Is(err, errUnknownKey):
		s.unknownKey.Add(1)
	default:
		s.refused.Add(1)
	}
	return store.Entry{Unopened: true}
}

// bounded holds an entry to its sealed end. One without an end has no lifetime,
// whatever the inner store says.
func (s *Store) bounded(entry store.Entry, end, now time.Time) store.Entry {
	if end.IsZero() {
		entry.TTL = 0
		return entry
	}
	left := end.Sub(now)
	switch {
	case left <= 0:
		s.outlived.Add(1)
		return store.Entry{}
	case entry.TTL == 0: // the inner store keeps it for good
		entry.TTL = left
	case left < entry.TTL:
		entry.TTL, entry.Excess = left, entry.TTL-left
	}
	return entry
}
