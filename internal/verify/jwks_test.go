package verify_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/testkit"
	"github.com/cezzis/tokenbroker/internal/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// timed is an outcome and the time that it took.
func timed(t *testing.T, v *verify.Verifier, token string) (string, time.Duration) {
	t.Helper()
	start := time.Now()
	got := outcome(t, v, token, verify.Request{})
	return got, time.Since(start)
}

// forever is a token that does not expire within a test.
func forever(key *josetest.Signer, issuer string) string {
	return key.Token(key.Header(), claims(jsonObject{"iss": issuer, "exp": time.Now().Add(23 * time.Hour).Unix()}))
}

var outages = map[string]func(*http.Request) (*http.Response, error){
	"hangs":                  hang,
	"answers 503":            respond(http.StatusServiceUnavailable, []byte(`{"keys":[]}`), nil),
	"answers 503 with keys":  respond(http.StatusServiceUnavailable, josetest.Set(rogue), nil),
	"redirects":              respond(http.StatusFound, nil, http.Header{"Location": {"https://evil.example/jwks"}}),
	"answers 64 MiB":         huge,
	"answers HTML":           respond(http.StatusOK, []byte("<html>"), nil),
	"answers nothing":        respond(http.StatusOK, nil, nil),
	"answers no keys":        respond(http.StatusOK, []byte(`{"keys":[]}`), nil),
	"answers keys null":      respond(http.StatusOK, []byte(`{"keys":null}`), nil),
	"answers unusable keys":  respond(http.StatusOK, []byte(`{"keys":[{"kty":"oct","kid":"k","k":"AAAA"}]}`), nil),
	"answers half a set":     respond(http.StatusOK, josetest.Set(rogue)[:40], nil),
	"drops the connection":   func(*http.Request) (*http.Response, error) { return nil, errors.New("connection reset") },
	"makes the client panic": func(*http.Request) (*http.Response, error) { panic("a defect of a library") },
}

func huge(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(io.LimitReader(spaces{}, 64<<20)), Request: r}, nil
}

// spaces never end.
type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// rogue is a key that no issuer publishes.
var rogue = jsonObject{"kty": "RSA", "kid": "rogue", "n": josetest.Base64(append([]byte{0x80}, bytes.Repeat([]byte{1}, 255)...)), "e": "AQAB"}

// D3 D4 D7 D10 K1 K2 K3 K6 K10: loaded keys are used until they are stale, for cached and for
// new tokens. A failure never replaces or removes them, and never affects another issuer.
func TestIssuers_failIndependently(t *testing.T) {
	for name, outage := range outages {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := josetest.New(t, "EdDSA", "a"), josetest.New(t, "EdDSA", "b")
				web := sites{"a.example": serve(josetest.Set(a.JWK())), "b.example": serve(josetest.Set(b.JWK()))}
				v := newVerifier(t, web, configOf(issuerA), configOf(issuerB))
				run(t, v)
				synctest.Wait()
				tokenA, tokenB := forever(a, issuerA), forever(b, issuerB)
				web["a.example"].set(outage)
				start := time.Now()
				for time.Since(start) < 55*time.Minute {
					time.Sleep(time.Minute)
					newA, newB := a.Token(a.Header(), claims()), b.Token(b.Header(), claims(jsonObject{"iss": issuerB}))
					for _, token := range []string{tokenA, tokenB, newA, newB} {
						if got, elapsed := timed(t, v, token); got != "active" || elapsed != 0 {
							t.Fatalf("after %v: %s in %v", time.Since(start), got, elapsed)
						}
					}
				}
				if n := web["b.example"].fetches(); n < 11 || n > 14 {
					t.Errorf("the other issuer's keys were fetched %d times in 55 min", n)
				}
				time.Sleep(10 * time.Minute)
				if got, elapsed := timed(t, v, tokenA); got != "unavailable" || elapsed > time.Second {
					t.Errorf("after more than an hour: %s in %v", got, elapsed)
				}
				if got := outcome(t, v, tokenB, verify.Request{}); got != "active" {
					t.Errorf("the other issuer's token: %s", got)
				}
				web["a.example"].publish(a.JWK())
				time.Sleep(70 * time.Second)
				if got := outcome(t, v, tokenA, verify.Request{}); got != "active" {
					t.Errorf("when the trouble is over: %s", got)
				}
			})
		})
	}
	if len(outages) < 13 {
		t.Errorf("only %d outages", len(outages))
	}
}

func TestErrorOfUnavailableKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const canary = "canary7f3a"
		key := josetest.New(t, "EdDSA", "k")
		web := new(site)
		web.set(respond(http.StatusBadGateway, []byte(canary), nil))
		v := newVerifier(t, web, configOf(issuerA))
		run(t, v)
		synctest.Wait()
		result, err := v.Verify(t.Context(), redact.New(forever(key, issuerA)), verify.Request{})
		unavailable, ok := errors.AsType[*verify.UnavailableError](err)
		if !ok || result.Rejection != nil || result.Facts != nil {
			t.Fatalf("%+v, %v", result, err)
		}
		if unavailable.Issuer != issuerA || unavailable.RetryAfter < time.Second || unavailable.RetryAfter > time.Minute || unavailable.Err == nil {
			t.Errorf("%+v", unavailable)
		}
		if message := err.Error(); !strings.Contains(message, "502") || !strings.Contains(message, issuerA) || strings.Contains(message, canary) {
			t.Error(message)
		}
		if status := v.Status()[0]; status.Err == nil || status.Keys != 0 || !status.LoadedAt.IsZero() || !status.NextAt.After(time.Now()) {
			t.Errorf("%+v", status)
		}
	})
}

func TestFirstLoad_tokensWait(t *testing.T) {
	for name, tt := range map[string]struct {
		answer  func(set []byte) func(*http.Request) (*http.Response, error)
		limit   time.Duration // of the caller
		want    string
		elapsed time.Duration
	}{
		"it comes": {func(set []byte) func(*http.Request) (*http.Response, error) {
			return after(3*time.Second, respond(200, set, nil))
		}, time.Minute, "active", 3 * time.Second},
		"it hangs": {func([]byte) func(*http.Request) (*http.Response, error) { return hang }, time.Minute, "unavailable", 5 * time.Second},
		"it fails": {func([]byte) func(*http.Request) (*http.Response, error) {
			return after(time.Second, respond(503, nil, nil))
		}, time.Minute, "unavailable", time.Second},
		"the caller goes before": {func([]byte) func(*http.Request) (*http.Response, error) { return hang }, 2 * time.Second, "gone", 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				key := josetest.New(t, "EdDSA", "k")
				web := new(site)
				web.set(tt.answer(josetest.Set(key.JWK())))
				v := newVerifier(t, web, configOf(issuerA))
				run(t, v)
				ctx, cancel := context.WithTimeout(t.Context(), tt.limit)
				defer cancel()
				var all sync.WaitGroup
				for range 100 {
					all.Go(func() {
						start := time.Now()
						result, err := v.Verify(ctx, redact.New(forever(key, issuerA)), verify.Request{})
						got := word(t, result, err)
						if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
							got = "gone"
						}
						if got != tt.want || time.Since(start) != tt.elapsed {
							t.Errorf("%s in %v: %v", got, time.Since(start), err)
						}
					})
				}
				all.Wait()
				if web.fetches() != 1 {
					t.Errorf("%d fetches", web.fetches())
				}
			})
		})
	}
}

func TestFirstLoad_withoutRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "EdDSA", "k")
		v := newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA))
		if got, elapsed := timed(t, v, forever(key, issuerA)); got != "unavailable" || elapsed != 5*time.Second {
			t.Errorf("%s in %v", got, elapsed)
		}
	})
}

