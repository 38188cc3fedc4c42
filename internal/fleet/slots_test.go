package fleet_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// replica publishes its status in a store.
type replica struct {
	*fleet.Publisher

	id fleet.Name
}

func join(t *testing.T, s store.Store, id fleet.Name) *replica {
	t.Helper()
	return &replica{fleet.NewPublisher(fleet.PublisherConfig{
		Store:  s,
		Record: func() fleet.Record { return *record(id) },
		Logger: slog.New(slog.DiscardHandler),
	}), id}
}

// publish publishes once.
func (r *replica) publish(t *testing.T) {
	t.Helper()
	if err := r.Publish(t.Context()); err != nil {
		t.Fatalf("%s: %v", r.id, err)
	}
}

// sees describes the other replicas that r can see.
func (r *replica) sees(t *testing.T) string {
	t.Helper()
	view := r.Read(t.Context(), r.id)
	if view.Err != nil {
		t.Fatal(view.Err)
	}
	var seen []string
	for _, m := range view.Members {
		switch {
		case m.Presence == fleet.Lost:
			seen = append(seen, string(m.Replica.ID)+":lost")
		case m.Presence == fleet.Sealed:
			seen = append(seen, "sealed")
		case m.Record == nil:
			seen = append(seen, string(m.Replica.ID)+":unreadable")
		default:
			seen = append(seen, string(m.Record.Replica.ID))
		}
	}
	return fmt.Sprint(seen)
}

func expectSeen(t *testing.T, r *replica, want string) {
	t.Helper()
	if got := r.sees(t); got != want {
		t.Errorf("%s sees %v, want %v", r.id, got, want)
	}
}

// shared is a store for several replicas, whose time can be moved.
type shared struct {
	store.Store

	advance func(d time.Duration)
}

func TestSlotsInMemory(t *testing.T) {
	t.Parallel()
	for _, test := range slotTests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test.run(t, shared{store.NewMemory(store.MemoryConfig{}), time.Sleep})
			})
		})
	}
}

func TestSlotsInSealedMemory(t *testing.T) {
	t.Parallel()
	for _, test := range slotTests {
		t.Run(test.name, func(t *testing.T) {
			ring := openRing(t, sealed.GenerateRing())
			synctest.Test(t, func(t *testing.T) {
				test.run(t, shared{sealed.New(store.NewMemory(store.MemoryConfig{}), ring), time.Sleep})
			})
		})
	}
}

func TestSlotsInRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.Options{})
	for i, test := range slotTests {
		t.Run(test.name, func(t *testing.T) {
			test.run(t, openRedis(t, server, fmt.Sprint("tb1:", i, ":")))
		})
	}
}

func openRing(t *testing.T, ring *sealed.Ring) *sealed.RingFile {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ring")
	testkit.WriteFile(t, file, string(ring.Reveal()))
	opened, err := sealed.OpenRing(file)
	if err != nil {
		t.Fatal(err)
	}
	return opened
}

// advanceRedis shortens the lifetimes of all keys.
const advanceRedis = `for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left > 0 then redis.call('PEXPIRE', key, math.max(left - ARGV[1], 0)) end
end`

