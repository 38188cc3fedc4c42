package sealed_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/store/storetest"
)

const canaryValue = "canary-7f3a-token"

// sealedAndInner is a sealed store that closes the store in which it seals.
type sealedAndInner struct {
	*sealed.Store
	io.Closer
}

func TestSealedMemory(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		Open: func(t *testing.T) storetest.Store {
			memory := store.NewMemory(store.MemoryConfig{})
			return sealedAndInner{sealed.New(memory, openRing(t, sealed.GenerateRing())), memory}
		},
		Advance: time.Sleep,
		Bubble:  true,
	})
}

func TestSealedBolt(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		Open: func(t *testing.T) storetest.Store {
			bolt := inBolt(t, filepath.Join(t.TempDir(), "broker.db"))
			return sealedAndInner{sealed.New(bolt, openRing(t, sealed.GenerateRing())), bolt}
		},
		Advance: time.Sleep,
		Bubble:  true,
	})
}

// sealedPair is a sealed store and what it seals in.
func sealedPair(t testing.TB) (outer *sealed.Store, inner *store.Memory) {
	t.Helper()
	inner = store.NewMemory(store.MemoryConfig{})
	return sealed.New(inner, openRing(t, sealed.GenerateRing())), inner
}

func mustApply(t testing.TB, s store.Store, key string, number uint64, value []byte) {
	t.Helper()
	applied, err := s.Apply(t.Context(), store.Change{Puts: []store.Put{{Key: key, Number: number, Value: value}}})
	if err != nil || !applied[0] {
		t.Fatalf("applied %v, %v", applied, err)
	}
}

func mustGet(t testing.TB, s store.Store, key string) store.Entry {
	t.Helper()
	entries, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return entries[0]
}

func isMiss(entry store.Entry) bool { return entry.Number == 0 && entry.Value == nil && entry.TTL == 0 }

func TestSealedValueIsEncrypted(t *testing.T) {
	outer, inner := sealedPair(t)
	mustApply(t, outer, "key", 1, []byte(canaryValue))
	mustApply(t, outer, "twin", 1, []byte(canaryValue))
	envelope := mustGet(t, inner, "key").Value
	if bytes.Contains(envelope, []byte(canaryValue)) || len(envelope) != len(canaryValue)+sealed.SealedForGood {
		t.Errorf("the store holds %q", envelope)
	}
	if twin := mustGet(t, inner, "twin").Value; bytes.Equal(twin[7:], envelope[7:]) {
		t.Error("equal values are sealed alike")
	}
	if got := mustGet(t, outer, "key"); string(got.Value) != canaryValue || got.Number != 1 {
		t.Errorf("opened as %d %q", got.Number, got.Value)
	}
	if counts := outer.Unopened(); counts != (sealed.Unopened{}) {
		t.Errorf("counted %+v", counts)
	}
}

