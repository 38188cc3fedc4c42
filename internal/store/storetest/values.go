package storetest

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

func valueTests() []namedTest {
	return []namedTest{
		{"a key that nobody wrote holds nothing", func(t *tester) {
			t.expect(keyA, 0, "")
		}},
		{"a value comes back whole with its number", func(t *tester) {
			value := "\x00\xff\r\n{}" + strings.Repeat("v", 10_000)
			if !t.put(keyA, 7, value, life) {
				t.Error("the first put was not applied")
			}
			t.expect(keyA, 7, value)
			t.expect(keyB, 0, "")
		}},
		{"an empty value is not an absent one", func(t *tester) {
			t.put(keyA, 3, "", life)
			t.expect(keyA, 3, "")
		}},
		{"entries come in the order of the keys", func(t *tester) {
			t.put(keyA, 1, "a", life)
			t.put(keyB, 2, "b", life)
			t.raise(epoch, 3, 0)
			entries, err := t.store.Get(t.Context(), keyB, another, epoch, keyA, keyB)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, entry := range entries {
				got = append(got, string(rune('0'+entry.Number))+string(entry.Value))
			}
			if want := []string{"2b", "0", "3", "1a", "2b"}; !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		}},
		{"confirming a change changes nothing", func(t *tester) {
			t.put(keyA, 1, "a", 0)
			if safety := t.store.Confirm(t.Context(), keyA); !safety.Disk && safety.Replicas == 0 && safety.Doubt == "" {
				t.Error("it is nowhere, and there is no doubt")
			}
			t.expect(keyA, 1, "a")
		}},
		{"no keys have no entries", func(t *tester) {
			if entries, err := t.store.Get(t.Context()); err != nil || len(entries) != 0 {
				t.Errorf("got %v, %v", entries, err)
			}
		}},
		{"a value lives as long as its lifetime", valueLivesForItsTTL},
		{"a reader learns what is left of a lifetime", readerLearnsWhatIsLeft},
		{"a value without a lifetime stays", func(t *tester) {
			t.put(keyA, 1, "a", 0)
			t.Advance(2 * time.Second)
			t.expect(keyA, 1, "a")
		}},
		{"a newer value brings its own lifetime", func(t *tester) {
			t.put(keyA, 1, "short", time.Second)
			t.put(keyA, 2, "for ever", 0)
			t.put(keyB, 1, "for ever", 0)
			t.put(keyB, 2, "short", time.Second)
			t.Advance(1500 * time.Millisecond)
			t.expect(keyA, 2, "for ever")
			t.expect(keyB, 0, "")
		}},
		{"only a higher number overwrites", onlyHigherNumberOverwrites},
		{"a put that is refused leaves the lifetime alone", func(t *tester) {
			t.put(keyA, 2, "a", 1500*time.Millisecond)
			t.Advance(time.Second)
			t.put(keyA, 1, "stale", life)
			t.put(keyA, 2, "same", life)
			t.Advance(time.Second)
			t.expect(keyA, 0, "")
		}},
		{"an expired value does not stand in the way of a lower number", func(t *tester) {
			t.put(keyA, 9, "old", time.Second)
			t.Advance(1500 * time.Millisecond)
			if !t.put(keyA, 1, "new", life) {
				t.Error("the put was refused for the sake of an expired value")
			}
			t.expect(keyA, 1, "new")
		}},
		{"each put of a change is judged alone", func(t *tester) {
			t.put(keyA, 5, "a5", life)
			applied := t.apply(store.Change{Puts: []store.Put{
				{Key: keyA, Number: 4, Value: []byte("a4"), TTL: life},
				{Key: keyB, Number: 4, Value: []byte("b4"), TTL: life},
			}})
			if !slices.Equal(applied, []bool{false, true}) {
				t.Errorf("applied %v", applied)
			}
			t.expect(keyA, 5, "a5")
			t.expect(keyB, 4, "b4")
		}},
		{"numbers are exact up to the largest", func(t *tester) {
			t.put(keyA, store.MaxNumber-1, "a", life)
			if !t.put(keyA, store.MaxNumber, "b", life) || t.put(keyA, store.MaxNumber-1, "c", life) {
				t.Error("neighbouring numbers are not told apart")
			}
			t.expect(keyA, store.MaxNumber, "b")
		}},
		{"values are copied", valuesAreCopied},
		{"what exceeds the bounds is refused and changes nothing", boundsAreHeld},
	}
}

