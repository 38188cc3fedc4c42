package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

func counterTests() []namedTest {
	return []namedTest{
		{"a counter only grows", counterOnlyGrows},
		{"a counter does not expire", func(t *tester) {
			t.raise(epoch, 5, 0)
			t.Advance(2 * time.Second)
			t.expect(epoch, 5, "")
		}},
		{"counters are independent", func(t *tester) {
			t.raise(epoch, 5, 1)
			t.expect(another, 0, "")
			t.raise(another, 2, 0)
			t.expect(epoch, 6, "")
			t.expect(another, 2, "")
		}},
		{"an epoch that the store lost is put back by whoever saw it", func(t *tester) {
			t.expect(epoch, 0, "")
			t.raise(epoch, 42, 0)
			t.expect(epoch, 42, "")
			if next := t.raise(epoch, 0, 1); next != 43 {
				t.Errorf("the epoch after 42 is %d", next)
			}
		}},
		{"counters beyond the bounds are refused", counterBounds},
	}
}

func counterOnlyGrows(t *tester) {
	for _, step := range []struct{ floor, by, want uint64 }{
		{0, 0, 0}, {0, 1, 1}, {0, 1, 2}, {1, 1, 3}, {3, 0, 3}, {2, 0, 3}, {0, 0, 3}, {10, 0, 10}, {9, 0, 10}, {20, 1, 21}, {9, 2, 23}, {100, 0, 100},
	} {
		if got := t.raise(epoch, step.floor, step.by); got != step.want {
			t.Fatalf("raised by %d from at least %d: %d, want %d", step.by, step.floor, got, step.want)
		}
		t.expect(epoch, step.want, "")
	}
}

func counterBounds(t *tester) {
	if got := t.raise(epoch, store.MaxNumber-1, 1); got != store.MaxNumber {
		t.Errorf("raised to %d", got)
	}
	for name, raise := range map[string]struct {
		key       string
		floor, by uint64
	}{
		"by too much":     {epoch, 0, 1},
		"floor too high":  {another, store.MaxNumber + 1, 0},
		"sum too high":    {another, store.MaxNumber, 1},
		"sum overflows":   {another, 1, ^uint64(0)},
		"no key":          {"", 0, 1},
		"key is too long": {strings.Repeat("k", store.MaxKey+1), 0, 1},
	} {
		if count, err := t.store.Raise(t.Context(), raise.key, raise.floor, raise.by); err == nil {
			t.Errorf("%s: raised to %d", name, count)
		}
	}
	t.expect(epoch, store.MaxNumber, "")
	t.expect(another, 0, "")
	if claimed, err := t.store.Acquire(t.Context(), store.Claim{Key: leaseA, Owner: "a", Counter: epoch, TTL: life}); err == nil || claimed.Acquired {
		t.Errorf("a fence beyond the largest number: acquired %v, %v", claimed.Acquired, err)
	}
	t.mustAcquire(leaseA, "b", life) // from a counter with room: the refused claim had no effect
}