// Each case is something that one who can write to the store may try. The keys
// are of one length, so that it takes more than the length to tell them apart.
func TestSealedValueIsBoundToItsKey(t *testing.T) {
	outer, inner := sealedPair(t)
	mustApply(t, outer, "key", 5, []byte(canaryValue))
	envelope := func() []byte { return mustGet(t, inner, "key").Value }
	altered := func(at int) []byte {
		value := envelope()
		value[(at+len(value))%len(value)] ^= 1
		return value
	}
	foreign := sealed.New(store.NewMemory(store.MemoryConfig{}), openRing(t, sealed.GenerateRing()))
	cases := map[string]struct {
		key    string
		number uint64
		value  []byte
		want   sealed.Unopened
	}{
		"under another key":              {"one", 5, envelope(), sealed.Unopened{Refused: 1}},
		"with a higher number":           {"key", 6, envelope(), sealed.Unopened{Refused: 1}},
		"with a lower number":            {"key", 4, envelope(), sealed.Unopened{Refused: 1}},
		"under a longer key":             {"key\x00", 5, envelope(), sealed.Unopened{Refused: 1}},
		"with another nonce":             {"key", 5, altered(7), sealed.Unopened{Refused: 1}},
		"with another byte":              {"key", 5, altered(20), sealed.Unopened{Refused: 1}},
		"with another tag":               {"key", 5, altered(-1), sealed.Unopened{Refused: 1}},
		"cut by a byte":                  {"key", 5, envelope()[:len(envelope())-1], sealed.Unopened{Refused: 1}},
		"with a byte more":               {"key", 5, append(envelope(), 0), sealed.Unopened{Refused: 1}},
		"with the id of another key":     {"key", 5, altered(3), sealed.Unopened{UnknownKey: 1}},
		"sealed with a key of their own": {"key", 5, foreignEnvelope(t, foreign, "key", 5), sealed.Unopened{UnknownKey: 1}},
		"of another kind":                {"key", 5, altered(2), sealed.Unopened{NotSealed: 1}},
		"cut to its head":                {"key", 5, envelope()[:7], sealed.Unopened{NotSealed: 1}},
		"cut to less than a tag":         {"key", 5, envelope()[:sealed.SealedForGood-1], sealed.Unopened{NotSealed: 1}},
		"not sealed":                     {"key", 5, []byte(canaryValue + canaryValue + canaryValue), sealed.Unopened{NotSealed: 1}},
		"one byte":                       {"key", 5, []byte("T"), sealed.Unopened{NotSealed: 1}},
	}
	const floor = 16
	if len(cases) < floor {
		t.Fatalf("%d cases, expected at least %d", len(cases), floor)
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			raw := store.NewMemory(store.MemoryConfig{})
			victim := sealed.WithInner(outer, raw)
			mustApply(t, raw, c.key, c.number, c.value)
			if got := mustGet(t, victim, c.key); !isMiss(got) {
				t.Errorf("opened as %+v", got)
			}
			if counts := victim.Unopened(); counts != c.want {
				t.Errorf("counted %+v, want %+v", counts, c.want)
			}
		})
	}
	if got := mustGet(t, outer, "key"); string(got.Value) != canaryValue {
		t.Errorf("the value itself no longer opens: %+v", got)
	}
}

func foreignEnvelope(t *testing.T, foreign *sealed.Store, key string, number uint64) []byte {
	t.Helper()
	mustApply(t, foreign, key, number, []byte(canaryValue))
	return mustGet(t, sealed.Inner(foreign), key).Value
}

// A miss in the middle leaves its neighbours alone.
func TestUnreadableValueIsAMiss(t *testing.T) {
	sealed, inner := sealedPair(t)
	mustApply(t, sealed, "a", 1, []byte("value a"))
	mustApply(t, inner, "b", 1, []byte("not sealed, but long enough for an envelope"))
	if _, err := sealed.Raise(t.Context(), "c", 3, 0); err != nil {
		t.Fatal(err)
	}
	entries, err := sealed.Get(t.Context(), "a", "b", "c", "a")
	if err != nil {
		t.Fatal(err)
	}
	if string(entries[0].Value) != "value a" || !isMiss(entries[1]) || entries[2].Number != 3 || string(entries[3].Value) != "value a" {
		t.Errorf("got %+v", entries)
	}
}

// A claim opens what it reads as Get does, whether it is granted or not.
func TestClaimOpensWhatItReads(t *testing.T) {
	sealed, inner := sealedPair(t)
	mustApply(t, sealed, "a", 1, []byte("value a"))
	mustApply(t, inner, "b", 1, []byte("not sealed, but long enough for an envelope"))
	mustApply(t, inner, "c", 1, mustGet(t, inner, "a").Value) // moved to another key
	if _, err := sealed.Raise(t.Context(), "d", 3, 0); err != nil {
		t.Fatal(err)
	}
	claim := store.Claim{Key: "lease", Counter: "fences", TTL: time.Hour, Read: []string{"a", "b", "c", "d", "e", "a"}}
	for _, owner := range []string{"holder", "another"} {
		claim.Owner = owner
		claimed, err := sealed.Acquire(t.Context(), claim)
		if err != nil || claimed.Acquired != (owner == "holder") {
			t.Fatal(claimed.Acquired, err)
		}
		read, err := sealed.Get(t.Context(), claim.Read...)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(claimed.Entries, read) || string(read[0].Value) != "value a" || !isMiss(read[1]) || !isMiss(read[2]) {
			t.Errorf("%s: the claim read %+v, Get %+v", owner, claimed.Entries, read)
		}
	}
}

