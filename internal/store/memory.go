package store

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"time"
)

// DefaultMemoryBytes is the default limit of a Memory: enough for the tokens of 100,000
// keys.
const DefaultMemoryBytes = 256 << 20

// MemoryConfig configures a Memory. The zero value is usable.
type MemoryConfig struct {
	// MaxBytes limits the memory for keys and values, with about 128 bytes added for
	// each. 0: DefaultMemoryBytes.
	//
	// A write that would exceed the limit first drops expired items, then values, in the
	// order of their expiry. Leases, counters and values without a lifetime are never
	// dropped: if only those are left, the write fails with ErrFull.
	MaxBytes int
}

// Memory is a Store for one process; nothing outlives it. It starts no goroutine:
// expired items are invisible at once and are freed by later writes.
type Memory struct {
	maxBytes int

	mu       sync.Mutex
	closed   bool
	values   table
	counters table
	leases   table
	events   Broadcast
}

var _ Store = (*Memory)(nil)

// NewMemory returns an empty Memory.
func NewMemory(config MemoryConfig) *Memory {
	if config.MaxBytes == 0 {
		config.MaxBytes = DefaultMemoryBytes
	}
	return &Memory{
		maxBytes: config.MaxBytes,
		values:   newTable(),
		counters: newTable(),
		leases:   newTable(),
	}
}

// Get implements Store.
func (m *Memory) Get(ctx context.Context, keys ...string) ([]Entry, error) {
	if err := CheckKeys(keys); err != nil {
		return nil, err
	}
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	now := time.Now()
	entries := make([]Entry, len(keys))
	for i, key := range keys {
		if it := m.values.get(key, now); it != nil {
			entries[i] = Entry{Number: it.number, Value: bytes.Clone(it.value), TTL: it.left(now)}
		} else if it := m.counters.get(key, now); it != nil {
			entries[i] = Entry{Number: it.number}
		}
	}
	return entries, nil
}

// Acquire implements Store.
func (m *Memory) Acquire(ctx context.Context, claim Claim) (Lease, bool, error) {
	if err := claim.Check(); err != nil {
		return Lease{}, false, err
	}
	if err := m.begin(ctx); err != nil {
		return Lease{}, false, err
	}
	defer m.mu.Unlock()
	now := time.Now()
	if held := m.leases.get(claim.Key, now); held != nil {
		if held.owner != claim.Owner {
			if held.left(now) > claim.TTL {
				m.leases.extend(held, now.Add(claim.TTL))
			}
			return Lease{}, false, nil
		}
		m.leases.extend(held, now.Add(claim.TTL))
		return Lease{Key: claim.Key, Owner: claim.Owner, Fence: held.number}, true, nil
	}
	fence, err := Raised(m.count(claim.Counter), claim.Floor, 1)
	if err != nil {
		return Lease{}, false, err
	}
	counter := newItem(claim.Counter, fence, 0, now)
	grant := newItem(claim.Key, fence, claim.TTL, now)
	grant.owner = strings.Clone(claim.Owner)
	if err := m.makeRoom(now, write{&m.counters, counter}, write{&m.leases, grant}); err != nil {
		return Lease{}, false, err
	}
	m.counters.set(counter)
	m.leases.set(grant)
	return Lease{Key: claim.Key, Owner: claim.Owner, Fence: fence}, true, nil
}

// Renew implements Store.
func (m *Memory) Renew(ctx context.Context, lease Lease, ttl time.Duration) (bool, error) {
	if err := CheckTTL(ttl); err != nil {
		return false, err
	}
	if err := m.begin(ctx); err != nil {
		return false, err
	}
	defer m.mu.Unlock()
	now := time.Now()
	held := m.leases.get(lease.Key, now)
	if held == nil || held.owner != lease.Owner {
		return false, nil
	}
	m.leases.extend(held, now.Add(ttl))
	return true, nil
}

// Apply implements Store.
func (m *Memory) Apply(ctx context.Context, change Change) ([]bool, error) {
	if err := change.Check(); err != nil {
		return nil, err
	}
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	now := time.Now()
	applied := make([]bool, len(change.Puts))
	var writes []write
	for i, put := range change.Puts {
		if it := m.values.get(put.Key, now); it != nil && it.number >= put.Number {
			continue
		}
		applied[i] = true
		it := newItem(put.Key, put.Number, put.TTL, now)
		it.value = bytes.Clone(put.Value)
		writes = append(writes, write{&m.values, it})
	}
	if err := m.makeRoom(now, writes...); err != nil {
		return nil, err
	}
	for _, w := range writes {
		w.to.set(w.item)
	}
	held := m.leases.get(change.Release.Key, now)
	released := held != nil && held.owner == change.Release.Owner
	if released {
		m.leases.remove(held)
	}
	for _, w := range writes {
		m.events.Notify(w.item.key)
	}
	if released {
		m.events.Notify(held.key)
	}
	return applied, nil
}

// Raise implements Store.
func (m *Memory) Raise(ctx context.Context, key string, floor, by uint64) (uint64, error) {
	if err := CheckKey(key); err != nil {
		return 0, err
	}
	if err := m.begin(ctx); err != nil {
		return 0, err
	}
	defer m.mu.Unlock()
	before := m.count(key)
	count, err := Raised(before, floor, by)
	if err != nil || count == before {
		return count, err
	}
	now := time.Now()
	counter := newItem(key, count, 0, now)
	if err := m.makeRoom(now, write{&m.counters, counter}); err != nil {
		return 0, err
	}
	m.counters.set(counter)
	m.events.Notify(counter.key)
	return count, nil
}

// Confirm implements Store.
func (m *Memory) Confirm(context.Context, string) Safety {
	return Safety{Doubt: "it is in the memory of this process alone and ends with it"}
}

// Subscribe implements Store.
func (m *Memory) Subscribe(ctx context.Context) <-chan string { return m.events.Subscribe(ctx) }

// Close implements Store.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.values, m.counters, m.leases = table{}, table{}, table{}
	m.events.Close()
	return nil
}

// begin locks m. It returns an error, without the lock, if the call must not proceed.
func (m *Memory) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return ErrClosed
	}
	return nil
}

func (m *Memory) count(key string) uint64 {
	if it := m.counters.get(key, time.Time{}); it != nil {
		return it.number
	}
	return 0
}

type write struct {
	to   *table
	item *item
}

// makeRoom drops items, as MemoryConfig describes, until the writes fit.
func (m *Memory) makeRoom(now time.Time, writes ...write) error {
	m.values.sweep(now)
	m.leases.sweep(now)
	for m.sizeAfter(writes) > m.maxBytes {
		if !m.values.dropSoonest() {
			return ErrFull
		}
	}
	return nil
}

func (m *Memory) sizeAfter(writes []write) int {
	size := m.values.size + m.counters.size + m.leases.size
	for _, w := range writes {
		size += w.item.size() - w.to.sizeOf(w.item.key)
	}
	return size
}
