package boltstore

import (
	"bytes"
	"encoding/binary"
	"errors"
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
	store.Tables

	values, counters, leases *table
}

func newTx(from *bolt.Tx, maxBytes int) *tx {
	t := &tx{values: newTable(from, bucketValues), counters: newTable(from, bucketCounters), leases: newTable(from, bucketLeases)}
	t.Tables = store.Tables{Now: time.Now(), MaxBytes: maxBytes, Values: t.values, Counters: t.counters, Leases: t.leases}
	return t
}

// err returns the errors of the transaction as a whole.
func (t *tx) err() error { return errors.Join(t.values.err, t.counters.err, t.leases.err) }

func (t *tx) dirty() bool { return t.values.dirty || t.counters.dirty || t.leases.dirty }

// unixNano is the wall clock in nanoseconds since 1970, which fit until 2554:
// no lifetime reaches beyond that. It is 0 for an item that does not expire.
func unixNano(at time.Time) uint64 {
	return uint64(max(at.Unix(), 0))*uint64(time.Second) + uint64(at.Nanosecond()) //nolint:gosec // neither is negative
}

// itemHeader is the length of the header before the value: expiry and number.
const itemHeader = 16

func encode(it store.Item) []byte {
	data := make([]byte, 0, itemHeader+len(it.Value))
	data = binary.BigEndian.AppendUint64(data, unixNano(it.Expires))
	data = binary.BigEndian.AppendUint64(data, it.Number)
	return append(data, it.Value...)
}

// decodeItem is the inverse of encode. The value is a slice of data.
func decodeItem(key string, data []byte) (it store.Item, ok bool) {
	if len(data) < itemHeader {
		return store.Item{}, false
	}
	it = store.Item{Key: key, Number: binary.BigEndian.Uint64(data[8:]), Value: data[itemHeader:]}
	if expires := binary.BigEndian.Uint64(data); expires != 0 {
		const second = uint64(time.Second)
		it.Expires = time.Unix(int64(expires/second), int64(expires%second)) //nolint:gosec // both are far below the limit
	}
	return it, true
}

// queueKey sorts by expiry.
func queueKey(it store.Item) []byte {
	return append(binary.BigEndian.AppendUint64(nil, unixNano(it.Expires)), it.Key...)
}

// table holds items. The bucket's sequence stores the total size of its items: so it
// is correct after a failed transaction, too.
type table struct {
	items, queue *bolt.Bucket

	dirty bool
	err   error // the first error; a transaction with an error must not be committed
}

func newTable(tx *bolt.Tx, name string) *table {
	return &table{items: tx.Bucket([]byte(name)), queue: tx.Bucket([]byte(name + byExpiry))}
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
		if ok && !it.Expires.IsZero() {
			queued++
			ok = t.queue.Get(queueKey(it)) != nil
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

// Find implements store.Table.
func (t *table) Find(key string) (store.Item, bool) {
	if key == "" {
		return store.Item{}, false
	}
	return decodeItem(key, t.items.Get([]byte(key)))
}

// Size implements store.Table.
func (t *table) Size() int { return int(t.items.Sequence()) } //nolint:gosec // it is below the limit of the store

// Set implements store.Table.
func (t *table) Set(it store.Item) {
	data := encode(it) // before the change, which may invalidate the value
	if old, found := t.Find(it.Key); found {
		t.Remove(old)
	}
	t.note(t.items.Put([]byte(it.Key), data))
	t.resize(it.Size())
	if !it.Expires.IsZero() {
		t.note(t.queue.Put(queueKey(it), nil))
	}
}

// Remove implements store.Table.
func (t *table) Remove(it store.Item) {
	t.resize(-it.Size())
	if !it.Expires.IsZero() {
		t.note(t.queue.Delete(queueKey(it)))
	}
	t.note(t.items.Delete([]byte(it.Key)))
}

func (t *table) resize(by int) {
	t.note(t.items.SetSequence(uint64(t.Size() + by))) //nolint:gosec // the size of all items is not negative
}

// Soonest implements store.Table.
func (t *table) Soonest() (store.Item, bool) {
	first, _ := t.queue.Cursor().First()
	if len(first) < 8 {
		return store.Item{}, false
	}
	return t.Find(string(first[8:]))
}
