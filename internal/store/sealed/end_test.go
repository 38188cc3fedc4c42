package sealed_test

import (
	"bytes"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
)

// putFor puts a value that lives for a while.
func putFor(t *testing.T, s store.Store, key string, number uint64, value []byte, ttl time.Duration) {
	t.Helper()
	applied, err := s.Apply(t.Context(), store.Change{Puts: []store.Put{{Key: key, Number: number, Value: value, TTL: ttl}}})
	if err != nil || !applied[0] {
		t.Fatalf("applied %v, %v", applied, err)
	}
}

// The lifetime that the inner store tells may be any: the sealed end holds.
func TestSealedExpiry_storeLifetimeIsIgnored(t *testing.T) {
	for name, inStore := range map[string]time.Duration{
		"prolonged by an hour": time.Hour + time.Minute, "prolonged by a second": time.Minute + time.Second, "kept for good": 0,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				outer, inner := sealedPair(t)
				putFor(t, outer, "key", 1, []byte(canaryValue), time.Minute)
				raw := store.NewMemory(store.MemoryConfig{})
				putFor(t, raw, "key", 1, mustGet(t, inner, "key").Value, inStore)
				victim := sealed.WithInner(outer, raw)

				time.Sleep(20 * time.Second)
				got := mustGet(t, victim, "key")
				if string(got.Value) != canaryValue || got.TTL <= 0 || got.TTL > 40*time.Second {
					t.Errorf("after 20 s of 60: %q for %v", got.Value, got.TTL)
				}
				if want := max(inStore-time.Minute, 0); got.Excess != want {
					t.Errorf("the store's excess is %v, want %v", got.Excess, want)
				}
				time.Sleep(40 * time.Second)
				// The store's clock starts when the write arrives, so a moment more is usual.
				if got := mustGet(t, victim, "key"); !isMiss(got) || got.Unopened || victim.Unopened() != (sealed.Unopened{}) {
					t.Errorf("at its end: %+v, counted %+v", got, victim.Unopened())
				}
				time.Sleep(2 * time.Second)
				if got := mustGet(t, victim, "key"); !isMiss(got) || got.Unopened || victim.Unopened() != (sealed.Unopened{Outlived: 1}) && inStore != time.Minute+time.Second {
					t.Errorf("after its end: %+v, counted %+v", got, victim.Unopened())
				}
			})
		})
	}
}

// A store that ends a value earlier is believed.
func TestSealedExpiry_storeMayEndEarlier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		outer, inner := sealedPair(t)
		putFor(t, outer, "key", 1, []byte(canaryValue), time.Minute)
		raw := store.NewMemory(store.MemoryConfig{})
		putFor(t, raw, "key", 1, mustGet(t, inner, "key").Value, 10*time.Second)
		if got := mustGet(t, sealed.WithInner(outer, raw), "key"); got.TTL != 10*time.Second || got.Excess != 0 {
			t.Errorf("%v and an excess of %v", got.TTL, got.Excess)
		}
	})
}

// A value without an end stays one, whatever lifetime somebody gives it.
func TestSealedExpiry_lastingValue(t *testing.T) {
	outer, inner := sealedPair(t)
	mustApply(t, outer, "key", 1, []byte(canaryValue))
	raw := store.NewMemory(store.MemoryConfig{})
	putFor(t, raw, "key", 1, mustGet(t, inner, "key").Value, time.Hour)
	if got := mustGet(t, sealed.WithInner(outer, raw), "key"); string(got.Value) != canaryValue || got.TTL != 0 {
		t.Errorf("%q for %v", got.Value, got.TTL)
	}
}

