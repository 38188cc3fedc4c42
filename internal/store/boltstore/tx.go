package boltstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/cezzis/tokenbroker/internal/store"
)

// The buckets. Each table has one for its items and a queue of its expiring items in the
// order of expiry.
const (
	bucketMeta     = "meta"
	bucketValues   = "values"
	bucketCounters = "counters"
	bucketLeases   = "leases"
	byExpiry       = " by expiry"
)

// tx is a transaction with its tables.
type tx struct {
	now      time.Time
	maxBytes uint64

	values, counters, leases table
	changed                  []string // reported to subscribers once the transaction is on disk
}

func newTx(from *bolt.Tx, maxBytes uint64) *tx {
	return &tx{
		now:      time.Now(),
		maxBytes: maxBytes,
		values:   newTable(from, bucketValues),
		counters: newTable(from, bucketCounters),
		leases:   newTable(from, bucketLeases),
	}
}

// err returns the errors of the transaction as a whole.
func (t *tx) err() error { return errors.Join(t.values.err, t.counters.err, t.leases.err) }

func (t *tx) dirty() bool { return t.values.dirty || t.counters.dirty || t.leases.dirty }

func (t *tx) acquire(claim store.Claim) (fence uint64, acquired bool, err error) {
	expires := expiry(t.now, claim.TTL)
	if held, there := t.leases.get(claim.Key, t.now); there {
		if string(held.value) != claim.Owner {
			if held.expires > expires {
				held.expires = expires
				t.leases.set(held)
			}
			return 0, false, nil
		}
		held.expires = expires
		t.leases.set(held)
		return held.number, true, nil
	}
	fence, err = store.Raised(t.count(claim.Counter), claim.Floor, 1)
	if err != nil {
		return 0, false, err
	}
	counter := item{key: claim.Counter, number: fence}
	grant := item{key: claim.Key, number: fence, expires: expires, value: []byte(claim.Owner)}
	if err := t.makeRoom(write{&t.counters, counter}, write{&t.leases, grant}); err != nil {
		return 0, false, err
	}
	t.counters.set(counter)
	t.leases.set(grant)
	return fence, true, nil
}

func (t *tx) renew(lease store.Lease, ttl time.Duration) bool {
	held, there := t.leases.get(lease.Key, t.now)
	if !there || string(held.value) != lease.Owner {
		return false
	}
	held.expires = expiry(t.now, ttl)
	t.leases.set(held)
	return true
}

func (t *tx) apply(change store.Change) ([]bool, error) {
	applied := make([]bool, len(change.Puts))
	var writes []write
	for i, put := range change.Puts {
		if it, there := t.values.get(put.Key, t.now); there && it.number >= put.Number {
			continue
		}
		applied[i] = true
		it := item{key: put.Key, number: put.Number, expires: expiry(t.now, put.TTL), value: put.Value}
		writes = append(writes, write{&t.values, it})
	}
	if err := t.makeRoom(writes...); err != nil {
		return nil, err
	}
	for _, w := range writes {
		w.to.set(w.item)
		t.changed = append(t.changed, w.item.key)
	}
	held, there := t.leases.get(change.Release.Key, t.now)
	if there && string(held.value) == change.Release.Owner {
		t.leases.remove(held)
		t.changed = append(t.changed, held.key)
	}
	return applied, nil
}

func (t *tx) raise(key string, floor, by uint64) (uint64, error) {
	before := t.count(key)
	count, err := store.Raised(before, floor, by)
	if err != nil || count == before {
		return count, err
	}
	counter := item{key: key, number: count}
	if err := t.makeRoom(write{&t.counters, counter}); err != nil {
		return 0, err
	}
	t.counters.set(counter)
	t.changed = append(t.changed, key)
	return count, nil
}

func (t *tx) count(key string) uint64 {
	it, _ := t.counters.get(key, t.now)
	return it.number
}

type write struct {
	to   *table
	item item
}

// makeRoom drops items, as MemoryConfig describes, until the writes fit.
func (t *tx) makeRoom(writes ...write) error {
	for len(writes) > 0 && t.sizeAfter(writes) > t.maxBytes {
		if !t.leases.sweepOne(t.now) && !t.values.dropSoonest() {
			return store.ErrFull
		}
	}
	return nil
}

func (t *tx) sizeAfter(writes []write) uint64 {
	size := t.values.size() + t.counters.size() + t.leases.size()
	for _, w := range writes {
		size = size + w.item.size() - w.to.sizeOf(w.item.key)
	}
	return size
}

// sweep frees at most this number of expired values, and of expired leases.
func (t *tx) sweep(most int) {
	for range most {
		value, lease := t.values.sweepOne(t.now), t.leases.sweepOne(t.now)
		if !value && !lease {
			return
		}
	}
}

// item is the content of a key.
type item struct {
	key     string
	expires uint64 // a unixNano. 0: never
	number  uint64
	value   []byte // of a lease: the owner
}

func (it item) size() uint64 { return uint64(len(it.key) + len(it.value) + store.ItemOverhead) }

func (it item) expired(now time.Time) bool { return it.expires != 0 && unixNano(now) >= it.expires }

