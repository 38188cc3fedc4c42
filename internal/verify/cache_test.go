package verify_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// long multiplies the number of steps if there is time for more.
func long(n, times int) int {
	if os.Getenv("TOKENBROKER_LONG") != "" {
		return n * times
	}
	return n
}

// lookups fails unless the cache was hit and missed that often since it was made.
func lookups(t *testing.T, v *verify.Verifier, hits, misses int) {
	t.Helper()
	if gotHits, gotMisses := v.Lookups(); gotHits != hits || gotMisses != misses {
		t.Errorf("%d hits and %d misses, want %d and %d", gotHits, gotMisses, hits, misses)
	}
}

// I14 D8: a token is verified once and causes no request as long as its key stays the same,
// even if the set is fetched again.
func TestCache_hitsAreCheap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "ES256", "k")
		web := serve(josetest.Set(key.JWK()))
		v := newVerifier(t, web, configOf(issuerA))
		run(t, v)
		synctest.Wait()
		token, uncached := forever(key, issuerA), v.WithoutCache()
		const calls = 100
		for range calls {
			if got, elapsed := timed(t, v, token); got != "active" || elapsed != 0 {
				t.Fatalf("%s in %v", got, elapsed)
			}
			time.Sleep(time.Minute)
		}
		lookups(t, v, calls-1, 1)
		if n := web.fetches(); n < 20 {
			t.Errorf("the keys were fetched %d times meanwhile: the test tests little", n)
		}
		fetches := web.fetches()
		warm := testing.AllocsPerRun(100, func() { outcome(t, v, token, verify.Request{}) })
		cold := testing.AllocsPerRun(100, func() { outcome(t, uncached, token, verify.Request{}) })
		if warm > 8 || cold < 15 { // a verification cannot do with so few
			t.Errorf("%v allocations for a hit, %v without the cache", warm, cold)
		}
		if web.fetches() != fetches {
			t.Error("a hit caused a request")
		}
	})
}

// I2 I3 D13 D14: the time is judged on every hit, even if the clock goes back, and no
// rejection is cached.
func TestTimeIsJudgedOnEveryHit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "EdDSA", "k")
		v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA)))
		now := time.Now()
		token := key.Token(key.Header(), claims(jsonObject{"nbf": now.Unix() + 600, "exp": now.Unix() + 1200}))
		for i, tt := range []struct {
			at   time.Duration
			want string
		}{
			{0, "not_yet_valid"},
			{570*time.Second - 1, "not_yet_valid"},
			{570 * time.Second, "active"},
			{1230*time.Second - 1, "active"},
			{1230 * time.Second, "expired"},
			{time.Hour, "expired"},
			{700 * time.Second, "active"},
			{0, "not_yet_valid"},
			{-time.Hour, "not_yet_valid"},
			{1229 * time.Second, "active"},
			{24 * time.Hour, "expired"},
			{600 * time.Second, "active"},
		} {
			result, err := v.VerifyAt(t.Context(), redact.New(token), verify.Request{}, now.Add(tt.at))
			if got := word(t, result, err); got != tt.want {
				t.Errorf("step %d, at %v: %s, want %s", i, tt.at, got, tt.want)
			}
			if result.ValidUntil.After(now.Add(1200 * time.Second)) {
				t.Errorf("step %d: valid until %v, after it expires", i, result.ValidUntil)
			}
		}
		lookups(t, v, 11, 1)
	})
}