// Neither the end nor the kind of an envelope can be changed.
func TestSealedExpiry_tampering(t *testing.T) {
	outer, inner := sealedPair(t)
	putFor(t, outer, "key", 5, []byte(canaryValue), time.Hour)
	mustApply(t, outer, "good", 5, []byte(canaryValue))
	envelope, forGood := mustGet(t, inner, "key").Value, mustGet(t, inner, "good").Value
	if len(envelope) != len(canaryValue)+sealed.Overhead {
		t.Fatalf("an envelope of %d bytes", len(envelope))
	}
	altered := func(at int, by byte) []byte {
		value := bytes.Clone(envelope)
		value[at] ^= by
		return value
	}
	for name, c := range map[string]struct {
		value []byte
		want  sealed.Unopened
	}{
		"a later end":                    {altered(14, 1), sealed.Unopened{Refused: 1}},
		"an end in the far future":       {altered(7, 1), sealed.Unopened{Refused: 1}},
		"a negative end":                 {altered(7, 0x80), sealed.Unopened{Refused: 1}},
		"marked as for good":             {altered(2, '1'^'2'), sealed.Unopened{Refused: 1}},
		"for good, without its end":      {append([]byte("TB1"), append(bytes.Clone(envelope[3:7]), envelope[15:]...)...), sealed.Unopened{Refused: 1}},
		"one for good with an end":       {append([]byte("TB2"), append(append(bytes.Clone(forGood[3:7]), make([]byte, 8)...), forGood[7:]...)...), sealed.Unopened{Refused: 1}},
		"one for good marked as limited": {append([]byte("TB2"), forGood[3:]...), sealed.Unopened{Refused: 1}},
		"cut to less than a tag":         {envelope[:sealed.Overhead-1], sealed.Unopened{NotSealed: 1}},
		"cut within the end":             {envelope[:10], sealed.Unopened{NotSealed: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			raw := store.NewMemory(store.MemoryConfig{})
			victim := sealed.WithInner(outer, raw)
			mustApply(t, raw, "key", 5, c.value)
			if got := mustGet(t, victim, "key"); !isMiss(got) || !got.Unopened || victim.Unopened() != c.want {
				t.Errorf("opened as %+v, counted %+v, want %+v", got, victim.Unopened(), c.want)
			}
		})
	}
}

// What somebody who can write to Redis may do to lifetimes there.
func TestSealedExpiry_redis(t *testing.T) {
	server := redistest.Start(t, redistest.Options{})
	sealed := sealed.New(inRedis(t, server.Addr()), openRing(t, sealed.GenerateRing()))
	const life = 2 * time.Second
	prolong := map[string]func(name string){
		"PEXPIRE": func(name string) { server.CLI("PEXPIRE", name, "3600000") },
		"PERSIST": func(name string) { server.CLI("PERSIST", name) },
		"COPY and RENAME": func(name string) {
			server.CLI("COPY", name, name+":kept")
			server.CLI("PEXPIRE", name+":kept", "3600000")
			server.CLI("RENAME", name+":kept", name)
		},
		"DUMP and RESTORE": func(name string) { // redis-cli cannot pass a dump on as an argument
			server.CLI("EVAL", "return redis.call('RESTORE', KEYS[1], 3600000, redis.call('DUMP', KEYS[1]), 'REPLACE')", "1", name)
		},
	}
	begun := time.Now()
	for way, do := range prolong {
		key := "tb{" + way + "}"
		putFor(t, sealed, key, 7, []byte(canaryValue), life)
		do("tb1:" + key)
		if left, _ := strconv.Atoi(server.CLI("PTTL", "tb1:"+key)); left > 0 && left < 3_000_000 {
			t.Fatalf("%s left it %d ms", way, left)
		}
		got := mustGet(t, sealed, key)
		if time.Since(begun) < life && (string(got.Value) != canaryValue || got.TTL > life || got.TTL <= 0) {
			t.Errorf("%s: %q for %v", way, got.Value, got.TTL)
		}
	}
	time.Sleep(life)
	for way := range prolong {
		if got := mustGet(t, sealed, "tb{"+way+"}"); !isMiss(got) || got.Unopened {
			t.Errorf("%s: after its end there is %+v", way, got)
		}
		if there := server.CLI("EXISTS", "tb1:tb{"+way+"}"); there != "1" {
			t.Errorf("%s: Redis has not kept it, so nothing was tried", way)
		}
	}
	// Its place is taken by the next fence all the same.
	putFor(t, sealed, "tb{PEXPIRE}", 8, []byte("newer"), time.Hour)
	if got := mustGet(t, sealed, "tb{PEXPIRE}"); string(got.Value) != "newer" {
		t.Errorf("the next value is %+v", got)
	}
}
