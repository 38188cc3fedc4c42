package verify_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// D5 K7: 300 tokens a second with kids of the attacker's own, for a minute.
func TestUnknownKeysCauseFewFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "EdDSA", "k")
		set := respond(http.StatusOK, josetest.Set(key.JWK()), nil)
		web := new(site)
		web.set(after(200*time.Millisecond, set))
		c := configOf(issuerA)
		c.Keys.RefreshInterval = 15 * time.Minute
		v := newVerifier(t, web, c)
		run(t, v)
		time.Sleep(15 * time.Second)
		good := forever(key, issuerA)
		before := web.fetches()
		var waited atomic.Int64
		_, signed, _ := strings.Cut(key.Token(key.Header(), "{\"iss\":\""+issuerA+"\"}"), ".")
		for range 60 * 100 {
			time.Sleep(10 * time.Millisecond)
			for range 3 {
				header := fmt.Sprintf(`{"alg":"EdDSA","typ":"at+jwt","kid":"%d"}`, rand.Uint64())
				bad := josetest.Base64([]byte(header)) + "." + signed // no key: no signature is checked
				go func() {
					got, elapsed := timed(t, v, bad)
					if got != "unknown_key" || elapsed > 200*time.Millisecond {
						t.Errorf("%s in %v", got, elapsed)
					}
					if elapsed > 0 {
						waited.Add(1)
					}
				}()
			}
			if got, elapsed := timed(t, v, good); got != "active" || elapsed != 0 {
				t.Fatalf("a good token meanwhile: %s in %v", got, elapsed)
			}
		}
		time.Sleep(time.Second)
		if n := web.fetches() - before; n < 5 || n > 7 {
			t.Errorf("%d fetches in a minute", n)
		}
		if n := waited.Load(); n < 100 || n > 1000 {
			t.Errorf("%d of 18,000 waited for a fetch", n)
		}
	})
}

// D6 K8.
func TestBadSignaturesCauseNoFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, other := josetest.New(t, "EdDSA", "k"), josetest.New(t, "EdDSA", "k")
		web := serve(josetest.Set(key.JWK()))
		v := newVerifier(t, web, configOf(issuerA))
		run(t, v)
		time.Sleep(30 * time.Second)
		bad := other.Token(other.Header(), claims())
		for range 1000 {
			if got, elapsed := timed(t, v, bad); got != "bad_signature" || elapsed != 0 {
				t.Fatalf("%s in %v", got, elapsed)
			}
		}
		// B6: nor do tokens without kid, if there is a single key.
		if got, elapsed := timed(t, v, other.Token(other.Header(jsonObject{"kid": nil}), claims())); got != "bad_signature" || elapsed != 0 {
			t.Errorf("no kid: %s in %v", got, elapsed)
		}
		time.Sleep(time.Second)
		if web.fetches() != 1 {
			t.Errorf("%d fetches", web.fetches())
		}
	})
}

func TestRotation_firstTokenOfTheNewKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, fresh := josetest.New(t, "EdDSA", "old"), josetest.New(t, "EdDSA", "fresh")
		web := serve(josetest.Set(old.JWK()))
		v := newVerifier(t, web, configOf(issuerA))
		run(t, v)
		time.Sleep(time.Minute)
		web.publish(old.JWK(), fresh.JWK())
		if got := outcome(t, v, forever(fresh, issuerA), verify.Request{}); got != "active" {
			t.Errorf("a minute after the last fetch: %s", got)
		}
		// Also while other unknown kids use up the permitted fetches.
		newest := josetest.New(t, "EdDSA", "newest")
		flood := func() { outcome(t, v, old.Token(old.Header(jsonObject{"kid": "x"}), claims()), verify.Request{}) }
		time.Sleep(time.Minute)
		flood()
		web.publish(old.JWK(), newest.JWK())
		start := time.Now()
		for outcome(t, v, forever(newest, issuerA), verify.Request{}) != "active" {
			flood()
			time.Sleep(100 * time.Millisecond)
		}
		if lag := time.Since(start); lag > 10*time.Second+100*time.Millisecond {
			t.Errorf("picked up after %v", lag)
		}
	})
}

// While an issuer is unavailable, an unknown key may be a new key of the issuer.
func TestUnknownKey_unavailableIssuer(t *testing.T) {
	for name, tt := range map[string]struct {
		outage  func(*http.Request) (*http.Response, error)
		elapsed time.Duration
	}{"it hangs": {hang, time.Second}, "it fails": {respond(http.StatusServiceUnavailable, nil, nil), 0}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				key := josetest.New(t, "EdDSA", "k")
				web := serve(josetest.Set(key.JWK()))
				v := newVerifier(t, web, configOf(issuerA))
				run(t, v)
				time.Sleep(time.Minute)
				web.set(tt.outage)
				unknownKey := key.Token(key.Header(jsonObject{"kid": "stranger"}), claims())
				if got, elapsed := timed(t, v, unknownKey); got != "unavailable" || elapsed != tt.elapsed {
					t.Errorf("%s in %v", got, elapsed)
				}
				time.Sleep(6 * time.Second) // the fetch has failed by now
				if got, elapsed := timed(t, v, unknownKey); got != "unavailable" || elapsed > time.Second {
					t.Errorf("later: %s in %v", got, elapsed)
				}
				web.publish(key.JWK())
				time.Sleep(15 * time.Second)
				if got := outcome(t, v, unknownKey, verify.Request{}); got != "unknown_key" {
					t.Errorf("when it can be asked again: %s", got)
				}
			})
		})
	}
}