// Something that cannot be opened holds its place until something newer comes,
// and the next fence is newer.
func TestUnreadableValueIsOverwritten(t *testing.T) {
	sealed, inner := sealedPair(t)
	for _, owner := range []string{"a", "b"} {
		claimed, err := sealed.Acquire(t.Context(), store.Claim{Key: "lease", Owner: owner, Counter: "fences", TTL: time.Hour})
		if err != nil || !claimed.Acquired {
			t.Fatal(claimed, err)
		}
		lease := claimed.Lease
		puts := []store.Put{{Key: "key", Number: lease.Fence, Value: []byte("value of " + owner)}}
		into := store.Store(inner) // the first is not sealed
		if owner == "b" {
			into = sealed
			if applied, err := sealed.Apply(t.Context(), store.Change{Puts: []store.Put{{Key: "key", Number: lease.Fence - 1}}}); err != nil || applied[0] {
				t.Errorf("a put that is not newer was applied: %v, %v", applied, err)
			}
		}
		if _, err := into.Apply(t.Context(), store.Change{Puts: puts, Release: lease}); err != nil {
			t.Fatal(err)
		}
	}
	if got := mustGet(t, sealed, "key"); string(got.Value) != "value of b" {
		t.Errorf("holds %+v", got)
	}
}

func TestTooLargeValueIsRefused(t *testing.T) {
	outer, inner := sealedPair(t)
	largest := bytes.Repeat([]byte("v"), store.MaxValue-sealed.SealedForGood)
	mustApply(t, outer, "key", 1, largest)
	if got := mustGet(t, outer, "key"); len(got.Value) != len(largest) {
		t.Errorf("the largest value came back with %d bytes", len(got.Value))
	}
	_, err := outer.Apply(t.Context(), store.Change{Puts: []store.Put{{Key: "other", Number: 1, Value: append(largest, 0)}}})
	if err == nil || !strings.Contains(err.Error(), "at most 1048576 are allowed") {
		t.Errorf("a value one byte too large: %v", err)
	}
	if got := mustGet(t, inner, "other"); !isMiss(got) {
		t.Error("it was put")
	}
}

func TestSealedBoltFileShowsNoValue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broker.db")
	bolt := inBolt(t, path)
	sealed := sealed.New(bolt, openRing(t, sealed.GenerateRing()))
	for i := range uint64(200) {
		mustApply(t, sealed, fmt.Sprint("key ", i%50), i+1, []byte(strings.Repeat(canaryValue, 20)))
	}
	contains := func() bool {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(data, []byte(canaryValue))
	}
	if contains() {
		t.Error("the file shows a value")
	}
	mustApply(t, bolt, "bare", 1, []byte(canaryValue))
	if !contains() {
		t.Error("a bare value is not found: the test does not test what it should")
	}
}

// Replicas that read the ring at different times share a store while its key is
// changed.
func TestRingRotationCausesNoMiss(t *testing.T) {
	ring := sealed.GenerateRing()
	inner := store.NewMemory(store.MemoryConfig{})
	files := []*sealed.RingFile{openRing(t, ring), openRing(t, ring)}
	var replicas []*sealed.Store
	for _, file := range files {
		replicas = append(replicas, sealed.New(inner, file))
	}
	const keys = 20
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	defer load.Wait()
	defer stop()
	var written [keys]atomic.Uint64
	for key := range keys {
		load.Go(func() {
			for number := uint64(1); ctx.Err() == nil; number++ {
				mustApply(t, replicas[number%2], fmt.Sprint("key ", key), number, []byte(fmt.Sprint("value ", number)))
				written[key].Store(number)
			}
		})
	}
	for reader := range 2 {
		load.Go(func() {
			for key := 0; ctx.Err() == nil; key = (key + 1) % keys {
				least := written[key].Load()
				got := mustGet(t, replicas[reader%2], fmt.Sprint("key ", key))
				if got.Number < least || got.Number > 0 && string(got.Value) != fmt.Sprint("value ", got.Number) {
					t.Errorf("after %d was written: %+v", least, got)
					return
				}
			}
		})
	}
	rewritten := func() { // every key, by writers that began after the call
		for key := range keys {
			for least := written[key].Load() + 2; written[key].Load() < least && !t.Failed(); {
				<-time.After(time.Millisecond)
			}
		}
	}
	spread := func(ring *sealed.Ring) {
		for _, file := range files {
			writeRing(t, file.Path(), ring)
			reload(t, file)
			rewritten() // meanwhile the others have the ring before this
		}
	}
	rounds := 1
	if os.Getenv("TOKENBROKER_LONG") != "" {
		rounds = 20
	}
	for range rounds {
		old := ring.Primary()
		var id string
		var err error
		ring, id = ring.Add()
		spread(ring)
		if ring, err = ring.Promote(id); err != nil {
			t.Fatal(err)
		}
		spread(ring)
		rewritten()
		if ring, err = ring.Drop(old); err != nil {
			t.Fatal(err)
		}
		spread(ring)
	}
	for i, replica := range replicas {
		if counts := replica.Unopened(); counts != (sealed.Unopened{}) {
			t.Errorf("replica %d could not open %+v", i, counts)
		}
	}
}

