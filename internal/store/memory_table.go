package store

import (
	"bytes"
	"container/heap"
	"strings"
)

// memoryTable is a Table in memory.
type memoryTable struct {
	items map[string]*queued
	queue queue // the items with a lifetime, in the order of their expiry
	size  int   // of the items together
}

func newMemoryTable() *memoryTable { return &memoryTable{items: make(map[string]*queued)} }

// Find implements Table.
func (t *memoryTable) Find(key string) (Item, bool) {
	if it := t.items[key]; it != nil {
		return it.Item, true
	}
	return Item{}, false
}

// Set implements Table. It copies the key and the value: they may be part of something
// larger that would be kept alive with them.
func (t *memoryTable) Set(item Item) {
	t.Remove(item)
	item.Key, item.Value = strings.Clone(item.Key), bytes.Clone(item.Value)
	it := &queued{Item: item}
	t.items[it.Key] = it
	t.size += it.Size()
	if !it.Expires.IsZero() {
		heap.Push(&t.queue, it)
	}
}

// Remove implements Table.
func (t *memoryTable) Remove(item Item) {
	it := t.items[item.Key]
	if it == nil {
		return
	}
	delete(t.items, it.Key)
	t.size -= it.Size()
	if !it.Expires.IsZero() {
		heap.Remove(&t.queue, it.index)
	}
}

// Soonest implements Table.
func (t *memoryTable) Soonest() (Item, bool) {
	if len(t.queue) == 0 {
		return Item{}, false
	}
	return t.queue[0].Item, true
}

// Size implements Table.
func (t *memoryTable) Size() int { return t.size }

// queued is an item with its index in the queue, if it expires.
type queued struct {
	Item

	index int
}

// queue is a heap.Interface with the item that expires first at the front.
type queue []*queued

func (q *queue) Len() int           { return len(*q) }
func (q *queue) Less(i, j int) bool { return (*q)[i].Expires.Before((*q)[j].Expires) }

func (q *queue) Swap(i, j int) {
	items := *q
	items[i], items[j] = items[j], items[i]
	items[i].index, items[j].index = i, j
}

func (q *queue) Push(x any) {
	it := x.(*queued) //nolint:forcetypeassert // container/heap hands on what memoryTable pushed
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