// I4 D8 D9: cached facts become unusable as soon as their key is removed.
func TestCache_entriesEndWithTheirKey(t *testing.T) {
	old, other := josetest.New(t, "RS256", "k"), josetest.New(t, "RS256", "k")
	for name, tt := range map[string]struct {
		set  []jsonObject
		want string
		hits int
	}{
		"it stays":               {[]jsonObject{old.JWK(), other.JWK(jsonObject{"kid": "l"})}, "active", 1},
		"it is gone":             {[]jsonObject{other.JWK(jsonObject{"kid": "l"})}, "unknown_key", 0},
		"another has its kid":    {[]jsonObject{other.JWK()}, "bad_signature", 0},
		"two have its kid":       {[]jsonObject{old.JWK(), other.JWK(), other.JWK(jsonObject{"kid": "l"})}, "unknown_key", 0},
		"it has another kid":     {[]jsonObject{old.JWK(jsonObject{"kid": "l"})}, "unknown_key", 0},
		"it is for encryption":   {[]jsonObject{old.JWK(jsonObject{"use": "enc"}), other.JWK(jsonObject{"kid": "l"})}, "unknown_key", 0},
		"it is for PS256 now":    {[]jsonObject{old.JWK(jsonObject{"alg": "PS256"})}, "algorithm_not_allowed", 0},
		"it is for RS256 only":   {[]jsonObject{old.JWK(jsonObject{"alg": "RS256"})}, "active", 0},
		"its set has no keys":    {nil, "active", 1}, // a failed fetch
		"its use is not said":    {[]jsonObject{old.JWK(jsonObject{"use": nil})}, "active", 1},
		"its place is the third": {[]jsonObject{other.JWK(jsonObject{"kid": "l"}), other.JWK(jsonObject{"kid": "m"}), old.JWK()}, "active", 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			web := serve(josetest.Set(old.JWK()))
			v := load(t, newVerifier(t, web, configOf(issuerA)))
			token := old.Token(old.Header(), claims())
			if got := outcome(t, v, token, verify.Request{}); got != "active" {
				t.Fatal(got)
			}
			web.publish(tt.set...)
			_ = v.Refresh(t.Context(), issuerA) // one of the sets is an error
			if got := outcome(t, v, token, verify.Request{}); got != tt.want {
				t.Errorf("%s: %s, want %s", name, got, tt.want)
			}
			if hits, _ := v.Lookups(); hits != tt.hits {
				t.Errorf("%s: %d hits, want %d", name, hits, tt.hits)
			}
			web.publish(old.JWK())
			time.Sleep(time.Minute)
			if err := v.Refresh(t.Context(), issuerA); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if got := outcome(t, v, token, verify.Request{}); got != "active" {
					t.Errorf("%s, and when it is as it was: %s", name, got)
				}
			}
			if entries, _ := v.Cached(); entries > 3 {
				t.Errorf("%s: %d entries for one token", name, entries)
			}
		})
	}
}

// I4: stale keys are not used, even for cached tokens.
func TestCache_staleKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "EdDSA", "k")
		c := configOf(issuerA)
		c.Keys.MaxStale = 10 * time.Minute
		web := serve(josetest.Set(key.JWK()))
		v := load(t, newVerifier(t, web, c))
		token := forever(key, issuerA)
		web.set(respond(http.StatusServiceUnavailable, nil, nil))
		run(t, v)
		for _, tt := range []struct {
			sleep time.Duration
			want  string
		}{{0, "active"}, {10 * time.Minute, "active"}, {time.Nanosecond, "unavailable"}, {time.Hour, "unavailable"}} {
			time.Sleep(tt.sleep)
			if got := outcome(t, v, token, verify.Request{}); got != tt.want {
				t.Errorf("%v later: %s, want %s", tt.sleep, got, tt.want)
			}
		}
		web.publish(key.JWK())
		time.Sleep(70 * time.Second)
		if got := outcome(t, v, token, verify.Request{}); got != "active" {
			t.Errorf("afterwards: %s", got)
		}
		lookups(t, v, 2, 3)
	})
}

