package revocation

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

const (
	// shardCount is the number of store values that hold the revocations.
	shardCount = 16
	// form is the version of the stored form.
	form = 1
	// LoadInterval is the time between attempts at the first load.
	LoadInterval = time.Second
)

// Set synchronizes the revocations of this replica with those in the store.
//
// The store keeps them in shardCount values.
type Set struct {
	store   store.Store
	shards  []string // the keys of the values
	changes store.ChangeCount

	// view is nil until the first load.
	view atomic.Pointer[View]
	// currentAt is when they last included all those in the store, in Unix nanoseconds;
	// 0: never.
	currentAt atomic.Int64
	// news coalesces notifications from the store.
	news store.Coalescer

	// turn is held while the store is read or changed. It guards the following fields.
	turn    chan struct{}
	tried   time.Time // when loading last failed
	failure error

	marker  Marker        // nil: no marker is used
	putBack time.Duration // time for others to restore lost data
	log     *slog.Logger
	// lostSince is when this replica, with no revocations of its own, first found the store
	// without its data; zero: the store has them.
	lostSince time.Time
	// unreadable is why this replica cannot read revocations that others have stored; nil:
	// it can.
	unreadable atomic.Pointer[error]
}

// lock acquires the turn, unless ctx ends before.
func (r *Set) lock(ctx context.Context) error {
	select {
	case r.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Set) unlock() { <-r.turn }

// Config configures a set of revocations.
type Config struct {
	// Store is where replicas share the revocations.
	Store store.Store
	// Tag begins the keys in the store. It is a hash tag, so that they are in one slot.
	Tag string
	// Marker shows whether the store is used with another ring. Nil: nothing is sealed.
	Marker Marker
	// PutBack is how long a replica that has just started waits for others to restore the
	// revocations that the store has lost. 0: no other replica uses the store.
	PutBack time.Duration
	// Logger receives a message when the revocations become unreadable, and when they are
	// readable again.
	Logger *slog.Logger
}

// New returns a set that loads the revocations on first use.
func New(cfg Config) *Set {
	r := &Set{store: cfg.Store, turn: make(chan struct{}, 1), marker: cfg.Marker, putBack: cfg.PutBack, log: cfg.Logger}
	r.changes.Store, r.changes.Key = cfg.Store, cfg.Tag+"changes"
	for i := range shardCount {
		r.shards = append(r.shards, cfg.Tag+strconv.Itoa(i))
	}
	return r
}

// Keys returns the keys in the store with events that wake the set.
func (r *Set) Keys() []string { return slices.Concat(r.shards, []string{r.changes.Key}) }

// Wake checks for a change after a notification from the store. The check runs in a
// goroutine that spawn starts, until ctx ends.
func (r *Set) Wake(ctx context.Context, spawn func(work func()) bool) {
	r.news.Run(spawn, func() { r.Poll(ctx, 0) })
}

// Ready reports whether the revocations are available to check tokens.
func (r *Set) Ready() bool { return r.usable() != nil }

// Unreadable returns why this replica cannot read revocations that others have stored; nil
// if it can, or if the store is unreachable.
func (r *Set) Unreadable() error {
	if err := r.unreadable.Load(); err != nil {
		return *err
	}
	return nil
}

// Current returns when the revocations last included all those in the store; zero: never.
func (r *Set) Current() time.Time {
	nanoseconds := r.currentAt.Load()
	if nanoseconds == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds)
}

// Find returns the revocation with an ID, or nil if it is not known here.
func (r *Set) Find(id string) *Revocation {
	view := r.view.Load()
	if view == nil {
		return nil
	}
	return view.byID[id]
}

// View returns the revocations. It loads them first if they were never loaded, or if a
// failure that note recorded prevents their use. An error means that no token may be
// accepted.
func (r *Set) View(ctx context.Context) (*View, error) {
	if usable := r.usable(); usable != nil {
		return usable, nil
	}
	if err := r.lock(ctx); err != nil {
		return nil, err
	}
	defer r.unlock()
	if usable := r.usable(); usable != nil {
		return usable, nil
	}
	if time.Since(r.tried) < LoadInterval {
		return nil, r.failure
	}
	if _, err := r.load(ctx); err != nil {
		r.tried, r.failure = time.Now(), err
		if reason := r.unreadable.Load(); reason != nil {
			r.failure = *reason // also while the store is unreachable
		}
		return nil, r.failure
	}
	return r.view.Load(), nil
}

// Poll checks for a change. In some rounds it does not trust the counter.
func (r *Set) Poll(ctx context.Context, round int) {
	if r.lock(ctx) != nil {
		return
	}
	defer r.unlock()
	if r.usable() != nil && round%store.ReloadRounds != 0 {
		unchanged, err := r.unchanged(ctx)
		if unchanged {
			r.currentAt.Store(time.Now().UnixNano())
		}
		if unchanged || err != nil {
			r.note(err)
			return
		}
	}
	_, _ = r.load(ctx) // on failure, the next round retries
}

// unchanged reports whether the store still has its marker and no change that is unknown
// here.
func (r *Set) unchanged(ctx context.Context) (bool, error) {
	marked, err := r.marked(ctx)
	if err != nil || !marked {
		return false, err
	}
	_, moved, err := r.changes.Moved(ctx)
	return err == nil && !moved, err
}

