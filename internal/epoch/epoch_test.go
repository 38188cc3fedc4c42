package epoch_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/epoch"
	"github.com/cezzis/tokenbroker/internal/store"
)

// interrupted is a store in which something happens right after the record of a purge was
// written.
type interrupted struct {
	*store.Memory

	then func()
}

func (i interrupted) Apply(ctx context.Context, change store.Change) ([]bool, error) {
	applied, err := i.Memory.Apply(ctx, change)
	i.then()
	return applied, err
}

// The store has lost an epoch that is ahead of the clock of the replica that purges.
// Another replica restores it in the middle of the purge. The purge must still begin a new
// epoch, because tokens of the restored one are older than the purge.
func TestPurgeBeginsAnEpochAlthoughALostOneIsRestored(t *testing.T) {
	shared := store.NewMemory(store.MemoryConfig{})
	old := uint64(time.Now().Add(time.Hour).UnixMilli())
	restore := func() {
		if _, err := shared.Raise(t.Context(), "epoch", old, 0); err != nil {
			t.Fatal(err)
		}
	}
	purging := &epoch.Counters{Store: interrupted{shared, restore}, EpochKey: "epoch", FenceKey: "fences"}
	if _, err := purging.AdvanceOnce(t.Context(), "request"); err != nil {
		t.Fatal(err)
	}
	first := purging.Epoch()
	if first <= old {
		t.Errorf("the purge was acknowledged with the epoch %d; tokens of the epoch %d from before it stay usable", first, old)
	}
	// A repetition changes nothing.
	if _, err := purging.AdvanceOnce(t.Context(), "request"); err != nil || purging.Epoch() != first {
		t.Errorf("the repeated purge: epoch %d after %d, %v", purging.Epoch(), first, err)
	}
}

// counters returns the counters of a replica in a store.
func counters(s store.Store) *epoch.Counters {
	return &epoch.Counters{Store: s, EpochKey: "epoch", FenceKey: "fences"}
}

func stored(t *testing.T, s store.Store, key string) uint64 {
	t.Helper()
	entries, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return entries[0].Number
}

func raise(t *testing.T, s store.Store, key string, to uint64) {
	t.Helper()
	if _, err := s.Raise(t.Context(), key, to, 0); err != nil {
		t.Fatal(err)
	}
}

// fired reports whether the epoch was raised since the channel was made.
func fired(changed <-chan struct{}) bool {
	select {
	case <-changed:
		return true
	default:
		return false
	}
}

func TestFenceOnlyGrows(t *testing.T) {
	c := counters(store.NewMemory(store.MemoryConfig{}))
	for _, step := range []struct{ fence, want uint64 }{{0, 0}, {5, 5}, {3, 5}, {5, 5}, {6, 6}} {
		if c.RaiseFence(step.fence); c.Fence() != step.want {
			t.Errorf("after the fence %d the highest is %d, want %d", step.fence, c.Fence(), step.want)
		}
	}
}

func TestAdopt(t *testing.T) {
	for name, test := range map[string]struct {
		known, stored, told  uint64
		wantKnown, wantStore uint64
		changed              bool
	}{
		"a new epoch":                         {7, 8, 8, 8, 8, true},
		"the same":                            {7, 7, 7, 7, 7, false},
		"nothing known yet":                   {0, 5, 5, 5, 5, true},
		"the store has lost it":               {7, 0, 0, 7, 7, false},
		"an old look":                         {7, 7, 5, 7, 7, false},
		"another purge after the loss":        {7, 3, 3, 8, 8, true},
		"an old look, while the store is new": {7, 9, 5, 9, 9, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := store.NewMemory(store.MemoryConfig{})
			raise(t, s, "epoch", test.known)
			c := counters(s)
			c.Adopt(t.Context(), test.known)
			other := store.NewMemory(store.MemoryConfig{}) // in place of the store that lost its data
			raise(t, other, "epoch", test.stored)
			c.Store = other
			changed := c.Changed.Next()
			c.Adopt(t.Context(), test.told)
			if got := stored(t, other, "epoch"); c.Epoch() != test.wantKnown || got != test.wantStore {
				t.Errorf("the replica knows %d and the store %d, want %d and %d", c.Epoch(), got, test.wantKnown, test.wantStore)
			}
			if fired(changed) != test.changed {
				t.Errorf("changed: %v", !test.changed)
			}
		})
	}
}