// I5: a Verifier with another configuration starts with an empty cache.
func TestCache_changedConfiguration(t *testing.T) {
	key := josetest.New(t, "EdDSA", "k")
	web := serve(josetest.Set(key.JWK()))
	token := key.Token(key.Header(), claims())
	first := load(t, newVerifier(t, web, configOf(issuerA)))
	for range 2 {
		if got := outcome(t, first, token, verify.Request{}); got != "active" {
			t.Fatal(got)
		}
	}
	for want, change := range map[string]func(*verify.IssuerConfig){
		"unknown_issuer":        func(c *verify.IssuerConfig) { c.Issuer = issuerB },
		"algorithm_not_allowed": func(c *verify.IssuerConfig) { c.Algorithms = []string{"RS256"} },
		"wrong_type":            func(c *verify.IssuerConfig) { c.Types = []string{"JWT"} },
		"wrong_audience":        func(c *verify.IssuerConfig) { c.Audiences = []string{"x"} },
		"lifetime_too_long":     func(c *verify.IssuerConfig) { c.MaxLifetime = time.Minute },
		"insufficient_scope":    func(c *verify.IssuerConfig) { c.ScopeClaim = []string{"scp"} },
	} {
		c := configOf(issuerA)
		change(&c)
		if got := outcome(t, load(t, newVerifier(t, web, c)), token, verify.Request{Scopes: []string{"read"}}); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// I6 D12: each token has facts of its own.
func TestCache_factsOfTheRightToken(t *testing.T) {
	key := josetest.New(t, "EdDSA", "k")
	v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA)))
	tokens := make([]string, 1500) // more than a million pairs, most of them of equal length
	for i := range tokens {
		tokens[i] = key.Token(key.Header(), claims(jsonObject{"sub": fmt.Sprintf("s%d", i), "jti": strings.Repeat("x", i%7)}))
	}
	for range 2 {
		for _, i := range rand.Perm(len(tokens)) {
			result, err := v.Verify(t.Context(), redact.New(tokens[i]), verify.Request{})
			if err != nil || result.Facts == nil || result.Facts.Subject != fmt.Sprintf("s%d", i) || !strings.Contains(string(result.Facts.Claims), fmt.Sprintf(`"s%d"`, i)) {
				t.Fatalf("token %d: %+v, %v", i, result, err)
			}
		}
	}
	lookups(t, v, len(tokens), len(tokens))
}

// Concurrent verifications of one token each put its facts into the cache.
func TestCache_oneEntryPerToken(t *testing.T) {
	key := josetest.New(t, "EdDSA", "k")
	v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA)))
	token := key.Token(key.Header(), claims())
	for range 3 {
		if err := v.VerifyCold(t.Context(), redact.New(token)); err != nil {
			t.Fatal(err)
		}
	}
	if entries, _ := v.Cached(); entries != 1 {
		t.Errorf("%d entries for one token", entries)
	}
}

// I6 I7 D12 D19: a token's digest depends on each of its bytes and on a secret of the
// process, and a token has one encoding only. Another signature of the same claims makes
// another token.
func TestTokensThatDifferInOneByteAreDifferent(t *testing.T) {
	key, es := josetest.New(t, "EdDSA", "k"), josetest.New(t, "ES256", "es")
	web := serve(josetest.Set(key.JWK(), es.JWK()))
	v, other := load(t, newVerifier(t, web, configOf(issuerA))), newVerifier(t, web, configOf(issuerA))
	token := key.Token(key.Header(), claims())
	outcome(t, v, token, verify.Request{})
	id := v.TokenDigest(token)
	if v.TokenDigest(token) != id || other.TokenDigest(token) == id || id == [32]byte{} {
		t.Error("what stands for a token is not a function of it and of a secret of the process")
	}
	seen := map[[32]byte]bool{id: true}
	for i := range token {
		for _, mutant := range mutants(token, i)[:3] {
			if got := outcome(t, v, mutant, verify.Request{}); got == "active" {
				t.Fatalf("changed at %d: %s", i, got)
			}
		}
		changed := token[:i] + string(token[i]^1) + token[i+1:]
		if seen[v.TokenDigest(changed)] || seen[v.TokenDigest(token[:i])] || len(seen) != 2*i+1 {
			t.Fatalf("changed or cut at %d: no key of its own", i)
		}
		seen[v.TokenDigest(changed)], seen[v.TokenDigest(token[:i])] = true, true
	}
	for _, spelling := range []string{token + "=", token + "\n", " " + token, spare(token), token + "\x00", strings.Replace(token, ".", "\r\n.", 1)} {
		if got := outcome(t, v, spelling, verify.Request{}); got != "malformed" {
			t.Errorf("%q: %s", spelling, got)
		}
	}
	if entries, _ := v.Cached(); entries != 1 {
		t.Errorf("%d entries", entries)
	}
	signed := es.Token(es.Header(), claims())
	for _, token := range []string{signed, twinOf(es, signed), signed, twinOf(es, signed)} { // B17
		if got := outcome(t, v, token, verify.Request{}); got != "active" {
			t.Error(got)
		}
	}
	if entries, _ := v.Cached(); entries != 3 {
		t.Errorf("%d entries", entries)
	}
}