// D24: all tokens wait for the first load. While an issuer hangs after that, its tokens do
// not occupy all calls of a connection.
func TestUnknownKeys_boundedWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "EdDSA", "k")
		web := new(site)
		web.set(hang)
		v := newVerifier(t, web, configOf(issuerA))
		run(t, v)
		token := forever(key, issuerA)
		waiting := func() (waited int64) {
			var all sync.WaitGroup
			var count atomic.Int64
			for range 1000 {
				all.Go(func() {
					got, elapsed := timed(t, v, token)
					if got != "unavailable" || elapsed > 5*time.Second {
						t.Errorf("%s in %v", got, elapsed)
					}
					if elapsed > 0 {
						count.Add(1)
					}
				})
			}
			all.Wait()
			return count.Load()
		}
		if n := waiting(); n != 1000 {
			t.Errorf("%d of 1,000 waited for the first load", n)
		}
		time.Sleep(2 * time.Second) // the next has begun
		if n := waiting(); n < 100 || n > 150 {
			t.Errorf("%d of 1,000 waited for the next", n)
		}
	})
}

// K5 K11: the first fetches start at once, for all issuers in parallel. Failed fetches are
// retried with growing backoff.
func TestFailedFetchesAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := josetest.New(t, "EdDSA", "a"), josetest.New(t, "EdDSA", "b")
		web := sites{"a.example": new(site), "b.example": serve(josetest.Set(b.JWK()))}
		web["a.example"].set(respond(http.StatusServiceUnavailable, nil, nil))
		v := newVerifier(t, web, configOf(issuerA), configOf(issuerB))
		run(t, v)
		synctest.Wait()
		if got := outcome(t, v, forever(b, issuerB), verify.Request{}); got != "active" {
			t.Errorf("the other issuer: %s", got)
		}
		time.Sleep(10 * time.Minute)
		times := web["a.example"].times()
		for i, seconds := range []float64{1, 2, 4, 8, 16, 32, 60, 60, 60, 60} {
			if gap := times[i+1].Sub(times[i]).Seconds(); gap < seconds*0.9 || gap > seconds*1.1 {
				t.Errorf("try %d came %v s after the one before, want about %v", i+2, gap, seconds)
			}
		}
		web["a.example"].publish(a.JWK())
		time.Sleep(67 * time.Second)
		if got, elapsed := timed(t, v, forever(a, issuerA)); got != "active" || elapsed != 0 {
			t.Errorf("afterwards: %s in %v", got, elapsed)
		}
	})
}

// K4: RFC 9111 section 5.2.2.1.
func TestKeys_maxAgeWithinBounds(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"":                             5 * time.Minute,
		"no-cache":                     5 * time.Minute,
		"max-age=soon":                 5 * time.Minute,
		"max-age=-1":                   5 * time.Minute,
		"s-maxage=600":                 5 * time.Minute,
		"public, max-age=600":          10 * time.Minute,
		"Max-Age=\"120\", private":     2 * time.Minute,
		"max-age=0":                    time.Minute,
		"max-age=1":                    time.Minute,
		"max-age=86400":                15 * time.Minute,
		"max-age=99999999999999999999": 5 * time.Minute,
	} {
		synctest.Test(t, func(t *testing.T) {
			key := josetest.New(t, "EdDSA", "k")
			web := new(site)
			web.set(respond(http.StatusOK, josetest.Set(key.JWK()), http.Header{"Cache-Control": {header}}))
			run(t, newVerifier(t, web, configOf(issuerA)))
			time.Sleep(2 * time.Hour)
			times := web.times()
			distinct := map[time.Duration]bool{}
			for i := range times[1:] {
				gap := times[i+1].Sub(times[i])
				if distinct[gap] = true; gap > want || gap < want-want/10 {
					t.Fatalf("%q: fetched after %v, want %v or a tenth less", header, gap, want)
				}
			}
			if len(distinct) < 3 {
				t.Errorf("%q: the intervals are not spread: %v", header, distinct)
			}
		})
	}
}

func TestKeysAreFetchedAgainBeforeTheyAreStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "EdDSA", "k")
		web := new(site)
		web.set(after(time.Second, respond(http.StatusOK, josetest.Set(key.JWK()), http.Header{"Cache-Control": {"max-age=900"}})))
		c := configOf(issuerA)
		c.Keys.RefreshInterval, c.Keys.MaxStale = time.Minute, 2*time.Minute
		v := newVerifier(t, web, c)
		run(t, v)
		time.Sleep(time.Second)
		token := forever(key, issuerA)
		for range 3600 {
			time.Sleep(time.Second)
			if got, elapsed := timed(t, v, token); got != "active" || elapsed != 0 {
				t.Fatalf("%s in %v", got, elapsed)
			}
		}
	})
}