// load reads all revocations, adopts new ones, and restores the ones lost from the store,
// and afterwards its marker. It returns the present numbers of the values.
func (r *Set) load(ctx context.Context) (numbers []uint64, err error) {
	defer func() { r.note(err) }()
	marked, found, err := r.read(ctx)
	if err != nil {
		r.lostSince = time.Time{} // others cannot restore revocations while the store fails
		return nil, err
	}
	count := found[len(r.shards)].Number
	lost := !marked || count == 0
	if err := r.mayBegin(lost); err != nil {
		return nil, err
	}
	numbers, err = r.adopt(ctx, found[:len(r.shards)], count, lost)
	if err == nil && !marked {
		err = r.mark(ctx)
	}
	return numbers, err
}

// read reads the marker, then the values, then the count of changes.
func (r *Set) read(ctx context.Context) (marked bool, entries []store.Entry, err error) {
	if marked, err = r.marked(ctx); err != nil {
		return false, nil, err
	}
	entries, err = r.store.Get(ctx, slices.Concat(r.shards, []string{r.changes.Key})...)
	return marked, entries, err
}

// adopt merges the stored revocations into the set, and writes the missing ones to the
// store. Restored data counts as one change, after all of it was written: a replica that
// has just started takes a store without a count for one that has lost its data.
func (r *Set) adopt(ctx context.Context, entries []store.Entry, count uint64, lost bool) (numbers []uint64, err error) {
	var stored []*Revocation
	numbers = make([]uint64, len(entries))
	for i, entry := range entries {
		some, err := readRevocations(entry)
		if err != nil {
			return nil, err
		}
		numbers[i] = entry.Number
		stored = append(stored, some...)
	}
	now := time.Now()
	all := merged(r.All(), stored, now)
	r.view.Store(newView(all))
	r.currentAt.Store(now.UnixNano()) // also if the store does not take the missing ones back
	changed := lost || count < r.changes.Seen.Load()
	kept := byShard(all)
	for i, before := range byShard(merged(stored, nil, now)) {
		if !same(before, kept[i]) || entries[i].Aged {
			if numbers[i], err = r.write(ctx, i, numbers[i], kept[i]); err != nil {
				return nil, err
			}
			changed = true
		}
	}
	r.changes.Seen.Store(max(count, r.changes.Seen.Load()))
	if changed {
		if err := r.changes.Raise(ctx); err != nil {
			return nil, err
		}
	}
	return numbers, nil
}

// write replaces the stored value that was read with number.
func (r *Set) write(ctx context.Context, shard int, number uint64, content []*Revocation) (uint64, error) {
	value, err := json.Marshal(storedRevocations{form, content})
	if err != nil {
		return 0, err
	}
	return store.CompareAndSwap(ctx, r.store, r.shards[shard], number, value)
}

// Put applies a change of one revocation to the store and to this replica. It returns nil
// only if the store has it.
func (r *Set) Put(ctx context.Context, revocation *Revocation) error {
	if err := r.lock(ctx); err != nil {
		return err
	}
	defer r.unlock()
	return store.RetryOvertaken(func() error { return r.tryChange(ctx, revocation) })
}

func (r *Set) tryChange(ctx context.Context, revocation *Revocation) error {
	numbers, err := r.load(ctx)
	if err != nil {
		return err
	}
	all := merged(r.All(), []*Revocation{revocation}, time.Now())
	if len(all) > MaxRevocations {
		return ErrTooManyRevocations
	}
	shard := shardOf(revocation.ID)
	if _, err := r.write(ctx, shard, numbers[shard], byShard(all)[shard]); err != nil {
		return err
	}
	r.view.Store(newView(all))
	return r.changes.Raise(ctx)
}

// ErrTooManyRevocations is the error of Put if there are MaxRevocations.
var ErrTooManyRevocations = fmt.Errorf("there are %d revocations already", MaxRevocations)

// Count returns how many revocations are known here.
func (r *Set) Count() int {
	if view := r.view.Load(); view != nil {
		return len(view.byID)
	}
	return 0
}

// All returns the revocations that are known here, oldest first.
func (r *Set) All() []*Revocation {
	view := r.view.Load()
	if view == nil {
		return nil
	}
	all := make([]*Revocation, 0, len(view.byID))
	for _, one := range view.byID {
		all = append(all, one)
	}
	slices.SortFunc(all, oldestFirst)
	return all
}

// storedRevocations is a value of the store.
type storedRevocations struct {
	Form        int           `json:"v"`
	Revocations []*Revocation `json:"revocations"`
}

// readRevocations returns an error for an unreadable value: treating it as empty would lift
// revocations.
func readRevocations(entry store.Entry) ([]*Revocation, error) {
	switch {
	case entry.Unopened:
		return nil, errSealedRevocations
	case entry.Number == 0:
		return nil, nil
	}
	var s storedRevocations
	if json.Unmarshal(entry.Value, &s) != nil || s.Form != form {
		return nil, errNewerRevocations
	}
	return s.Revocations, nil
}

func byShard(all []*Revocation) [shardCount][]*Revocation {
	var shards [shardCount][]*Revocation
	for _, one := range all {
		i := shardOf(one.ID)
		shards[i] = append(shards[i], one)
	}
	return shards
}

// shardOf maps an ID to a shard. IDs are random enough.
func shardOf(id string) int { return int(id[1]+31*id[2]) % shardCount }