// I10.
func TestVerify_resultsShareImmutableFacts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "EdDSA", "k")
		v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA)))
		for name, change := range map[string]jsonObject{
			"usual":             {},
			"short lists":       {"aud": []string{audience, "x", "y"}, "cnf": jsonObject{"jkt": "t"}},
			"long lists":        {"aud": append(strings.Split(strings.Repeat("a", 30), ""), audience), "scope": strings.Repeat("s ", 30)},
			"a list with gaps":  {"scope": nil, "scp": []string{"", "read", "", "write", ""}},
			"empty lists":       {"scope": ""},
			"claims with space": {"pad": strings.Repeat(" ", 777)},
		} {
			token := key.Token(key.Header(), claims(change))
			var results [3]verify.Result
			for i := range results {
				var err error
				if results[i], err = v.Verify(t.Context(), redact.New(token), verify.Request{}); err != nil || results[i].Facts == nil {
					t.Fatal(name, results[i].Rejection, err)
				}
			}
			if results[1].Facts != results[0].Facts || results[2].Facts != results[0].Facts {
				t.Errorf("%s: the results have facts of their own", name)
			}
			checkNoSpareRoom(t, results[0].Facts)
		}
	})
}

// checkNoSpareRoom fails if appending to a list would write to memory of the shared facts.
func checkNoSpareRoom(t *testing.T, f *verify.Facts) {
	t.Helper()
	if cap(f.Audience) != len(f.Audience) || cap(f.Scopes) != len(f.Scopes) || cap(f.Claims) != len(f.Claims) {
		t.Errorf("spare room: %d of %d audiences, %d of %d scopes, %d of %d bytes",
			len(f.Audience), cap(f.Audience), len(f.Scopes), cap(f.Scopes), len(f.Claims), cap(f.Claims))
	}
}

// I11 D14 D16: neither errors nor rejections are cached, and a caller that gives up does not
// affect others.
func TestCache_onlyVerifiedTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, unknownKey := josetest.New(t, "EdDSA", "k"), josetest.New(t, "EdDSA", "k")
		web := new(site)
		web.set(after(3*time.Second, respond(http.StatusOK, josetest.Set(key.JWK()), nil)))
		v := newVerifier(t, web, configOf(issuerA))
		token := forever(key, issuerA)
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		patientGot := make(chan string, 1)
		go func() { _, _ = v.Verify(impatient, redact.New(token), verify.Request{}) }()
		go func() { patientGot <- outcome(t, v, token, verify.Request{}) }()
		run(t, v)
		time.Sleep(2 * time.Second)
		if entries, _ := v.Cached(); entries != 0 {
			t.Error("something is remembered of tokens whose key is not there yet")
		}
		if got := <-patientGot; got != "active" {
			t.Errorf("who waited got %s", got)
		}
		entries, bytes := v.Cached()
		for want, token := range map[string]string{
			"malformed": token + "=", "bad_signature": unknownKey.Token(unknownKey.Header(), claims()), "bad_claims": key.Token(key.Header(), claims(jsonObject{"sub": 1})),
			"unknown_issuer": key.Token(key.Header(), claims(jsonObject{"iss": issuerB})), "unknown_key": key.Token(key.Header(jsonObject{"kid": "x"}), claims()),
		} {
			for range 2 {
				if got := outcome(t, v, token, verify.Request{}); got != want {
					t.Errorf("%s, want %s", got, want)
				}
			}
		}
		if e, b := v.Cached(); e != entries || b != bytes || entries != 1 {
			t.Errorf("%d entries of %d bytes, and before %d of %d", e, b, entries, bytes)
		}
	})
}

