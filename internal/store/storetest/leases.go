package storetest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

func leaseTests() []namedTest {
	return []namedTest{
		{"a lease has one holder", func(t *tester) {
			t.mustAcquire(leaseA, "first", life)
			t.mustBeHeld(leaseA)
			t.mustAcquire(leaseB, "second", life) // another lease, free
		}},
		{"a lease is free once it expired", func(t *tester) {
			first := t.mustAcquire(leaseA, "first", 2*time.Second)
			t.Advance(time.Second)
			t.mustBeHeld(leaseA)
			t.Advance(1500 * time.Millisecond)
			if second := t.mustAcquire(leaseA, "second", life); second.Fence <= first.Fence {
				t.Errorf("fence %d follows %d", second.Fence, first.Fence)
			}
		}},
		{"a lease is free as soon as it is released", func(t *tester) {
			t.release(t.mustAcquire(leaseA, "first", life))
			t.mustAcquire(leaseA, "second", life)
		}},
		{"a holder that claims again keeps lease and fence", holderClaimsAgain},
		{"an owner that lost its lease gets a new fence", func(t *tester) {
			first := t.mustAcquire(leaseA, "first", life)
			t.release(first)
			if again := t.mustAcquire(leaseA, "first", life); again.Fence <= first.Fence {
				t.Errorf("fence %d follows %d", again.Fence, first.Fence)
			}
		}},
		{"fences grow across leases, releases and expiries", fencesGrow},
		{"a fence is above the floor", func(t *tester) {
			lease, _ := t.acquire(store.Claim{Key: leaseA, Owner: "a", Counter: fences, Floor: 500, TTL: life})
			if lease.Fence <= 500 {
				t.Errorf("fence %d under a floor of 500", lease.Fence)
			}
			t.release(lease)
			next, _ := t.acquire(store.Claim{Key: leaseA, Owner: "b", Counter: fences, Floor: 3, TTL: life})
			if next.Fence <= lease.Fence {
				t.Errorf("a low floor lowered the fence from %d to %d", lease.Fence, next.Fence)
			}
		}},
		{"counters of fences are independent", func(t *tester) {
			_, _ = t.acquire(store.Claim{Key: leaseA, Owner: "a", Counter: fences, Floor: 500, TTL: life})
			lease, _ := t.acquire(store.Claim{Key: "tb{other}a:lease", Owner: "b", Counter: "tb{other}fences", TTL: life})
			if lease.Fence > 100 {
				t.Errorf("the first fence of another counter is %d", lease.Fence)
			}
		}},
		{"a claim that is refused takes nothing", func(t *tester) {
			first := t.mustAcquire(leaseA, "first", 2*time.Second)
			t.Advance(1500 * time.Millisecond)
			t.mustBeHeld(leaseA) // with a lifetime of its own, which must not count
			t.Advance(time.Second)
			if second := t.mustAcquire(leaseA, "second", life); second.Fence <= first.Fence {
				t.Errorf("fence %d follows %d", second.Fence, first.Fence)
			}
		}},
		{"a lease lasts no longer than a claim that finds it held", func(t *tester) {
			first := t.mustAcquire(leaseA, "first", life) // as if the store's clock had been set back since
			if _, acquired := t.acquire(store.Claim{Key: leaseA, Owner: "second", Counter: fences, TTL: 1500 * time.Millisecond}); acquired {
				t.Fatal("granted though it is held")
			}
			t.Advance(time.Second)
			t.mustBeHeld(leaseA)
			t.Advance(time.Second)
			if second := t.mustAcquire(leaseA, "second", life); second.Fence <= first.Fence {
				t.Errorf("fence %d follows %d", second.Fence, first.Fence)
			}
		}},
		{"renewing keeps a lease", func(t *tester) {
			lease := t.mustAcquire(leaseA, "first", 1500*time.Millisecond)
			t.Advance(time.Second)
			if !t.renew(lease, 1500*time.Millisecond) {
				t.Fatal("the holder cannot renew")
			}
			t.Advance(time.Second)
			t.mustBeHeld(leaseA)
			t.Advance(time.Second)
			if t.renew(lease, life) {
				t.Error("an expired lease was renewed")
			}
			t.mustAcquire(leaseA, "second", life)
		}},
		{"nobody but the holder renews or releases", onlyHolderTouchesLease},
		{"a change by a late holder counts until its successor's", lateHolderWrites},
		{"a change whose puts are stale still releases", func(t *tester) {
			lease := t.mustAcquire(leaseA, "first", life)
			t.put(keyA, lease.Fence+10, "newer", life)
			stale := store.Put{Key: keyA, Number: lease.Fence, Value: []byte("stale"), TTL: life}
			t.apply(store.Change{Puts: []store.Put{stale}, Release: lease})
			t.expect(keyA, lease.Fence+10, "newer")
			t.mustAcquire(leaseA, "second", life)
		}},
		{"claims beyond the bounds are refused", claimBounds},
		{"a claim reads entries in the same step, granted or not", claimReads},
	}
}