// left is the rest of the lifetime of an item that has not expired; 0: it does not
// expire.
func (it item) left(now time.Time) time.Duration {
	if it.expires == 0 {
		return 0
	}
	return time.Duration(min(it.expires-unixNano(now), math.MaxInt64))
}

// unixNano is the wall clock in nanoseconds since 1970, which fit until 2554:
// no lifetime reaches beyond that.
func unixNano(at time.Time) uint64 {
	return uint64(max(at.Unix(), 0))*uint64(time.Second) + uint64(at.Nanosecond()) //nolint:gosec // neither is negative
}

// expiry is the unixNano after ttl.
func expiry(now time.Time, ttl time.Duration) uint64 {
	if ttl == 0 {
		return 0
	}
	return unixNano(now.Add(ttl))
}

// itemHeader is the length of the header before the value: expiry and number.
const itemHeader = 16

func (it item) encode() []byte {
	data := make([]byte, 0, itemHeader+len(it.value))
	data = binary.BigEndian.AppendUint64(data, it.expires)
	data = binary.BigEndian.AppendUint64(data, it.number)
	return append(data, it.value...)
}

// decodeItem is the inverse of encode. The value is a slice of data.
func decodeItem(key string, data []byte) (it item, ok bool) {
	if len(data) < itemHeader {
		return item{}, false
	}
	return item{
		key:     key,
		expires: binary.BigEndian.Uint64(data),
		number:  binary.BigEndian.Uint64(data[8:]),
		value:   data[itemHeader:],
	}, true
}

// queueKey sorts by expiry.
func (it item) queueKey() []byte {
	return append(binary.BigEndian.AppendUint64(nil, it.expires), it.key...)
}

// table holds items. The bucket's sequence stores the total size of its items: so it
// is correct after a failed transaction, too.
type table struct {
	items, queue *bolt.Bucket

	dirty bool
	err   error // the first error; a transaction with an error must not be committed
}

func newTable(tx *bolt.Tx, name string) table {
	return table{items: tx.Bucket([]byte(name)), queue: tx.Bucket([]byte(name + byExpiry))}
}

// whole reads the table and reports whether it is consistent: the keys are in order and
// each is found, and expiring items are in the queue.
func (t *table) whole() bool {
	if t.items == nil || t.queue == nil {
		return false
	}
	queued := 0
	ordered := inOrder(t.items, func(key, data []byte) bool {
		it, ok := decodeItem(string(key), data)
		if ok && it.expires != 0 {
			queued++
			ok = t.queue.Get(it.queueKey()) != nil
		}
		return ok
	})
	return ordered && inOrder(t.queue, func(_, _ []byte) bool {
		queued--
		return true
	}) && queued == 0
}

// inOrder reports whether the keys of the bucket are in order, each is found, and
// good accepts all of them.
func inOrder(bucket *bolt.Bucket, good func(key, data []byte) bool) bool {
	var last []byte
	return nil == bucket.ForEach(func(key, data []byte) error {
		if bytes.Compare(key, last) <= 0 || bucket.Get(key) == nil || !good(key, data) {
			return errDamaged
		}
		last = key
		return nil
	})
}

// note records a change of a bucket, and keeps the first error.
func (t *table) note(err error) {
	t.dirty = true
	if t.err == nil {
		t.err = err
	}
}

// find returns the item of a key, expired or not. Its value is valid during
// the transaction, and until the next change in it.
func (t *table) find(key string) (item, bool) {
	if key == "" {
		return item{}, false
	}
	return decodeItem(key, t.items.Get([]byte(key)))
}

func (t *table) get(key string, now time.Time) (item, bool) {
	it, there := t.find(key)
	if !there || it.expired(now) {
		return item{}, false
	}
	return it, true
}

func (t *table) size() uint64 { return t.items.Sequence() }

// sizeOf is the size of a key's item, expired or not.
func (t *table) sizeOf(key string) uint64 {
	if it, there := t.find(key); there {
		return it.size()
	}
	return 0
}

func (t *table) set(it item) {
	data := it.encode() // before the change, which may invalidate the value
	if old, there := t.find(it.key); there {
		t.remove(old)
	}
	t.note(t.items.Put([]byte(it.key), data))
	t.note(t.items.SetSequence(t.size() + it.size()))
	if it.expires != 0 {
		t.note(t.queue.Put(it.queueKey(), nil))
	}
}

func (t *table) remove(it item) {
	t.note(t.items.SetSequence(t.size() - it.size()))
	if it.expires != 0 {
		t.note(t.queue.Delete(it.queueKey()))
	}
	t.note(t.items.Delete([]byte(it.key)))
}

// soonest returns the item that expires first.
func (t *table) soonest() (item, bool) {
	first, _ := t.queue.Cursor().First()
	if len(first) < 8 {
		return item{}, false
	}
	return t.find(string(first[8:]))
}

// sweepOne removes the item that expired first and reports whether there was
// one.
func (t *table) sweepOne(now time.Time) bool {
	it, there := t.soonest()
	if !there || !it.expired(now) {
		return false
	}
	t.remove(it)
	return true
}

// dropSoonest removes the item that would expire first and reports whether
// there was one.
func (t *table) dropSoonest() bool {
	it, there := t.soonest()
	if there {
		t.remove(it)
	}
	return there
}