// D8 D9 K9.
func TestCache_removedOrReplacedKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept, removed := josetest.New(t, "EdDSA", "kept"), josetest.New(t, "EdDSA", "removed")
		leaked, replacement := josetest.New(t, "ES256", "same"), josetest.New(t, "ES256", "same")
		web := serve(josetest.Set(kept.JWK(), removed.JWK(), leaked.JWK()))
		v := newVerifier(t, web, configOf(issuerA))
		run(t, v)
		synctest.Wait()
		web.publish(kept.JWK(), replacement.JWK())
		time.Sleep(5*time.Minute + 5*time.Second)
		for name, tt := range map[string]struct {
			key  *josetest.Signer
			want string
		}{"kept": {kept, "active"}, "removed": {removed, "unknown_key"}, "leaked": {leaked, "bad_signature"}, "its replacement": {replacement, "active"}} {
			if got := outcome(t, v, forever(tt.key, issuerA), verify.Request{}); got != tt.want {
				t.Errorf("%s: %s, want %s", name, got, tt.want)
			}
		}
	})
}

// D1.
func TestUnknownIssuersCauseNoRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "EdDSA", "k")
		web := serve(josetest.Set(key.JWK()))
		v := newVerifier(t, web, configOf(issuerA))
		for _, issuer := range []string{"https://169.254.169.254", "http://localhost", issuerA + "/"} {
			token := key.Token(key.Header(jsonObject{"jku": nil}), claims(jsonObject{"iss": issuer, "jwks_uri": issuer, "jku": issuer}))
			if got, elapsed := timed(t, v, token); got != "unknown_issuer" || elapsed != 0 {
				t.Errorf("%s in %v", got, elapsed)
			}
		}
		if web.fetches() != 0 {
			t.Errorf("requests to %v", web.urls)
		}
	})
}

// The metadata of an issuer may name endpoints that the broker would refuse, as
// long as it does not use them.
func TestMetadata_keysBesideAnInvalidEndpoint(t *testing.T) {
	key := josetest.New(t, "EdDSA", "k")
	set := respond(http.StatusOK, testkit.Gzip(josetest.Set(key.JWK())), http.Header{"Content-Encoding": {"gzip"}})
	for name, tt := range map[string]struct{ members, want string }{
		"introspection over plain http": {`"jwks_uri":"https://a.example/jwks","introspection_endpoint":"http://a.example/introspect"`, "active"},
		"a relative mTLS alias":         {`"jwks_uri":"https://a.example/jwks","mtls_endpoint_aliases":{"token_endpoint":"/token"}`, "active"},
		"a member twice":                {`"jwks_uri":"https://a.example/jwks","x":false,"x":true`, "active"},
		"keys over plain http":          {`"jwks_uri":"http://a.example/jwks"`, "unavailable"},
		"keys twice":                    {`"jwks_uri":"https://a.example/jwks","jwks_uri":"https://a.example/jwks"`, "unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			web := new(site)
			web.set(func(r *http.Request) (*http.Response, error) {
				if r.URL.Path == "/jwks" {
					return set(r)
				}
				return respond(http.StatusOK, []byte(`{"issuer":"https://a.example",`+tt.members+`}`), nil)(r)
			})
			c := configOf(issuerA)
			c.Keys.URL, c.Keys.Discovery = "", discovery.New(discovery.Config{Issuer: issuerA, HTTP: discovery.NewHTTPClient(web)})
			v := newVerifier(t, web, c)
			_ = v.Refresh(t.Context(), issuerA)
			if got := outcome(t, v, forever(key, issuerA), verify.Request{}); got != tt.want {
				t.Error(got, v.Status())
			}
		})
	}
}

func TestRun_endsDuringAFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web := new(site)
		web.set(hang)
		v := newVerifier(t, web, configOf(issuerA))
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); v.Run(ctx) }()
		time.Sleep(time.Second)
		stop()
		start := time.Now()
		<-ended
		if elapsed := time.Since(start); elapsed != 0 {
			t.Errorf("ended after %v", elapsed)
		}
	})
}