func TestCacheMetricsAndSwitch(t *testing.T) {
	key := josetest.New(t, "EdDSA", "k")
	registry := prometheus.NewRegistry()
	verifier := func(cacheBytes int64) *verify.Verifier {
		v, err := verify.New(verify.Config{
			Issuers: []verify.IssuerConfig{configOf(issuerA)}, HTTP: discovery.NewHTTPClient(serve(josetest.Set(key.JWK()))), Registerer: registry, CacheBytes: cacheBytes,
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return load(t, v)
	}
	expect := func(hits, misses int, bytes int64) {
		t.Helper()
		if err := testutil.GatherAndCompare(registry, strings.NewReader(fmt.Sprintf(`
# HELP tokenbroker_verify_cache_bytes Memory used by cached facts of verified JWTs.
# TYPE tokenbroker_verify_cache_bytes gauge
tokenbroker_verify_cache_bytes %d
# HELP tokenbroker_verify_cache_lookups_total Cache lookups of presented JWTs by result: hit (the signature was verified before) or miss.
# TYPE tokenbroker_verify_cache_lookups_total counter
tokenbroker_verify_cache_lookups_total{result="hit"} %d
tokenbroker_verify_cache_lookups_total{result="miss"} %d
`, bytes, hits, misses)), "tokenbroker_verify_cache_bytes", "tokenbroker_verify_cache_lookups_total"); err != nil {
			t.Error(err)
		}
	}
	v := verifier(0)
	expect(0, 0, 0)
	token := key.Token(key.Header(), claims())
	for range 3 {
		outcome(t, v, token, verify.Request{})
	}
	outcome(t, v, "x", verify.Request{})
	entries, bytes := v.Cached()
	if entries != 1 || bytes < 500 || bytes > 2500 {
		t.Errorf("%d entries of %d bytes", entries, bytes)
	}
	expect(2, 2, bytes)
	outcome(t, verifier(0), token, verify.Request{})
	expect(2, 3, bytes) // of the entry that replaced the first
	uncached := verifier(noCache)
	for range 3 {
		if got := outcome(t, uncached, token, verify.Request{}); got != "active" {
			t.Error(got)
		}
	}
	expect(2, 3, 0)
}

func TestValidUntil_maxValidity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "EdDSA", "k")
		web := new(site)
		web.set(respond(http.StatusOK, josetest.Set(key.JWK()), http.Header{"Cache-Control": {"max-age=900"}}))
		for configured, want := range map[time.Duration]time.Duration{0: 5 * time.Minute, time.Second: time.Second, 10 * time.Minute: 10 * time.Minute, time.Hour: 10 * time.Minute} {
			v, err := verify.New(verify.Config{Issuers: []verify.IssuerConfig{configOf(issuerA)}, HTTP: discovery.NewHTTPClient(web), MaxValidity: configured}, nil)
			if err != nil {
				t.Fatal(err)
			}
			load(t, v)
			token := key.Token(key.Header(), claims()) // which lives 10 min
			for range 2 {
				result, err := v.Verify(t.Context(), redact.New(token), verify.Request{})
				if got := time.Until(result.ValidUntil); err != nil || got != want {
					t.Errorf("configured %v: %v, want %v", configured, got, want)
				}
			}
		}
		if _, err := verify.New(verify.Config{MaxValidity: -1}, nil); err == nil {
			t.Error("a negative time was accepted")
		}
	})
}
