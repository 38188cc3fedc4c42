package storetest

import (
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/store"
)

func walkTests() []namedTest {
	return []namedTest{{"any sequence of calls has the outcome that the contract says", randomWalk}}
}

// randomWalk makes random calls of the store and of a model of it, which is the contract
// in its simplest form, and compares the results. One store serves all walks, each with
// keys of its own, because a store may be a server.
func randomWalk(t *tester) {
	walks := 0
	// Within a bubble rapid must not get a *testing.T: it would read the test's
	// deadline, which is not allowed there.
	rapid.Check(struct{ rapid.TB }{t.T}, func(rt *rapid.T) {
		walks++
		w := &walk{
			tester:   t,
			unit:     100 * time.Millisecond,
			prefix:   fmt.Sprintf("tb{walk %d}", walks),
			values:   make(map[string]value),
			counters: make(map[string]uint64),
			leases:   make(map[string]grant),
		}
		actions := map[string]func(*rapid.T){
			"get": w.get, "acquire": w.acquire, "renew": w.renew, "apply": w.apply, "raise": w.raise,
		}
		if t.RealTime {
			w.unit = life
		} else {
			actions["advance"] = w.advance
		}
		rt.Repeat(actions)
	})
}

type value struct {
	number  uint64
	text    string
	expires time.Duration // on the model's clock; 0: never
}

type grant struct {
	lease   store.Lease
	expires time.Duration
}

// walk is the model: its clock, its entries, and all leases ever granted.
type walk struct {
	*tester

	unit     time.Duration
	prefix   string
	now      time.Duration
	values   map[string]value
	counters map[string]uint64
	leases   map[string]grant
	granted  []store.Lease
}

func (w *walk) key(t *rapid.T, kind string) string {
	return w.prefix + kind + rapid.SampledFrom([]string{"1", "2"}).Draw(t, kind)
}

func (w *walk) value(key string) value {
	if v := w.values[key]; v.expires == 0 || w.now < v.expires {
		return v
	}
	return value{}
}

func (w *walk) holder(key string) store.Lease {
	if g := w.leases[key]; w.now < g.expires {
		return g.lease
	}
	return store.Lease{}
}

// drawTTL draws a lifetime of some units. The steps of the clock are a little longer
// than whole units, so that the walk never looks at the exact instant of an expiry:
// there stores may differ.
func (w *walk) drawTTL(t *rapid.T) time.Duration {
	return time.Duration(rapid.IntRange(1, 5).Draw(t, "lifetime")) * w.unit
}

func (w *walk) advance(t *rapid.T) {
	step := time.Duration(rapid.IntRange(0, 3).Draw(t, "step"))*w.unit + w.unit/100
	w.Advance(step)
	w.now += step
}

func (w *walk) get(t *rapid.T) {
	keys := []string{w.key(t, "value"), w.key(t, "counter"), w.key(t, "value")}
	entries, err := w.store.Get(w.Context(), keys...)
	if err != nil {
		t.Fatal(err)
	}
	w.check(t, keys, entries)
}

// check compares entries with the model, after the call.
func (w *walk) check(t *rapid.T, keys []string, entries []store.Entry) {
	for i, key := range keys {
		want := w.value(key)
		want.number = max(want.number, w.counters[key])
		if entries[i].Number != want.number || string(entries[i].Value) != want.text {
			t.Fatalf("%s holds %d %q, want %d %q", key, entries[i].Number, entries[i].Value, want.number, want.text)
		}
	}
}

func (w *walk) acquire(t *rapid.T) {
	claim := store.Claim{
		Key:     w.key(t, "lease"),
		Owner:   rapid.SampledFrom([]string{"ann", "bob", "eve"}).Draw(t, "owner"),
		Counter: w.key(t, "counter"),
		Floor:   rapid.Uint64Range(0, 20).Draw(t, "floor"),
		TTL:     w.drawTTL(t),
		Read:    []string{w.key(t, "value"), w.key(t, "counter")},
	}
	claimed, err := w.store.Acquire(w.Context(), claim)
	if err != nil {
		t.Fatal(err)
	}
	lease, acquired := claimed.Lease, claimed.Acquired
	holder := w.holder(claim.Key)
	want := holder
	if holder == (store.Lease{}) {
		w.counters[claim.Counter] = max(w.counters[claim.Counter], claim.Floor) + 1
		want = store.Lease{Key: claim.Key, Owner: claim.Owner, Fence: w.counters[claim.Counter]}
	}
	if want.Owner != claim.Owner {
		want = store.Lease{}
		w.leases[claim.Key] = grant{holder, min(w.leases[claim.Key].expires, w.now+claim.TTL)}
	}
	if lease != want || acquired != (want != store.Lease{}) {
		t.Fatalf("%+v: granted %+v (%v), want %+v", claim, lease, acquired, want)
	}
	if acquired {
		w.leases[claim.Key] = grant{lease, w.now + claim.TTL}
		w.granted = append(w.granted, lease)
	}
	w.check(t, claim.Read, claimed.Entries)
}

// drawLease draws a lease that was granted some time ago, or an invented one.
func (w *walk) drawLease(t *rapid.T) store.Lease {
	foreign := store.Lease{Key: w.key(t, "lease"), Owner: "nobody", Fence: 1}
	return rapid.SampledFrom(append(slices.Clone(w.granted), foreign)).Draw(t, "lease")
}

func (w *walk) renew(t *rapid.T) {
	lease, ttl := w.drawLease(t), w.drawTTL(t)
	held, err := w.store.Renew(w.Context(), lease, ttl)
	if err != nil {
		t.Fatal(err)
	}
	holder := w.holder(lease.Key)
	if want := holder.Owner == lease.Owner; held != want {
		t.Fatalf("renewed %+v: %v; the holder is %+v", lease, held, holder)
	}
	if held {
		w.leases[lease.Key] = grant{holder, w.now + ttl}
	}
}

func (w *walk) apply(t *rapid.T) {
	var change store.Change
	var want []bool
	for _, key := range []string{w.prefix + "value1", w.prefix + "value2"} {
		if !rapid.Bool().Draw(t, "put") {
			continue
		}
		put := store.Put{Key: key, Number: rapid.Uint64Range(1, 30).Draw(t, "number"), Value: []byte(rapid.String().Draw(t, "value"))}
		v := value{number: put.Number, text: string(put.Value)}
		if rapid.Bool().Draw(t, "expires") {
			put.TTL = w.drawTTL(t)
			v.expires = w.now + put.TTL
		}
		newer := put.Number > w.value(key).number
		if newer {
			w.values[key] = v
		}
		change.Puts, want = append(change.Puts, put), append(want, newer)
	}
	if rapid.Bool().Draw(t, "release") {
		change.Release = w.drawLease(t)
		if w.holder(change.Release.Key).Owner == change.Release.Owner {
			delete(w.leases, change.Release.Key)
		}
	}
	applied, err := w.store.Apply(w.Context(), change)
	if err != nil || !slices.Equal(applied, want) {
		t.Fatalf("%+v: applied %v, want %v, error %v", change, applied, want, err)
	}
}

func (w *walk) raise(t *rapid.T) {
	key := w.key(t, "counter")
	floor, by := rapid.Uint64Range(0, 40).Draw(t, "floor"), rapid.Uint64Range(0, 2).Draw(t, "by")
	count, err := w.store.Raise(w.Context(), key, floor, by)
	if err != nil {
		t.Fatal(err)
	}
	w.counters[key] = max(w.counters[key], floor) + by
	if count != w.counters[key] {
		t.Fatalf("raised %s to %d, want %d", key, count, w.counters[key])
	}
}
