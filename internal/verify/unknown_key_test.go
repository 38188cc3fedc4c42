package verify_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
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
		c.RefreshInterval = 15 * time.Minute
		v := newVerifier(t, web, c)
		run(t, v)
		time.Sleep(15 * time.Second)
		good := forever(key, issuerA)
		before := web.fetches()
		var waited atomic.Int64
		for range 60 * 100 {
			time.Sleep(10 * time.Millisecond)
			for range 3 {
				bad := key.Token(key.Header(jsonObject{"kid": fmt.Sprint(rand.Uint64())}), "{\"iss\":\""+issuerA+"\"}")
				go func() {
					got, took := timed(t, v, bad)
					if got != "unknown_key" || took > 200*time.Millisecond {
						t.Errorf("%s in %v", got, took)
					}
					if took > 0 {
						waited.Add(1)
					}
				}()
			}
			if got, took := timed(t, v, good); got != "active" || took != 0 {
				t.Fatalf("a good token meanwhile: %s in %v", got, took)
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
			if got, took := timed(t, v, bad); got != "bad_signature" || took != 0 {
				t.Fatalf("%s in %v", got, took)
			}
		}
		// B6: nor do tokens that name no key, of which there is one only.
		if got, took := timed(t, v, key.Token(key.Header(jsonObject{"kid": nil}), claims())); got != "unknown_key" || took != 0 {
			t.Errorf("no kid: %s in %v", got, took)
		}
		time.Sleep(time.Second)
		if web.fetches() != 1 {
			t.Errorf("%d fetches", web.fetches())
		}
	})
}

func TestRotationIsPickedUpByTheFirstTokenOfTheNewKey(t *testing.T) {
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
		// And while somebody uses up what unknown kids may cause.
		newest := josetest.New(t, "EdDSA", "newest")
		flood := func() { outcome(t, v, old.Token(old.Header(jsonObject{"kid": "x"}), claims()), verify.Request{}) }
		time.Sleep(time.Minute)
		flood()
		web.publish(old.JWK(), newest.JWK())
		began := time.Now()
		for outcome(t, v, forever(newest, issuerA), verify.Request{}) != "active" {
			flood()
			time.Sleep(100 * time.Millisecond)
		}
		if lag := time.Since(began); lag > 10*time.Second+100*time.Millisecond {
			t.Errorf("picked up after %v", lag)
		}
	})
}

// While an issuer cannot be asked, nobody knows whether a key that is not known
// is its own.
func TestUnknownKeyIsNoVerdictWhileTheIssuerCannotBeAsked(t *testing.T) {
	for name, tt := range map[string]struct {
		outage func(*http.Request) (*http.Response, error)
		took   time.Duration
	}{"it hangs": {hang, time.Second}, "it fails": {respond(http.StatusServiceUnavailable, nil, nil), 0}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				key := josetest.New(t, "EdDSA", "k")
				web := serve(josetest.Set(key.JWK()))
				v := newVerifier(t, web, configOf(issuerA))
				run(t, v)
				time.Sleep(time.Minute)
				web.set(tt.outage)
				stranger := key.Token(key.Header(jsonObject{"kid": "stranger"}), claims())
				if got, took := timed(t, v, stranger); got != "unavailable" || took != tt.took {
					t.Errorf("%s in %v", got, took)
				}
				time.Sleep(6 * time.Second) // the fetch has failed by now
				if got, took := timed(t, v, stranger); got != "unavailable" || took > time.Second {
					t.Errorf("later: %s in %v", got, took)
				}
				web.publish(key.JWK())
				time.Sleep(15 * time.Second)
				if got := outcome(t, v, stranger, verify.Request{}); got != "unknown_key" {
					t.Errorf("when it can be asked again: %s", got)
				}
			})
		})
	}
}
