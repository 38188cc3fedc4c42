package storetest

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

const crowd = 100

func raceTests() []namedTest {
	return []namedTest{
		{"of many who claim at once one acquires", oneOfManyAcquires},
		{"holders in turn never overlap, their fences grow and each reads what the last one wrote", holdersTakeTurns},
		{"a stale fence never overwrites, in whatever order writes arrive", staleFenceNeverOverwrites},
		{"no raise at once with others is lost", func(t *tester) {
			counts := make([]uint64, crowd)
			together(func(i int) { counts[i] = t.raise(epoch, 0, 1) })
			slices.Sort(counts)
			for i, count := range counts {
				if count != uint64(i)+1 {
					t.Fatalf("the counts are %v", counts)
				}
			}
		}},
		{"subscribers come and go while much changes", func(t *tester) {
			together(func(i int) {
				ctx, cancel := context.WithCancel(t.Context())
				events := t.store.Subscribe(ctx)
				t.put(keyA, uint64(i)+1, "a", life)
				cancel()
				t.awaitEnd(events)
			})
			t.expect(keyA, crowd, "a")
		}},
	}
}

// together calls do from many goroutines that start at once, and waits. A failed call of
// the store ends only its own goroutine.
func together(do func(i int)) {
	start := make(chan struct{})
	var done sync.WaitGroup
	for i := range crowd {
		done.Go(func() {
			<-start
			do(i)
		})
	}
	close(start)
	done.Wait()
}

func oneOfManyAcquires(t *tester) {
	for round := range 5 {
		var acquired atomic.Int32
		key := leaseA + strconv.Itoa(round)
		together(func(i int) {
			if _, ok := t.acquire(store.Claim{Key: key, Owner: fmt.Sprint("owner ", i), Counter: fences, TTL: life}); ok {
				acquired.Add(1)
			}
		})
		if n := acquired.Load(); n != 1 {
			t.Errorf("%d of %d acquired the lease", n, crowd)
		}
	}
}

func holdersTakeTurns(t *tester) {
	var inside atomic.Int32
	var mu sync.Mutex
	var fencesSeen []uint64
	together(func(i int) {
		claim := store.Claim{Key: leaseA, Owner: fmt.Sprint("owner ", i), Counter: fences, TTL: life, Read: []string{keyA}}
		for {
			claimed := t.claim(claim)
			if !claimed.Acquired {
				<-time.After(time.Millisecond)
				continue
			}
			lease := claimed.Lease
			if inside.Add(1) != 1 {
				t.Error("two hold the lease at once")
			}
			mu.Lock()
			if read := claimed.Entries[0].Number; len(fencesSeen) > 0 && read != fencesSeen[len(fencesSeen)-1] {
				t.Errorf("the claim with the fence %d read the value %d after the fences %v", lease.Fence, read, fencesSeen)
			}
			fencesSeen = append(fencesSeen, lease.Fence)
			mu.Unlock()
			inside.Add(-1)
			put := store.Put{Key: keyA, Number: lease.Fence, TTL: life}
			if applied := t.apply(store.Change{Puts: []store.Put{put}, Release: lease}); !applied[0] {
				t.Error("the write of a holder counts as stale")
			}
			return
		}
	})
	if !slices.IsSorted(fencesSeen) || len(slices.Compact(slices.Clone(fencesSeen))) != crowd {
		t.Fatalf("the fences in the order of holding: %v", fencesSeen)
	}
	t.expect(keyA, fencesSeen[crowd-1], "")
}

func staleFenceNeverOverwrites(t *tester) {
	together(func(i int) {
		if i%4 == 0 { // a reader
			for last, reads := uint64(0), 0; reads < 50; reads++ {
				entry := t.get(keyA)
				if entry.Number < last {
					t.Errorf("number %d was read after %d", entry.Number, last)
				}
				if entry.Number != 0 && string(entry.Value) != strconv.FormatUint(entry.Number, 10) {
					t.Errorf("number %d comes with the value %q", entry.Number, entry.Value)
				}
				last = entry.Number
			}
			return
		}
		for step := range uint64(20) {
			number := 1 + (uint64(i)*37+step*101)%1000
			t.put(keyA, number, strconv.FormatUint(number, 10), life)
		}
		t.put(keyA, 1000+uint64(i), strconv.Itoa(1000+i), life)
	})
	t.expect(keyA, 1000+crowd-1, strconv.Itoa(1000+crowd-1))
}