// B6: a token without kid verifies with the single key of an issuer. It never causes a fetch,
// and is rejected as soon as there are two keys.
func TestTokensWithoutKidNeedASingleKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, second := josetest.New(t, "EdDSA", "k"), josetest.New(t, "EdDSA", "second")
		web := new(site)
		web.set(after(2*time.Second, respond(http.StatusOK, josetest.Set(key.JWK()), nil)))
		v := newVerifier(t, web, configOf(issuerA))
		seen := key.Token(key.Header(jsonObject{"kid": nil}), forever23hClaims())
		fresh := func(header jsonObject) string { return key.Token(key.Header(header), claims()) }
		if got, elapsed := timed(t, v, seen); got != "unavailable" || elapsed != 0 || web.fetches() != 0 {
			t.Errorf("before anything runs: %s in %v, %d fetches", got, elapsed, web.fetches())
		}
		run(t, v)
		synctest.Wait()
		if got, elapsed := timed(t, v, seen); got != "active" || elapsed != 2*time.Second {
			t.Errorf("during the first fetch: %s in %v", got, elapsed)
		}
		time.Sleep(time.Minute)
		for name, token := range map[string]string{
			"seen": seen, "fresh": fresh(jsonObject{"kid": nil}), "an empty kid": fresh(jsonObject{"kid": ""}), "with its kid": fresh(nil),
		} {
			if got, elapsed := timed(t, v, token); got != "active" || elapsed != 0 {
				t.Errorf("%s: %s in %v", name, got, elapsed)
			}
		}
		for want, token := range map[string]string{
			"bad_signature":         second.Token(second.Header(jsonObject{"kid": nil}), claims()),
			"algorithm_not_allowed": fresh(jsonObject{"kid": nil, "alg": "RS256"}),
			"malformed":             key.Token(`{"alg":"EdDSA","kid":null,"typ":"at+jwt"}`, claims()),
		} {
			if got, elapsed := timed(t, v, token); got != want || elapsed != 0 {
				t.Errorf("want %s: %s in %v", want, got, elapsed)
			}
		}
		if web.fetches() != 1 {
			t.Errorf("%d fetches", web.fetches())
		}
		web.publish(key.JWK(), second.JWK())
		time.Sleep(5 * time.Minute)
		before := web.fetches()
		for name, token := range map[string]string{"seen": seen, "fresh": fresh(jsonObject{"kid": nil})} {
			if got, elapsed := timed(t, v, token); got != "unknown_key" || elapsed != 0 {
				t.Errorf("%s, of one of two keys: %s in %v", name, got, elapsed)
			}
		}
		if web.fetches() != before {
			t.Errorf("%d fetches were caused by tokens without kid", web.fetches()-before)
		}
		web.set(hang)
		time.Sleep(2 * time.Hour)
		if got, elapsed := timed(t, v, fresh(jsonObject{"kid": nil})); got != "unavailable" || elapsed > time.Second {
			t.Errorf("when the keys are too old: %s in %v", got, elapsed)
		}
	})
}

func TestKeysFind_withoutKid(t *testing.T) {
	key := josetest.New(t, "ES256", "k")
	v := load(t, newVerifier(t, serve(josetest.Set(key.JWK(jsonObject{"kid": nil}))), configOf(issuerA)))
	for range 2 { // the second is remembered
		if got := outcome(t, v, key.Token(key.Header(jsonObject{"kid": nil}), claims()), verify.Request{}); got != "active" {
			t.Errorf("a token without kid: %s", got)
		}
	}
	if got := outcome(t, v, key.Token(key.Header(), claims()), verify.Request{}); got != "unknown_key" {
		t.Errorf("a token with a kid: %s", got)
	}
}

// A key stays trusted if the issuer lists it once more, and cached results equal new
// ones.
func TestCache_keyListedForAnotherAlgorithm(t *testing.T) {
	r := josetest.New(t, "RS256", "k")
	other := josetest.New(t, "ES256", "other")
	alg := func(name string) jsonObject { return r.JWK(jsonObject{"alg": name}) }
	web := serve(josetest.Set(alg("RS256"), other.JWK()))
	v := load(t, newVerifier(t, web, configOf(issuerA)))
	tokens := map[string]string{}
	for _, name := range []string{"RS256", "RS384", "RS512"} {
		signer := r.As(name, "k")
		tokens[name] = signer.Token(signer.Header(), claims())
	}
	check := func(when string, active ...string) {
		t.Helper()
		for name, token := range tokens {
			want := "algorithm_not_allowed"
			if slices.Contains(active, name) {
				want = "active"
			}
			for range 2 {
				if got := outcome(t, v, token, verify.Request{}); got != want {
					t.Errorf("%s: %s: %s, want %s", when, name, got, want)
				}
			}
		}
	}
	check("listed once", "RS256")
	web.publish(alg("RS256"), alg("RS384"), alg("RS512"), other.JWK())
	load(t, v)
	check("listed three times", "RS256", "RS384", "RS512")
	web.publish(alg("RS512"), other.JWK())
	load(t, v)
	check("listed for the last only", "RS512")
	second := josetest.New(t, "RS256", "k")
	web.publish(second.JWK(jsonObject{"alg": "RS256"}), alg("RS512"))
	load(t, v)
	if got := outcome(t, v, tokens["RS256"], verify.Request{}); got != "bad_signature" {
		t.Errorf("another key for RS256: %s", got)
	}
	if got := outcome(t, v, second.Token(second.Header(), claims()), verify.Request{}); got != "active" {
		t.Errorf("of the other key: %s", got)
	}
	if got := outcome(t, v, tokens["RS512"], verify.Request{}); got != "active" {
		t.Errorf("RS512 beside another key for RS256: %s", got)
	}
}

func forever23hClaims() jsonObject {
	return claims(jsonObject{"exp": time.Now().Add(23 * time.Hour).Unix()})
}