func openRedis(t *testing.T, server *redistest.Server, prefix string) shared {
	t.Helper()
	r, err := redisstore.New(redisstore.Config{Addresses: []string{server.Addr()}, Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return shared{r, func(d time.Duration) { server.CLI("EVAL", advanceRedis, "0", fmt.Sprint(d.Milliseconds())) }}
}

// slotTests are the tests that every store must pass.
var slotTests = []struct {
	name string
	run  func(t *testing.T, s shared)
}{
	{"replicas see each other", func(t *testing.T, s shared) {
		a, b, c := join(t, s, "a"), join(t, s, "b"), join(t, s, "c")
		expectSeen(t, a, "[]")
		for _, r := range []*replica{a, b, c} {
			r.publish(t)
		}
		expectSeen(t, a, "[b c]")
		expectSeen(t, b, "[a c]")
		expectSeen(t, c, "[a b]")
		expectSlots(t, []int{0, 1, 2}, a, b, c)
	}},
	{"a replica is killed and another takes its slot", func(t *testing.T, s shared) {
		a, b, c := join(t, s, "a"), join(t, s, "b"), join(t, s, "c")
		for _, r := range []*replica{a, b, c} {
			r.publish(t)
		}
		s.pass(t, fleet.RecordTTL-fleet.Interval, a, c)
		expectSeen(t, a, "[b c]") // it may still write
		s.pass(t, fleet.Interval, a, c)
		expectSeen(t, a, "[b:lost c]")
		late := join(t, s, "d")
		late.publish(t)
		expectSeen(t, a, "[c d]")
		expectSlots(t, []int{0, 1, 2}, a, late, c)
	}},
	{"a loss is remembered for a while", func(t *testing.T, s shared) {
		a, b := join(t, s, "a"), join(t, s, "b")
		a.publish(t)
		b.publish(t)
		s.pass(t, 5*time.Minute, a)
		expectSeen(t, a, "[b:lost]")
		s.pass(t, 6*time.Minute, a)
		expectSeen(t, a, "[]")
	}},
	{"a replica that was suspended loses its slot", func(t *testing.T, s shared) {
		a, b := join(t, s, "a"), join(t, s, "b")
		a.publish(t)
		b.publish(t)
		s.pass(t, fleet.RecordTTL+fleet.Interval, a)
		c := join(t, s, "c")
		c.publish(t)
		expectSlots(t, []int{0, 1}, a, c)
		b.publish(t) // the slot has another owner now
		expectSeen(t, a, "[c]")
		b.publish(t)
		expectSeen(t, a, "[b c]")
		expectSeen(t, c, "[a b]")
		expectSlots(t, []int{0, 1, 2}, a, c, b)
	}},
	{"a slot that was leased is not taken", func(t *testing.T, s shared) {
		a, b := join(t, s, "a"), join(t, s, "b")
		if err := a.TakeSlot(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.publish(t)
		a.publish(t)
		expectSlots(t, []int{0, 1}, a, b)
	}},
	{"a replica that stops is not lost", func(t *testing.T, s shared) {
		a, b := join(t, s, "a"), join(t, s, "b")
		a.publish(t)
		b.publish(t)
		b.Stop(t.Context())
		expectSeen(t, a, "[]")
		c := join(t, s, "c")
		c.publish(t)
		expectSlots(t, []int{0, 1}, a, c)
		expectSeen(t, a, "[c]")
	}},
	{"one write for each status", func(t *testing.T, s shared) {
		counted := &counting{Store: s.Store}
		a := join(t, counted, "a")
		a.publish(t)
		counted.writes.Store(0)
		for range 6 {
			s.pass(t, fleet.Interval, a)
		}
		if n := counted.writes.Load(); n != 6 {
			t.Errorf("%d writes in a minute, want 6", n)
		}
	}},
	{"replicas that start together", func(t *testing.T, s shared) {
		var all []*replica
		var starting sync.WaitGroup
		for i := range 20 {
			r := join(t, s, fleet.Name(fmt.Sprintf("r%02d", i)))
			all = append(all, r)
			starting.Go(func() {
				if err := r.Publish(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		starting.Wait()
		slots := map[int]bool{}
		for _, r := range all {
			slots[r.Slot()] = true
		}
		if len(slots) != len(all) || slots[-1] {
			t.Errorf("%d replicas have %d slots", len(all), len(slots))
		}
		if n := len(all[0].Read(t.Context(), all[0].id).Members); n != len(all)-1 {
			t.Errorf("the first sees %d others", n)
		}
	}},
}

func expectSlots(t *testing.T, want []int, replicas ...*replica) {
	t.Helper()
	var got []int
	for _, r := range replicas {
		got = append(got, r.Slot())
	}
	if !slices.Equal(got, want) {
		t.Errorf("slots %v, want %v", got, want)
	}
}

// pass lets time pass while these replicas publish.
func (s shared) pass(t *testing.T, d time.Duration, publishing ...*replica) {
	t.Helper()
	for ; d > 0; d -= fleet.Interval {
		s.advance(fleet.Interval)
		for _, r := range publishing {
			r.publish(t)
		}
	}
}

// counting counts the writes to a store.
type counting struct {
	store.Store

	writes atomic.Int64
}

func (c *counting) Apply(ctx context.Context, change store.Change) ([]bool, error) {
	c.writes.Add(1)
	return c.Store.Apply(ctx, change)
}

func (c *counting) Acquire(ctx context.Context, claim store.Claim) (store.Claimed, error) {
	c.writes.Add(1)
	return c.Store.Acquire(ctx, claim)
}

func (c *counting) Renew(ctx context.Context, lease store.Lease, ttl time.Duration) (bool, error) {
	c.writes.Add(1)
	return c.Store.Renew(ctx, lease, ttl)
}

func (c *counting) Raise(ctx context.Context, key string, floor, by uint64) (uint64, error) {
	c.writes.Add(1)
	return c.Store.Raise(ctx, key, floor, by)
}

func TestSlotsSurviveAnEmptyRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.Options{})
	s := openRedis(t, server, "tb1:")
	a, b, c := join(t, s, "a"), join(t, s, "b"), join(t, s, "c")
	for _, r := range []*replica{a, b, c} {
		r.publish(t)
	}
	server.CLI("FLUSHALL")
	late := join(t, s, "d") // it finds slot 0 free
	late.publish(t)
	for range 3 {
		for _, r := range []*replica{late, c, b, a} {
			r.publish(t)
		}
	}
	expectSeen(t, a, "[b c d]")
	expectSeen(t, late, "[a b c]")
	slots := []int{a.Slot(), b.Slot(), c.Slot(), late.Slot()}
	slices.Sort(slots)
	if !slices.Equal(slots, []int{0, 1, 2, 3}) {
		t.Errorf("slots %v", slots)
	}
}

func TestReadWithoutTheStoreSaysSo(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.Options{})
	s := openRedis(t, server, "tb1:")
	a, b := join(t, s, "a"), join(t, s, "b")
	a.publish(t)
	b.publish(t)
	server.Kill()
	view := a.Read(t.Context(), a.id)
	if view.Err == nil {
		t.Fatalf("no error, and %d members", len(view.Members))
	}
	got := fleet.Summarize(view, record("a"), now).Findings
	if len(got) != 1 || got[0].ID != fleet.StoreAway {
		t.Errorf("%+v", got)
	}
}

func TestReplicaWithAnotherSealingKeyIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := sealed.GenerateRing()
		added, id := ring.Add()
		promoted, err := added.Promote(id)
		if err != nil {
			t.Fatal(err)
		}
		memory := store.NewMemory(store.MemoryConfig{})
		a, b := join(t, sealed.New(memory, openRing(t, ring)), "a"), join(t, sealed.New(memory, openRing(t, promoted)), "b")
		a.publish(t)
		b.publish(t)
		expectSeen(t, a, "[sealed]")
		expectSeen(t, b, "[a]")
		expectSlots(t, []int{0, 1}, a, b)
	})
}

// The lifetime of a sealed value ends by the clock of its writer. A replica with another
// clock is seen nevertheless, and its difference is measured by the store's clock.
func TestClockIsMeasuredThroughTheStore(t *testing.T) {
	for _, ahead := range []time.Duration{-2 * time.Minute, 0, 2 * time.Minute} {
		t.Run(ahead.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := store.NewMemory(store.MemoryConfig{})
				a, b := join(t, s, "a"), join(t, s, "b")
				b.publish(t)
				b.ShiftClock(t.Context(), ahead)
				time.Sleep(7 * time.Second)
				view := a.Read(t.Context(), a.id)
				if len(view.Members) != 1 {
					t.Fatalf("%+v", view)
				}
				if m := view.Members[0]; m.Presence != fleet.Alive || m.Age != 7*time.Second || m.Clock != ahead {
					t.Errorf("age %v, clock %v, presence %v", m.Age, m.Clock, m.Presence)
				}
			})
		})
	}
}

