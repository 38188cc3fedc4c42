package store

import (
	"context"
	"math"
	"sync"
	"time"
)

// DefaultMemoryBytes is the default limit of a Memory: enough for 100,000 values of 2 KiB.
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

	mu                       sync.Mutex
	values, counters, leases *memoryTable // nil: the store is closed
	events                   Broadcast
}

var _ Store = (*Memory)(nil)

// NewMemory returns an empty Memory.
func NewMemory(config MemoryConfig) *Memory {
	if config.MaxBytes == 0 {
		config.MaxBytes = DefaultMemoryBytes
	}
	return &Memory{maxBytes: config.MaxBytes, values: newMemoryTable(), counters: newMemoryTable(), leases: newMemoryTable()}
}

// do runs a call, alone.
func (m *Memory) do(ctx context.Context, call func(t *Tables) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.values == nil {
		return ErrClosed
	}
	t := &Tables{Now: time.Now(), MaxBytes: m.maxBytes, Values: m.values, Counters: m.counters, Leases: m.leases}
	err := call(t)
	m.events.Notify(t.Changed...)
	return err
}

// write is do for a call that may take up memory, which expired items free first.
func (m *Memory) write(ctx context.Context, call func(t *Tables) error) error {
	return m.do(ctx, func(t *Tables) error {
		t.Sweep(math.MaxInt)
		return call(t)
	})
}

// Get implements Store.
func (m *Memory) Get(ctx context.Context, keys ...string) (entries []Entry, err error) {
	if err := CheckKeys(keys); err != nil {
		return nil, err
	}
	err = m.do(ctx, func(t *Tables) error {
		entries = t.Get(keys)
		return nil
	})
	return entries, err
}

// Acquire implements Store.
func (m *Memory) Acquire(ctx context.Context, claim Claim) (claimed Claimed, err error) {
	if err := claim.Check(); err != nil {
		return Claimed{}, err
	}
	err = m.write(ctx, func(t *Tables) (err error) {
		claimed, err = t.Acquire(claim)
		return err
	})
	return claimed, err
}

// Renew implements Store.
func (m *Memory) Renew(ctx context.Context, lease Lease, ttl time.Duration) (held bool, err error) {
	if err := CheckTTL(ttl); err != nil {
		return false, err
	}
	err = m.do(ctx, func(t *Tables) error {
		held = t.Renew(lease, ttl)
		return nil
	})
	return held, err
}

// Apply implements Store.
func (m *Memory) Apply(ctx context.Context, change Change) (applied []bool, err error) {
	if err := change.Check(); err != nil {
		return nil, err
	}
	err = m.write(ctx, func(t *Tables) (err error) {
		applied, err = t.Apply(change)
		return err
	})
	return applied, err
}

// Raise implements Store.
func (m *Memory) Raise(ctx context.Context, key string, floor, by uint64) (count uint64, err error) {
	if err := CheckKey(key); err != nil {
		return 0, err
	}
	err = m.write(ctx, func(t *Tables) (err error) {
		count, err = t.Raise(key, floor, by)
		return err
	})
	return count, err
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
	m.values, m.counters, m.leases = nil, nil, nil
	m.events.Close()
	return nil
}