func eventTests() []namedTest {
	return []namedTest{
		{"a subscriber is told of puts, raises and releases", func(t *tester) {
			events := t.subscribe(t.Context())
			t.put(keyA, 1, "a", life)
			t.awaitEvent(events, keyA)
			t.raise(epoch, 0, 1)
			t.awaitEvent(events, epoch)
			t.release(t.mustAcquire(leaseA, "a", life))
			t.awaitEvent(events, leaseA)
		}},
		{"what an event tells of can be read", func(t *tester) {
			events := t.subscribe(t.Context())
			for number := range uint64(20) {
				lease := t.mustAcquire(leaseA, fmt.Sprint("owner ", number), life)
				put := store.Put{Key: keyA, Number: lease.Fence, TTL: life}
				t.apply(store.Change{Puts: []store.Put{put}, Release: lease})
				t.awaitEvent(events, keyA)
				t.expect(keyA, lease.Fence, "")
			}
		}},
		{"a quiet change is made and not reported", func(t *tester) {
			events := t.subscribe(t.Context())
			lease := t.mustAcquire(leaseA, "a", life)
			t.apply(store.Change{Puts: []store.Put{{Key: keyA, Number: 1, Value: []byte("a"), TTL: life}}, Release: lease, Quiet: true})
			t.expect(keyA, 1, "a")
			t.mustAcquire(leaseA, "b", life)
			t.put(keyB, 1, "b", life)
			if key, told := receive(events, 5*time.Second); key != keyB || !told {
				t.Errorf("the first event is %q, want that of the change after the quiet one", key)
			}
		}},
		{"every subscriber is told", func(t *tester) {
			first, second := t.subscribe(t.Context()), t.subscribe(t.Context())
			t.put(keyA, 1, "a", life)
			t.awaitEvent(first, keyA)
			t.awaitEvent(second, keyA)
		}},
		{"nobody is told of what did not change", func(t *tester) {
			events := t.subscribe(t.Context())
			lease := t.mustAcquire(leaseA, "a", life)
			t.put(keyA, 2, "a", life)
			t.awaitEvent(events, keyA)
			t.raise(epoch, 5, 0)
			t.awaitEvent(events, epoch)
			t.put(keyA, 1, "stale", life)
			t.raise(epoch, 4, 0)
			t.release(store.Lease{Key: lease.Key, Owner: "stranger", Fence: lease.Fence})
			t.mustBeHeld(leaseA)
			if key, told := receive(events, 200*time.Millisecond); told {
				t.Errorf("told of %s", key)
			}
		}},
		{"a subscriber that does not read delays nobody", func(t *tester) {
			events := t.subscribe(t.Context())
			const changes = store.EventBuffer/store.MaxPuts + 60
			for number := range uint64(changes) {
				puts := make([]store.Put, store.MaxPuts)
				for i := range puts {
					puts[i] = store.Put{Key: keyA + strconv.Itoa(i), Number: number + 1, Value: []byte("a"), TTL: life}
				}
				t.apply(store.Change{Puts: puts})
			}
			t.expect(keyA+"0", changes, "a")
			for read := 0; ; read++ {
				if _, told := receive(events, 200*time.Millisecond); !told {
					if read == 0 {
						t.Error("no event was kept")
					}
					break
				}
			}
			t.put(keyB, 1, "b", life) // events come again once the subscriber reads
			t.awaitEvent(events, keyB)
		}},
		{"a subscription ends with its context", func(t *tester) {
			ctx, cancel := context.WithCancel(t.Context())
			ended, stays := t.subscribe(ctx), t.subscribe(t.Context())
			cancel()
			t.awaitEnd(ended)
			t.put(keyA, 1, "a", life)
			t.awaitEvent(stays, keyA)
		}},
	}
}

func lifecycleTests() []namedTest {
	return []namedTest{
		{"closing ends subscriptions and refuses everything", func(t *tester) {
			events := t.subscribe(t.Context())
			lease := t.mustAcquire(leaseA, "a", life)
			for range 2 {
				if err := t.store.Close(); err != nil {
					t.Fatal(err)
				}
			}
			t.awaitEnd(events)
			t.awaitEnd(t.store.Subscribe(t.Context()))
			for name, err := range t.callAll(t.Context(), lease) {
				if !errors.Is(err, store.ErrClosed) {
					t.Errorf("%s after Close: %v", name, err)
				}
			}
		}},
		{"a call whose context has ended changes nothing", func(t *tester) {
			lease := t.mustAcquire(leaseA, "a", life)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			for name, err := range t.callAll(ctx, lease) {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("%s with an ended context: %v", name, err)
				}
			}
			t.expect(keyA, 0, "")
			t.expect(epoch, 0, "")
			t.mustBeHeld(leaseA)
			t.mustAcquire(leaseB, "b", life)
		}},
	}
}

// callAll makes one call of each kind and returns the errors.
func (t *tester) callAll(ctx context.Context, lease store.Lease) map[string]error {
	put := store.Put{Key: keyA, Number: 1, Value: []byte("a"), TTL: life}
	claim := store.Claim{Key: leaseB, Owner: "caller", Counter: fences, TTL: life, Read: []string{keyA}}
	errs := make(map[string]error)
	_, errs["Get"] = t.store.Get(ctx, keyA)
	_, errs["Acquire"] = t.store.Acquire(ctx, claim)
	_, errs["Renew"] = t.store.Renew(ctx, lease, time.Millisecond)
	_, errs["Apply"] = t.store.Apply(ctx, store.Change{Puts: []store.Put{put}, Release: lease})
	_, errs["Raise"] = t.store.Raise(ctx, epoch, 1, 1)
	return errs
}
