package store

import (
	"container/heap"
	"strings"
	"time"
)

// ItemOverhead is the approximate memory of an item beside its bytes.
const ItemOverhead = 128

// item is the content of a key in a Memory.
type item struct {
	key     string
	number  uint64
	value   []byte
	owner   string    // of a lease
	expires time.Time // zero: never
	index   int       // in the queue of its table, if it expires
}

// newItem copies the key: it may be part of a larger string that would be kept alive
// with it.
func newItem(key string, number uint64, ttl time.Duration, now time.Time) *item {
	it := &item{key: strings.Clone(key), number: number}
	if ttl > 0 {
		it.expires = now.Add(ttl)
	}
	return it
}

func (it *item) size() int { return len(it.key) + len(it.value) + len(it.owner) + ItemOverhead }

func (it *item) expired(now time.Time) bool { return !it.expires.IsZero() && !now.Before(it.expires) }

// left is the rest of the item's lifetime; 0: it does not expire.
func (it *item) left(now time.Time) time.Duration {
	if it.expires.IsZero() {
		return 0
	}
	return it.expires.Sub(now)
}

// table holds items by key, and those with a lifetime in the order of their expiry.
type table struct {
	items map[string]*item
	queue queue
	size  int // of the items together
}

func newTable() table { return table{items: make(map[string]*item)} }

// get returns the item of a key, nil if there is none or it has expired.
func (t *table) get(key string, now time.Time) *item {
	it := t.items[key]
	if it == nil || it.expired(now) {
		return nil
	}
	return it
}

// sizeOf is the size of a key's item, expired or not.
func (t *table) sizeOf(key string) int {
	if it := t.items[key]; it != nil {
		return it.size()
	}
	return 0
}

func (t *table) set(it *item) {
	if old := t.items[it.key]; old != nil {
		t.remove(old)
	}
	t.items[it.key] = it
	t.size += it.size()
	if !it.expires.IsZero() {
		heap.Push(&t.queue, it)
	}
}

func (t *table) remove(it *item) {
	delete(t.items, it.key)
	t.size -= it.size()
	if !it.expires.IsZero() {
		heap.Remove(&t.queue, it.index)
	}
}

// extend changes the expiry of an item that expires.
func (t *table) extend(it *item, expires time.Time) {
	it.expires = expires
	heap.Fix(&t.queue, it.index)
}

// sweep removes expired items.
func (t *table) sweep(now time.Time) {
	for len(t.queue) > 0 && t.queue[0].expired(now) {
		t.remove(t.queue[0])
	}
}

// dropSoonest removes the item that would expire first and reports whether
// there was one.
func (t *table) dropSoonest() bool {
	if len(t.queue) == 0 {
		return false
	}
	t.remove(t.queue[0])
	return true
}

// queue is a heap.Interface with the item that expires first at the front.
type queue []*item

func (q *queue) Len() int           { return len(*q) }
func (q *queue) Less(i, j int) bool { return (*q)[i].expires.Before((*q)[j].expires) }

func (q *queue) Swap(i, j int) {
	items := *q
	items[i], items[j] = items[j], items[i]
	items[i].index, items[j].index = i, j
}

func (q *queue) Push(x any) {
	it := x.(*item) //nolint:forcetypeassert // container/heap hands on what table pushed
	it.index = len(*q)
	*q = append(*q, it)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	it := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return it
}