// While the store fails, a replica keeps the epoch that it knows.
func TestAdopt_failingStore(t *testing.T) {
	s := store.NewMemory(store.MemoryConfig{})
	c := counters(s)
	c.Adopt(t.Context(), 7)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c.Adopt(t.Context(), 5)
	if c.Epoch() != 7 {
		t.Errorf("the epoch is %d, want 7", c.Epoch())
	}
}

func TestInherit(t *testing.T) {
	old, next := counters(store.NewMemory(store.MemoryConfig{})), counters(store.NewMemory(store.MemoryConfig{}))
	old.Adopt(t.Context(), 7)
	old.RaiseFence(3)
	next.Inherit(old)
	if next.Epoch() != 7 || next.Fence() != 3 {
		t.Errorf("epoch %d, fence %d", next.Epoch(), next.Fence())
	}
}

func TestSynchronize(t *testing.T) {
	s := store.NewMemory(store.MemoryConfig{})
	var all []*epoch.Counters
	for i := range store.MaxKeys { // more than one call can read
		c := &epoch.Counters{Store: s, EpochKey: fmt.Sprint("epoch", i), FenceKey: fmt.Sprint("fences", i)}
		raise(t, s, c.EpochKey, uint64(i+1))
		c.RaiseFence(uint64(i + 10))
		if i%2 == 1 {
			raise(t, s, c.FenceKey, uint64(i+20)) // the store has a higher one
		}
		all = append(all, c)
	}
	if !epoch.Synchronize(t.Context(), s, all...) {
		t.Fatal("the store did not return all counters")
	}
	for i, c := range all {
		want := uint64(i + 10)
		if i%2 == 1 {
			want = uint64(i + 20)
		}
		if c.Epoch() != uint64(i+1) || stored(t, s, c.FenceKey) != want {
			t.Errorf("client %d: epoch %d, fence in the store %d, want %d", i, c.Epoch(), stored(t, s, c.FenceKey), want)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if epoch.Synchronize(t.Context(), s, all...) {
		t.Error("a closed store returned all counters")
	}
	if all[0].Epoch() != 1 {
		t.Errorf("after a failure the epoch is %d", all[0].Epoch())
	}
}

// partly is a store that cannot read one key.
type partly struct {
	*store.Memory

	unread string
}

func (p partly) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	entries, err := p.Memory.Get(ctx, keys...)
	if i := slices.Index(keys, p.unread); err == nil && i >= 0 {
		entries[i] = store.Entry{}
		err = &store.UnreadError{Unread: map[int]bool{i: true}, Err: store.ErrAway}
	}
	return entries, err
}

// A counter that could not be read is not a counter that was lost.
func TestSynchronize_partOfTheStoreIsAway(t *testing.T) {
	memory := store.NewMemory(store.MemoryConfig{})
	first, second := &epoch.Counters{Store: memory, EpochKey: "e1", FenceKey: "f1"}, &epoch.Counters{Store: memory, EpochKey: "e2", FenceKey: "f2"}
	for _, key := range []string{"e1", "e2"} {
		raise(t, memory, key, 5)
	}
	second.RaiseFence(9)
	if epoch.Synchronize(t.Context(), partly{memory, "e1"}, first, second) {
		t.Error("the store returned all counters")
	}
	if first.Epoch() != 0 || second.Epoch() != 5 || stored(t, memory, "f2") != 9 {
		t.Errorf("epochs %d and %d, the fence of the second %d", first.Epoch(), second.Epoch(), stored(t, memory, "f2"))
	}
	first.RaiseFence(4)
	epoch.Synchronize(t.Context(), partly{memory, "f1"}, first)
	if stored(t, memory, "f1") != 0 || first.Epoch() != 5 {
		t.Errorf("a fence that could not be read was put back: %d; epoch %d", stored(t, memory, "f1"), first.Epoch())
	}
}

func TestAdvance(t *testing.T) {
	s := store.NewMemory(store.MemoryConfig{})
	c, other := counters(s), counters(s)
	before := uint64(time.Now().UnixMilli())
	if err := c.Advance(t.Context()); err != nil || c.Epoch() <= before {
		t.Fatalf("the first epoch is %d, not above the clock %d: %v", c.Epoch(), before, err)
	}
	first := c.Epoch()
	c.Adopt(t.Context(), first+1_000_000) // ahead of the clock
	if err := c.Advance(t.Context()); err != nil || c.Epoch() != first+1_000_001 {
		t.Errorf("the next epoch is %d after %d: %v", c.Epoch(), first+1_000_000, err)
	}
	if err := other.Advance(t.Context()); err != nil || other.Epoch() != first+1_000_002 {
		t.Errorf("the epoch of another replica is %d: %v", other.Epoch(), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Advance(t.Context()); err == nil || c.Epoch() != first+1_000_001 {
		t.Errorf("a closed store: %v, epoch %d", err, c.Epoch())
	}
}

func TestAdvanceOnce(t *testing.T) {
	s := store.NewMemory(store.MemoryConfig{})
	c, other := counters(s), counters(s)
	before := uint64(time.Now().UnixMilli())
	target, err := c.AdvanceOnce(t.Context(), "request")
	if err != nil || target <= before || c.Epoch() != target || stored(t, s, "epoch") != target {
		t.Fatalf("epoch %d, the store has %d, the target is %d, the clock was %d: %v", c.Epoch(), stored(t, s, "epoch"), target, before, err)
	}
	record, err := s.Get(t.Context(), "request")
	if err != nil || record[0].TTL <= 23*time.Hour || record[0].TTL > 24*time.Hour {
		t.Errorf("the request is remembered for %v: %v", record[0].TTL, err)
	}
	if again, err := other.AdvanceOnce(t.Context(), "request"); err != nil || again != target || other.Epoch() != target {
		t.Errorf("repeated at another replica: %d, epoch %d, want %d: %v", again, other.Epoch(), target, err)
	}
	if next, err := other.AdvanceOnce(t.Context(), "another"); err != nil || next <= target || other.Epoch() != next {
		t.Errorf("another request begins %d after %d, epoch %d: %v", next, target, other.Epoch(), err)
	}
}

// The first call was interrupted after the record of its request: a repetition completes it.
func TestAdvanceOnce_interrupted(t *testing.T) {
	s := store.NewMemory(store.MemoryConfig{})
	const target = 7_000_000_000_000
	record := store.Put{Key: "request", Number: 1, Value: []byte(strconv.Itoa(target)), TTL: time.Hour}
	if _, err := s.Apply(t.Context(), store.Change{Puts: []store.Put{record}}); err != nil {
		t.Fatal(err)
	}
	c := counters(s)
	if got, err := c.AdvanceOnce(t.Context(), "request"); err != nil || got != target || c.Epoch() != target {
		t.Errorf("%d, epoch %d, want %d: %v", got, c.Epoch(), target, err)
	}
}

// raced is a store in which another replica writes its record of the request first.
type raced struct {
	*store.Memory

	record string
}

func (r raced) Apply(ctx context.Context, change store.Change) ([]bool, error) {
	other := store.Put{Key: change.Puts[0].Key, Number: 1, Value: []byte(r.record), TTL: time.Hour}
	if _, err := r.Memory.Apply(ctx, store.Change{Puts: []store.Put{other}}); err != nil {
		return nil, err
	}
	return r.Memory.Apply(ctx, change)
}

func TestAdvanceOnce_atTwoReplicas(t *testing.T) {
	const target = 7_000_000_000_000
	for name, test := range map[string]struct {
		record string
		want   uint64
	}{"a record": {strconv.Itoa(target), target}, "an unreadable record": {"?", 0}} {
		t.Run(name, func(t *testing.T) {
			s := store.NewMemory(store.MemoryConfig{})
			c := counters(raced{s, test.record})
			before := uint64(time.Now().UnixMilli())
			got, err := c.AdvanceOnce(t.Context(), "request")
			if err != nil || test.want > 0 && got != test.want || got <= before || c.Epoch() != got {
				t.Errorf("%d, epoch %d, want %d: %v", got, c.Epoch(), test.want, err)
			}
		})
	}
}

func TestAdvanceOnce_failingStore(t *testing.T) {
	s := store.NewMemory(store.MemoryConfig{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c := counters(s)
	if got, err := c.AdvanceOnce(t.Context(), "request"); err == nil || got != 0 || c.Epoch() != 0 {
		t.Errorf("%d, epoch %d, %v", got, c.Epoch(), err)
	}
	// The record is written, but the epoch is not raised: the call must fail.
	halfway := &failingRaise{store.NewMemory(store.MemoryConfig{})}
	c = counters(halfway)
	if got, err := c.AdvanceOnce(t.Context(), "request"); err == nil || got != 0 || c.Epoch() != 0 {
		t.Errorf("halfway: %d, epoch %d, %v", got, c.Epoch(), err)
	}
}

type failingRaise struct{ *store.Memory }

func (failingRaise) Raise(context.Context, string, uint64, uint64) (uint64, error) {
	return 0, store.ErrAway
}