// Why a key is added before it seals: who has not read it misses what it sealed.
func TestUnknownKeyIsAMiss(t *testing.T) {
	ring := sealed.GenerateRing()
	next, id := ring.Add()
	promoted, err := next.Promote(id)
	if err != nil {
		t.Fatal(err)
	}
	inner := store.NewMemory(store.MemoryConfig{})
	hasty, late := sealed.New(inner, openRing(t, promoted)), sealed.New(inner, openRing(t, ring))
	mustApply(t, hasty, "key", 1, []byte(canaryValue))
	if got := mustGet(t, late, "key"); !isMiss(got) || late.Unopened() != (sealed.Unopened{UnknownKey: 1}) {
		t.Errorf("got %+v, counted %+v", got, late.Unopened())
	}
	mustApply(t, late, "other", 1, []byte(canaryValue))
	if got := mustGet(t, hasty, "other"); string(got.Value) != canaryValue {
		t.Errorf("what the old key sealed no longer opens: %+v", got)
	}
}

// The primary seals, whichever other keys there are.
func TestPrimaryKeySeals(t *testing.T) {
	ring := sealed.GenerateRing()
	for range 4 {
		ring, _ = ring.Add()
	}
	for _, id := range ring.IDs() {
		if id != ring.Primary() {
			promoted, err := ring.Promote(id)
			if err != nil {
				t.Fatal(err)
			}
			ring = promoted
		}
		inner := store.NewMemory(store.MemoryConfig{})
		mustApply(t, sealed.New(inner, openRing(t, ring)), "key", 1, []byte(canaryValue))
		if envelope := mustGet(t, inner, "key").Value; fmt.Sprintf("%x", envelope[3:7]) != id {
			t.Errorf("sealed with %x, the primary is %s", envelope[3:7], id)
		}
	}
}

func TestSealedReturnsErrorsOfTheStore(t *testing.T) {
	sealed, inner := sealedPair(t)
	mustClose(t, inner)
	if _, err := sealed.Get(t.Context(), "key"); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Get: %v", err)
	}
	if _, err := sealed.Apply(t.Context(), store.Change{}); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Apply: %v", err)
	}
}

func FuzzOpenEnvelope(f *testing.F) {
	outer, inner := sealedPair(f)
	mustApply(f, outer, "key", 5, []byte(canaryValue))
	envelope := mustGet(f, inner, "key").Value
	for _, seed := range [][]byte{envelope, envelope[:len(envelope)-1], envelope[:7], append(bytes.Clone(envelope), 0), []byte("TB1"), []byte("TB1aaaabbbbbbbbbbbbcccccccccccccccc"), {0}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		if len(value) == 0 {
			return // a counter
		}
		raw := store.NewMemory(store.MemoryConfig{})
		victim := sealed.WithInner(outer, raw)
		mustApply(t, raw, "key", 5, value)
		got := mustGet(t, victim, "key")
		if want := bytes.Equal(value, envelope); want != !isMiss(got) {
			t.Errorf("%x opened as %+v", value, got)
		}
		if counts := victim.Unopened(); isMiss(got) && counts.NotSealed+counts.Refused+counts.UnknownKey != 1 {
			t.Errorf("counted %+v", counts)
		}
	})
}