// claimReads checks the entries that a claim returns against those of a Get.
func claimReads(t *tester) {
	t.put(keyA, 7, "\x00\xffvalue", 10*time.Second)
	t.put(keyB, 2, "", 0)
	t.put(keyB+"short", 1, "short", time.Second)
	t.raise(epoch, 5, 0)
	t.Advance(1500 * time.Millisecond)
	claim := store.Claim{Key: leaseA, Owner: "first", Counter: fences, TTL: life,
		Read: []string{epoch, keyA, "tb{client}absent", keyB + "short", keyB, keyA}}
	for _, owner := range []string{"first", "first", "second"} { // granted, granted again, held by another
		claim.Owner = owner
		claimed := t.claim(claim)
		if claimed.Acquired != (owner == "first") {
			t.Fatalf("%s: acquired %v", owner, claimed.Acquired)
		}
		for i, want := range []string{"5 ", "7 \x00\xffvalue", "0 ", "0 ", "2 ", "7 \x00\xffvalue"} {
			entry := claimed.Entries[i]
			if got := fmt.Sprintf("%d %s", entry.Number, entry.Value); got != want {
				t.Errorf("%s: %s holds %q, want %q", owner, claim.Read[i], got, want)
			}
		}
		if left := claimed.Entries[1].TTL; left <= 0 || left > 8500*time.Millisecond {
			t.Errorf("%s: %v are left of 10 s after 1.5 s", owner, left)
		}
		if left := claimed.Entries[4].TTL; left != 0 {
			t.Errorf("%s: %v are left of what lives for ever", owner, left)
		}
		copy(claimed.Entries[1].Value, "changed") // it is a copy
	}
}

func holderClaimsAgain(t *tester) {
	first := t.mustAcquire(leaseA, "first", 1500*time.Millisecond)
	t.mustAcquire(leaseB, "other", life) // moves the counter on
	t.Advance(time.Second)
	again, acquired := t.acquire(store.Claim{Key: leaseA, Owner: "first", Counter: fences, TTL: 1500 * time.Millisecond})
	if !acquired || again != first {
		t.Fatalf("claimed again: %+v, %v; held %+v", again, acquired, first)
	}
	t.Advance(time.Second)
	t.mustBeHeld(leaseA)
}

func fencesGrow(t *tester) {
	var got []uint64
	for i := range 12 {
		lease := t.mustAcquire([]string{leaseA, leaseB}[i%2], "owner", 100*time.Millisecond)
		got = append(got, lease.Fence)
		if i%3 == 0 {
			t.Advance(300 * time.Millisecond)
		} else {
			t.release(lease)
		}
	}
	if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
		t.Errorf("fences do not grow: %v", got)
	}
}

func onlyHolderTouchesLease(t *tester) {
	first := t.mustAcquire(leaseA, "first", life)
	stranger := store.Lease{Key: leaseA, Owner: "stranger", Fence: first.Fence}
	if t.renew(stranger, time.Millisecond) {
		t.Error("a stranger renewed")
	}
	t.release(stranger)
	t.Advance(100 * time.Millisecond)
	t.mustBeHeld(leaseA)

	t.release(first)
	second := t.mustAcquire(leaseA, "second", life)
	if t.renew(first, time.Millisecond) {
		t.Error("a former holder renewed")
	}
	t.release(first)
	t.Advance(100 * time.Millisecond)
	t.mustBeHeld(leaseA)
	t.release(store.Lease{Key: leaseB, Owner: "nobody", Fence: 1}) // never held
	t.release(second)
}

func lateHolderWrites(t *tester) {
	late := t.mustAcquire(leaseA, "late", 500*time.Millisecond)
	t.Advance(time.Second)
	successor := t.mustAcquire(leaseA, "successor", life)
	finish := func(lease store.Lease, value string) bool {
		put := store.Put{Key: keyA, Number: lease.Fence, Value: []byte(value), TTL: life}
		return t.apply(store.Change{Puts: []store.Put{put}, Release: lease})[0]
	}

	if !finish(late, "late") {
		t.Error("a late result was refused though there is no newer one")
	}
	t.expect(keyA, late.Fence, "late")
	t.mustBeHeld(leaseA)

	if !finish(successor, "successor") {
		t.Error("the successor's result was refused")
	}
	if finish(late, "later still") {
		t.Error("a stale fence overwrote a newer value")
	}
	t.expect(keyA, successor.Fence, "successor")
	t.mustAcquire(leaseA, "third", life)
}

func claimBounds(t *tester) {
	long := strings.Repeat("k", store.MaxKey+1)
	for name, spoil := range map[string]func(*store.Claim){
		"no key":           func(c *store.Claim) { c.Key = "" },
		"key too long":     func(c *store.Claim) { c.Key = long },
		"no owner":         func(c *store.Claim) { c.Owner = "" },
		"owner too long":   func(c *store.Claim) { c.Owner = long },
		"no counter":       func(c *store.Claim) { c.Counter = "" },
		"counter too long": func(c *store.Claim) { c.Counter = long },
		"no lifetime":      func(c *store.Claim) { c.TTL = 0 },
		"floor too high":   func(c *store.Claim) { c.Floor = store.MaxNumber },
		"read no key":      func(c *store.Claim) { c.Read = []string{keyA, ""} },
		"read a long key":  func(c *store.Claim) { c.Read = []string{long} },
		"read too many":    func(c *store.Claim) { c.Read = slices.Repeat([]string{keyA}, store.MaxKeys+1) },
	} {
		claim := store.Claim{Key: leaseA, Owner: "first", Counter: fences, TTL: life}
		spoil(&claim)
		if claimed, err := t.store.Acquire(t.Context(), claim); err == nil || claimed.Acquired || claimed.Entries != nil {
			t.Errorf("%s: %+v, error %v", name, claimed, err)
		}
	}
	lease := t.mustAcquire(leaseA, "first", life)
	if _, err := t.store.Renew(t.Context(), lease, 0); err == nil {
		t.Error("renewed for no time: no error")
	}
	t.mustBeHeld(leaseA)
}