// fast is the store of a replica whose clock is ahead: sealed values end early there.
type fast struct {
	store.Store

	ahead time.Duration
}

func (f fast) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	entries, err := f.Store.Get(ctx, keys...)
	for i, entry := range entries {
		switch {
		case entry.TTL == 0:
		case entry.TTL <= f.ahead:
			entries[i] = store.Entry{}
		default:
			entries[i].TTL, entries[i].Excess = entry.TTL-f.ahead, f.ahead
		}
	}
	return entries, err
}

// A replica whose clock is ahead cannot read the records of the others, but it must
// neither take their slots nor report them as lost.
func TestReplicaWithAFastClockSeesThatOthersAreAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := store.NewMemory(store.MemoryConfig{})
		a, b := join(t, memory, "a"), join(t, fast{memory, 2 * time.Minute}, "b")
		a.publish(t)
		time.Sleep(4 * time.Second)
		expectSeen(t, b, "[a:unreadable]")
		if age := b.Read(t.Context(), b.id).Members[0].Age; age != 4*time.Second {
			t.Errorf("age %v", age)
		}
		b.publish(t)
		expectSlots(t, []int{0, 1}, a, b)
	})
}

func TestRunPublishesAndStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := store.NewMemory(store.MemoryConfig{})
		a, b := join(t, s, "a"), join(t, s, "b")
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { b.Run(ctx) })
		synctest.Wait()
		expectSeen(t, a, "[b]")
		time.Sleep(5 * time.Minute)
		expectSeen(t, a, "[b]")
		stop()
		running.Wait()
		expectSeen(t, a, "[]")
	})
}
