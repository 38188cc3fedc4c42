package verify_test

import (
	"encoding/base64"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// I8 D15: a caller without a valid token cannot evict the tokens of others.
func TestInvalidTokensLeaveTheCacheAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, unknownKey := josetest.New(t, "EdDSA", "k"), josetest.New(t, "EdDSA", "k")
		v := load(t, newCached(t, 512<<10, serve(josetest.Set(key.JWK())), configOf(issuerA)))
		var good, bad []string
		for i := range 20 {
			good = append(good, key.Token(key.Header(), claims(jsonObject{"sub": fmt.Sprint(i)})))
			bad = append(bad, unknownKey.Token(unknownKey.Header(), claims(jsonObject{"sub": fmt.Sprint(i)})))
		}
		for _, token := range good {
			outcome(t, v, token, verify.Request{})
		}
		entries, bytes := v.Cached()
		for i := range long(20_000, 50) {
			token := bad[i%len(bad)]
			if i%20 != 0 {
				token = fmt.Sprintf("%x.%s", i, token) // cheap to refuse
			}
			if got := outcome(t, v, token, verify.Request{}); got == "active" {
				t.Fatal(got)
			}
		}
		if e, b := v.Cached(); e != entries || b != bytes {
			t.Errorf("%d entries of %d bytes, and before %d of %d", e, b, entries, bytes)
		}
		before, _ := v.Lookups()
		for _, token := range good {
			outcome(t, v, token, verify.Request{})
		}
		if after, _ := v.Lookups(); after-before != entries {
			t.Errorf("%d hits of %d entries", after-before, entries)
		}
	})
}

// I8: used tokens survive any number of other tokens.
func TestCache_usedTokensSurviveAFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "EdDSA", "k")
		v := load(t, newCached(t, 256<<10, serve(josetest.Set(key.JWK())), configOf(issuerA)))
		token := func(sub string) string { return key.Token(key.Header(), claims(jsonObject{"sub": sub})) }
		used := token("used")
		outcome(t, v, used, verify.Request{})
		_, misses := v.Lookups()
		const flood = 1500
		for i := range flood {
			outcome(t, v, token(fmt.Sprint(i)), verify.Request{})
			outcome(t, v, used, verify.Request{})
		}
		lookups(t, v, flood, misses+flood)
		entries, bytes := v.Cached()
		if bytes > 256<<10 || entries < 50 || entries > flood/2 {
			t.Errorf("%d entries of %d bytes", entries, bytes)
		}
	})
}

// heap is what is in use after a collection, in bytes.
func heap() int64 {
	runtime.GC()
	runtime.GC() // for what was waiting for a finalizer, or in a pool
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// I8: the cache's estimate of its memory is right for tokens of any form.
func TestCacheCountsWhatItHolds(t *testing.T) {
	for name, change := range map[string]func(n int) jsonObject{
		"small tokens": func(int) jsonObject { return jsonObject{"scope": nil, "client_id": nil, "jti": nil} },
		"usual tokens": func(int) jsonObject { return jsonObject{"pad": strings.Repeat("x", 600)} },
		"long claims":  func(int) jsonObject { return jsonObject{"pad": strings.Repeat("x", 5000)} },
		"long texts": func(int) jsonObject {
			return jsonObject{"jti": strings.Repeat("j", 1000), "client_id": strings.Repeat("c", 500), "cnf": jsonObject{"jkt": strings.Repeat("t", 43)}}
		},
		"many scopes": func(int) jsonObject { return jsonObject{"scope": strings.Repeat("s ", 500) + "read"} },
		"many audiences": func(int) jsonObject {
			return jsonObject{"aud": append(strings.Split(strings.Repeat("a", 800), ""), audience)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			const tokens = 200
			key := josetest.New(t, "EdDSA", "k")
			v := load(t, newCached(t, 1<<30, serve(josetest.Set(key.JWK())), configOf(issuerA)))
			outcome(t, v, key.Token(key.Header(), claims()), verify.Request{})
			before := heap()
			_, counted := v.Cached()
			for n := range tokens {
				token := key.Token(key.Header(), claims(change(n), jsonObject{"sub": fmt.Sprintf("subject-%d", n)}))
				if got := outcome(t, v, token, verify.Request{}); got != "active" {
					t.Fatal(got)
				}
			}
			held := heap() - before
			entries, bytes := v.Cached()
			counted = bytes - counted
			t.Logf("%d bytes each, counted as %d", held/tokens, counted/tokens)
			if entries != tokens+1 || held > counted || counted > 2*held {
				t.Errorf("%d entries hold %d bytes and are counted as %d", entries-1, held, counted)
			}
		})
	}
}

// I8: under a flood of distinct valid tokens memory stays within the bound.
func TestMemoryUnderAFloodOfValidTokens(t *testing.T) {
	const bound = 4 << 20
	key := josetest.New(t, "EdDSA", "k")
	v := load(t, newCached(t, bound, serve(josetest.Set(key.JWK())), configOf(issuerA)))
	outcome(t, v, key.Token(key.Header(), claims()), verify.Request{})
	before, most := heap(), int64(0)
	const batch = 1000
	for round := range long(8, 8) {
		for n := range batch {
			pad := strings.Repeat("x", (round%3)*1500) // small ones first
			token := key.Token(key.Header(), claims(jsonObject{"sub": fmt.Sprintf("%d-%d", round, n), "pad": pad}))
			if got := outcome(t, v, token, verify.Request{}); got != "active" {
				t.Fatal(got)
			}
		}
		most = max(most, heap()-before)
	}
	_, bytes := v.Cached()
	t.Logf("at most %d KiB, counted as %d KiB", most>>10, bytes>>10)
	if most > bound || bytes > bound || bytes < bound*8/10 {
		t.Errorf("the heap grew by up to %d bytes, %d are counted, and %d are the bound", most, bytes, bound)
	}
}

// I12 D20: no part of a token except its claims is reachable from the cache.
func TestCacheHoldsNoPartOfAToken(t *testing.T) {
	key, foreign := josetest.New(t, "ES256", "k"), josetest.New(t, "ES256", "k")
	v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA)))
	tokens := []string{usual(foreign), usual(key), key.Token(key.Header(), claims(jsonObject{"pad": strings.Repeat("x", 3000)}))}
	for range 2 {
		for _, token := range tokens {
			outcome(t, v, token, verify.Request{})
		}
	}
	memory := string(v.Memory(tokens[2]))
	if !strings.Contains(memory, `"preferred_username":"alice"`) || !strings.Contains(memory, "read\n") {
		t.Fatal("the claims were not found in the cache: the test tests nothing")
	}
	for n, token := range tokens {
		for i := range len(token) - 15 {
			if strings.Contains(memory, token[i:i+16]) {
				t.Fatalf("of token %d 16 bytes are held, those from %d of %d on", n, i, len(token))
			}
		}
		signature, err := base64.RawURLEncoding.DecodeString(token[strings.LastIndexByte(token, '.')+1:])
		if err != nil || strings.Contains(memory, string(signature[:16])) || strings.Contains(memory, string(signature[48:])) {
			t.Errorf("of token %d the signature is held (%v)", n, err)
		}
	}
}