func valueLivesForItsTTL(t *tester) {
	t.put(keyA, 1, "a", 2*time.Second)
	t.put(keyB, 1, "b", time.Microsecond) // shorter than a store can count
	t.Advance(time.Second)
	t.expect(keyA, 1, "a")
	t.expect(keyB, 0, "")
	t.Advance(1500 * time.Millisecond)
	t.expect(keyA, 0, "")
}

func onlyHigherNumberOverwrites(t *tester) {
	for _, step := range []struct {
		number  uint64
		applied bool
		holds   uint64
	}{{5, true, 5}, {4, false, 5}, {5, false, 5}, {1, false, 5}, {6, true, 6}, {10, true, 10}, {9, false, 10}, {100, true, 100}, {20, false, 100}} {
		if got := t.put(keyA, step.number, string(rune('a'+step.number)), life); got != step.applied {
			t.Errorf("put %d: applied %v", step.number, got)
		}
		t.expect(keyA, step.holds, string(rune('a'+step.holds)))
	}
}

func valuesAreCopied(t *tester) {
	mine := []byte("value")
	t.apply(store.Change{Puts: []store.Put{{Key: keyA, Number: 1, Value: mine, TTL: life}}})
	copy(mine, "VALUE")
	t.expect(keyA, 1, "value")
	copy(t.get(keyA).Value, "VALUE")
	t.expect(keyA, 1, "value")
}

func boundsAreHeld(t *tester) {
	long := strings.Repeat("k", store.MaxKey)
	t.put(long, 1, strings.Repeat("v", store.MaxValue/2), life)
	if got := t.get(long); len(got.Value) != store.MaxValue/2 {
		t.Errorf("a large value under a long key came back with %d bytes", len(got.Value))
	}

	good := store.Put{Key: keyA, Number: 1, Value: []byte("a"), TTL: life}
	second := store.Put{Key: keyB, Number: 1, Value: []byte("b"), TTL: life}
	for name, spoil := range map[string]func(*store.Put){
		"no key":               func(p *store.Put) { p.Key = "" },
		"key too long":         func(p *store.Put) { p.Key = long + "k" },
		"number 0":             func(p *store.Put) { p.Number = 0 },
		"number too high":      func(p *store.Put) { p.Number = store.MaxNumber + 1 },
		"lifetime in the past": func(p *store.Put) { p.TTL = -1 },
		"value too large":      func(p *store.Put) { p.Value = bytes.Repeat([]byte("v"), store.MaxValue+1) },
		"same key twice":       func(p *store.Put) { p.Key = good.Key },
	} {
		bad := second
		spoil(&bad)
		if _, err := t.store.Apply(t.Context(), store.Change{Puts: []store.Put{good, bad}}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	many := make([]store.Put, store.MaxPuts+1)
	for i := range many {
		many[i] = store.Put{Key: keyA + strings.Repeat("x", i), Number: 1, TTL: life}
	}
	if _, err := t.store.Apply(t.Context(), store.Change{Puts: many}); err == nil {
		t.Error("too many puts: no error")
	}
	t.expect(keyA, 0, "")

	for name, keys := range map[string][]string{
		"no key":        {keyA, ""},
		"key too long":  {long + "k"},
		"too many keys": slices.Repeat([]string{keyA}, store.MaxKeys+1),
	} {
		if _, err := t.store.Get(t.Context(), keys...); err == nil {
			t.Errorf("Get, %s: no error", name)
		}
	}
	if entries, err := t.store.Get(t.Context(), slices.Repeat([]string{long}, 10)...); err != nil || len(entries) != 10 {
		t.Errorf("Get of ten keys: %d entries, %v", len(entries), err)
	}
}

func readerLearnsWhatIsLeft(t *tester) {
	t.put(keyA, 1, "a", 10*time.Second)
	t.put(keyB, 1, "b", 0)
	t.Advance(2 * time.Second)
	if left := t.get(keyA).TTL; left <= 0 || left > 8*time.Second {
		t.Errorf("%v are left of 10 s after 2 s", left)
	}
	if left := t.get(keyB).TTL; left != 0 {
		t.Errorf("%v are left of what lives for ever", left)
	}
	t.raise(epoch, 1, 0)
	if left := t.get(epoch).TTL; left != 0 {
		t.Errorf("%v are left of a counter", left)
	}
	t.put(keyA, 2, "newer", time.Hour)
	if left := t.get(keyA).TTL; left <= 10*time.Second || left > time.Hour {
		t.Errorf("%v are left of an hour", left)
	}
}
