package store

import (
	"bytes"
	"time"
)

// itemOverhead is the approximate memory of an item beside its bytes.
const itemOverhead = 128

// Item is the content of a key in a Table.
type Item struct {
	Key     string
	Number  uint64
	Value   []byte    // of a lease: its owner
	Expires time.Time // zero: never
}

// Size is how much of the limit of its store the item takes.
func (it Item) Size() int { return len(it.Key) + len(it.Value) + itemOverhead }

func (it Item) expired(now time.Time) bool { return !it.Expires.IsZero() && !now.Before(it.Expires) }

// left is the rest of the lifetime of an item that has not expired; 0: it does not
// expire.
func (it Item) left(now time.Time) time.Duration {
	if it.Expires.IsZero() {
		return 0
	}
	return it.Expires.Sub(now)
}

// Table holds the items of one kind in a store.
type Table interface {
	// Find returns the item of a key, expired or not. Its value is valid until the next
	// change of the table.
	Find(key string) (it Item, found bool)
	// Set adds an item or replaces the item of the same key.
	Set(it Item)
	Remove(it Item)
	// Soonest returns the item that expires first, if any expires.
	Soonest() (it Item, found bool)
	// Size is the size of all items together.
	Size() int
}

// Tables are the content of a store for one transaction. The methods implement those of
// Store with the same names, for input that was checked.
type Tables struct {
	Now                      time.Time
	MaxBytes                 int // see MemoryConfig
	Values, Counters, Leases Table
	// Changed has the keys to report to subscribers when the transaction is over.
	Changed []string
}

func (t *Tables) get(from Table, key string) (Item, bool) {
	it, found := from.Find(key)
	if !found || it.expired(t.Now) {
		return Item{}, false
	}
	return it, true
}

// Get implements Store.Get.
func (t *Tables) Get(keys []string) []Entry {
	entries := make([]Entry, len(keys))
	for i, key := range keys {
		if it, found := t.get(t.Values, key); found {
			entries[i] = Entry{Number: it.Number, Value: bytes.Clone(it.Value), TTL: it.left(t.Now)}
		} else {
			entries[i] = Entry{Number: t.count(key)}
		}
	}
	return entries
}

// Acquire implements Store.Acquire.
func (t *Tables) Acquire(claim Claim) (Claimed, error) {
	lease, acquired, err := t.claim(claim)
	if err != nil {
		return Claimed{}, err
	}
	return Claimed{Acquired: acquired, Lease: lease, Entries: t.Get(claim.Read)}, nil
}

func (t *Tables) claim(claim Claim) (Lease, bool, error) {
	expires := t.Now.Add(claim.TTL)
	if held, found := t.get(t.Leases, claim.Key); found {
		ours := string(held.Value) == claim.Owner
		if ours || held.Expires.After(expires) {
			held.Expires = expires
			t.Leases.Set(held)
		}
		if !ours {
			return Lease{}, false, nil
		}
		return Lease{Key: claim.Key, Owner: claim.Owner, Fence: held.Number}, true, nil
	}
	fence, err := Raised(t.count(claim.Counter), claim.Floor, 1)
	if err != nil {
		return Lease{}, false, err
	}
	counter := Item{Key: claim.Counter, Number: fence}
	grant := Item{Key: claim.Key, Number: fence, Value: []byte(claim.Owner), Expires: expires}
	if err := t.set(write{t.Counters, counter}, write{t.Leases, grant}); err != nil {
		return Lease{}, false, err
	}
	return Lease{Key: claim.Key, Owner: claim.Owner, Fence: fence}, true, nil
}

// Renew implements Store.Renew.
func (t *Tables) Renew(lease Lease, ttl time.Duration) bool {
	held, found := t.get(t.Leases, lease.Key)
	if !found || string(held.Value) != lease.Owner {
		return false
	}
	held.Expires = t.Now.Add(ttl)
	t.Leases.Set(held)
	return true
}

// Apply implements Store.Apply.
func (t *Tables) Apply(change Change) ([]bool, error) {
	applied := make([]bool, len(change.Puts))
	var writes []write
	for i, put := range change.Puts {
		if it, found := t.get(t.Values, put.Key); found && it.Number >= put.Number {
			continue
		}
		applied[i] = true
		it := Item{Key: put.Key, Number: put.Number, Value: put.Value}
		if put.TTL > 0 {
			it.Expires = t.Now.Add(put.TTL)
		}
		writes = append(writes, write{t.Values, it})
	}
	if err := t.set(writes...); err != nil {
		return nil, err
	}
	var changed []string
	for _, w := range writes {
		changed = append(changed, w.item.Key)
	}
	held, found := t.get(t.Leases, change.Release.Key)
	if found && string(held.Value) == change.Release.Owner {
		t.Leases.Remove(held)
		changed = append(changed, held.Key)
	}
	if !change.Quiet {
		t.Changed = append(t.Changed, changed...)
	}
	return applied, nil
}

// Raise implements Store.Raise.
func (t *Tables) Raise(key string, floor, by uint64) (uint64, error) {
	before := t.count(key)
	count, err := Raised(before, floor, by)
	if err != nil || count == before {
		return count, err
	}
	if err := t.set(write{t.Counters, Item{Key: key, Number: count}}); err != nil {
		return 0, err
	}
	t.Changed = append(t.Changed, key)
	return count, nil
}

func (t *Tables) count(key string) uint64 {
	it, _ := t.Counters.Find(key) // counters do not expire
	return it.Number
}

// Sweep frees at most this number of expired values, and of expired leases.
func (t *Tables) Sweep(most int) {
	for range most {
		value, lease := t.sweepOne(t.Values), t.sweepOne(t.Leases)
		if !value && !lease {
			return
		}
	}
}

// sweepOne removes the item that expired first and reports whether there was one.
func (t *Tables) sweepOne(from Table) bool {
	it, found := from.Soonest()
	if !found || !it.expired(t.Now) {
		return false
	}
	from.Remove(it)
	return true
}

type write struct {
	to   Table
	item Item
}

// set writes all items or none. It first drops items, as MemoryConfig describes, until
// the writes fit.
func (t *Tables) set(writes ...write) error {
	for len(writes) > 0 && t.sizeAfter(writes) > t.MaxBytes {
		if t.sweepOne(t.Leases) {
			continue
		}
		soonest, found := t.Values.Soonest()
		if !found {
			return ErrFull
		}
		t.Values.Remove(soonest)
	}
	for _, w := range writes {
		w.to.Set(w.item)
	}
	return nil
}

func (t *Tables) sizeAfter(writes []write) int {
	size := t.Values.Size() + t.Counters.Size() + t.Leases.Size()
	for _, w := range writes {
		size += w.item.Size()
		if old, found := w.to.Find(w.item.Key); found {
			size -= old.Size()
		}
	}
	return size
}
