package verify_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// While the endpoint fails, the result is an UnavailableError, cached results are used, and
// the endpoint gets few requests.
func TestDeadEndpointIsLeftAlone(t *testing.T) {
	failures := map[string]func(*devidp.Server){
		"down":    func(s *devidp.Server) { s.SetDown(true) },
		"failing": func(s *devidp.Server) { s.SetIntrospection(status(http.StatusInternalServerError)) },
		"hanging": func(s *devidp.Server) {
			s.SetIntrospection(func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true })
		},
	}
	for name, fail := range failures {
		synctest.Test(t, func(t *testing.T) {
			w := newOpaqueWorld(t, func(c *verify.IssuerConfig) { c.Introspection.Cache = 5 * time.Minute })
			active := w.mint(time.Hour)
			if got := w.outcome(t, active); got != "active" {
				t.Fatal(got)
			}
			before := w.requests()
			fail(w.idp)
			for i := range 2000 {
				go func() {
					result, err := w.v.Verify(t.Context(), redact.New(fmt.Sprintf("token-%d", i)), verify.Request{})
					unavailable, ok := errors.AsType[*verify.UnavailableError](err)
					if !ok || !unavailable.Introspection || unavailable.Issuer != issuerA || unavailable.RetryAfter < time.Second || unavailable.RetryAfter > time.Minute {
						t.Errorf("%s: %+v, %v", name, result, err)
					}
				}()
				time.Sleep(50 * time.Millisecond)
			}
			if got := w.outcome(t, active); got != "active" {
				t.Errorf("%s: a token that is known: %s", name, got)
			}
			time.Sleep(time.Minute)
			// A hanging endpoint gets 20 requests a second until the first one times out
			// after 5 s. A failing endpoint gets each request twice.
			if n := w.requests() - before; n > 130 || n < 5 {
				t.Errorf("%s: %d questions for 2,000 tokens in 100 s", name, n)
			}
			w.idp.SetDown(false)
			w.idp.SetIntrospection(nil)
			if got := w.outcome(t, w.mint(time.Hour)); got != "active" {
				t.Errorf("%s: once it is well: %s", name, got)
			}
			if logged := w.log.String(); strings.Count(logged, "backs off") < 3 || !strings.Contains(logged, "answers again") {
				t.Errorf("%s: logged:\n%s", name, logged)
			}
		})
	}
}

func TestOpaque_waitingCallsBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		questions := atomic.Int64{}
		v := introspecting(t, says(func(context.Context, string) (bool, []byte, error) {
			questions.Add(1)
			time.Sleep(time.Second)
			return false, nil, errors.New("out of order")
		}))
		var all sync.WaitGroup
		for i := range 1000 {
			all.Go(func() {
				if got := outcome(t, v, fmt.Sprintf("token-%d", i), verify.Request{}); got != "unavailable" {
					t.Error(got)
				}
			})
		}
		all.Wait()
		// The third failure of the first 64 requests starts the backoff. Two further
		// requests may have started by then.
		if n := questions.Load(); n < 64 || n > 66 {
			t.Errorf("%d questions", n)
		}
		// Failures at the same time count as one failure of the endpoint.
		before := questions.Load()
		time.Sleep(time.Second)
		if outcome(t, v, "another", verify.Request{}); questions.Load() != before+1 {
			t.Error("the broker backs off for longer than a second")
		}
	})
}

func status(code int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
}

func TestOpaque_oneFailureBlocksNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newOpaqueWorld(t)
		w.idp.SetIntrospection(func(rw http.ResponseWriter, r *http.Request) bool {
			switch r.PostForm.Get("token") {
			case "odd":
				rw.WriteHeader(http.StatusBadRequest)
			case "useless":
				_, _ = rw.Write([]byte(`{"active":"true"}`))
			case "crash":
				rw.WriteHeader(http.StatusInternalServerError)
			default:
				return false
			}
			return true
		})
		for range 20 {
			for _, token := range []string{"odd", "useless", "odd", "useless"} {
				if got := w.outcome(t, redact.New(token)); got != "unavailable" {
					t.Errorf("%s: %s", token, got)
				}
			}
			if got := w.outcome(t, redact.New("crash")); got != "unavailable" {
				t.Error(got)
			}
			if got := w.outcome(t, w.mint(time.Hour)); got != "active" {
				t.Fatalf("a good token beside those: %s", got)
			}
		}
	})
}

func TestOpaque_requestedBackoff(t *testing.T) {
	for name, tt := range map[string]struct {
		answer func(http.ResponseWriter)
		rest   time.Duration
	}{
		"throttled": {func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "40")
			w.WriteHeader(http.StatusTooManyRequests)
		}, 40 * time.Second},
		"refused secret": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"error":"invalid_client"}`)
		}, time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newOpaqueWorld(t)
			w.idp.SetIntrospection(func(rw http.ResponseWriter, _ *http.Request) bool { tt.answer(rw); return true })
			begin := time.Now()
			for time.Since(begin) < tt.rest {
				if got := w.outcome(t, redact.New(fmt.Sprint("t", time.Since(begin)))); got != "unavailable" {
					t.Fatal(got)
				}
				time.Sleep(time.Second)
			}
			if n := w.requests(); n != 1 {
				t.Errorf("%s: %d questions within %v", name, n, tt.rest)
			}
			w.idp.SetIntrospection(nil)
			if got := w.outcome(t, w.mint(time.Hour)); got != "active" {
				t.Errorf("%s: after its rest: %s", name, got)
			}
		})
	}
}

// refusals are the responses of known IdPs for an unknown token.
func refusals() map[string]func(http.ResponseWriter) {
	respond := func(code int, body string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}
	}
	return map[string]func(http.ResponseWriter){
		"401":                        respond(http.StatusUnauthorized, ""),
		"401 and inactive":           respond(http.StatusUnauthorized, `{"active":false}`),
		"401 request_unauthorized":   respond(http.StatusUnauthorized, `{"error":"request_unauthorized"}`),
		"401 with a code for bearer": respond(http.StatusUnauthorized, `{"error":"invalid_token"}`),
		"403":                        respond(http.StatusForbidden, ""),
		"404":                        respond(http.StatusNotFound, "{}"),
		"400":                        respond(http.StatusBadRequest, `{"error":"invalid_request"}`),
		"500":                        respond(http.StatusInternalServerError, `{"detail":"not found"}`),
	}
}

// refuseUnknown makes an IdP refuse all tokens that it did not issue.
func (w *opaqueWorld) refuseExcept(refuse func(http.ResponseWriter), active ...redact.String) {
	w.idp.SetIntrospection(func(rw http.ResponseWriter, r *http.Request) bool {
		for _, token := range active {
			if r.PostForm.Get("token") == token.Reveal() {
				return false
			}
		}
		refuse(rw)
		return true
	})
}

// invent presents n invented tokens within a second.
func (w *opaqueWorld) invent(t *testing.T, n int) {
	t.Helper()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			time.Sleep(time.Duration(i) * time.Second / time.Duration(n))
			if got := w.outcome(t, redact.New(fmt.Sprintf("invented-%d-%d", n, i))); got != "unavailable" {
				t.Errorf("an invented token: %s", got)
			}
		})
	}
	all.Wait()
}

// Invented tokens never block a token that was active before, with or without a cached
// result, and delay other valid tokens by at most 5 s.
func TestOpaque_inventedTokensBlockNoOther(t *testing.T) {
	for name, refuse := range refusals() {
		for _, cache := range []time.Duration{-1, 30 * time.Second} {
			synctest.Test(t, func(t *testing.T) {
				w := newOpaqueWorld(t, func(c *verify.IssuerConfig) { c.Introspection.Cache = cache })
				active, fresh := w.mint(time.Hour), w.mint(time.Hour)
				w.refuseExcept(refuse, active, fresh)
				w.invent(t, 1)
				if got := w.outcome(t, active); got != "active" {
					t.Fatalf("%s: a good token after one that was invented: %s", name, got)
				}
				for range 10 {
					w.invent(t, long(200, 5))
					if got := w.outcome(t, active); got != "active" {
						t.Fatalf("%s: a known token after many invented ones: %s", name, got)
					}
				}
				w.invent(t, 1000)
				time.Sleep(5 * time.Second)
				if got := w.outcome(t, fresh); got != "active" {
					t.Errorf("%s: a fresh token 5 s after 1,000 invented ones: %s", name, got)
				}
			})
		}
	}
}

// While a known token is in use, invented tokens delay a new token by one request at most:
// the known token shows that the issuer answers.
func TestOpaque_knownTokenTestsTheEndpoint(t *testing.T) {
	for name, refuse := range refusals() {
		synctest.Test(t, func(t *testing.T) {
			w := newOpaqueWorld(t)
			active, fresh := w.mint(time.Hour), w.mint(time.Hour)
			w.refuseExcept(refuse, active, fresh)
			if got := w.outcome(t, active); got != "active" {
				t.Fatal(got)
			}
			w.invent(t, 1000)
			if got := w.outcome(t, active); got != "active" {
				t.Fatal(got)
			}
			synctest.Wait()
			if got := w.outcome(t, fresh); got != "active" {
				t.Errorf("%s: %s", name, got)
			}
		})
	}
}

// Before the issuer has answered any request, invented tokens delay a valid token by one
// backoff at most.
func TestOpaque_inventedTokensAtTheStart(t *testing.T) {
	for name, refuse := range refusals() {
		synctest.Test(t, func(t *testing.T) {
			w := newOpaqueWorld(t)
			fresh := w.mint(time.Hour)
			w.refuseExcept(refuse, fresh)
			for range 10 {
				w.invent(t, long(200, 5))
			}
			time.Sleep(30 * time.Second)
			if got := w.outcome(t, fresh); got != "active" {
				t.Errorf("%s: 30 s after the last invented token: %s", name, got)
			}
		})
	}
}

// A wrong or revoked secret is sent few times, for every response of the IdP and any number
// of callers, because IdPs lock accounts.
func TestOpaque_wrongSecretFewAttempts(t *testing.T) {
	for name, tt := range map[string]struct {
		before bool // the secret was good at first
		code   string
		most   int // attempts in the first minute
	}{
		"never good":                  {false, "", 10},
		"never good, and named so":    {false, "invalid_client", 2},
		"revoked":                     {true, "", 50},
		"revoked, and named so":       {true, "invalid_client", 2},
		"a client that may not ask":   {true, "unauthorized_client", 50},
		"forbidden, and never better": {false, "access_denied", 10},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newOpaqueWorld(t)
			var active []redact.String
			for range 100 {
				token := w.mint(time.Hour)
				active = append(active, token)
				if tt.before && w.outcome(t, token) != "active" {
					t.Fatal("a good token is not active")
				}
			}
			time.Sleep(time.Minute)
			before := w.requests()
			w.idp.SetIntrospection(func(rw http.ResponseWriter, _ *http.Request) bool {
				rw.Header().Set("Content-Type", "application/json")
				rw.WriteHeader(http.StatusUnauthorized)
				_, _ = fmt.Fprintf(rw, `{"error":%q}`, tt.code)
				return true
			})
			for i := range 6000 {
				w.outcome(t, active[i%len(active)])
				w.outcome(t, redact.New(fmt.Sprint("unknown-", i)))
				time.Sleep(10 * time.Millisecond)
			}
			if n := w.requests() - before; n > tt.most {
				t.Errorf("%s: %d attempts in a minute, want at most %d", name, n, tt.most)
			}
		})
	}
}

// Tokens that wait for a slow issuer leave slots for known tokens.
func TestOpaque_roomForKnownTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := introspecting(t, says(func(ctx context.Context, token string) (bool, []byte, error) {
			if strings.HasPrefix(token, "known") {
				return true, members(jsonObject{"exp": time.Now().Add(time.Hour).Unix()}), nil
			}
			<-ctx.Done()
			return false, nil, ctx.Err()
		}), func(c *verify.IssuerConfig) { c.Introspection.Cache = -1 })
		for i := range 20 {
			if got := outcome(t, v, fmt.Sprint("known-", i), verify.Request{}); got != "active" {
				t.Fatal(got)
			}
		}
		for i := range 1000 {
			go outcome(t, v, fmt.Sprint("invented-", i), verify.Request{})
		}
		synctest.Wait()
		for i := range 20 {
			if got := outcome(t, v, fmt.Sprint("known-", i), verify.Request{}); got != "active" {
				t.Errorf("a known token beside 1,000 invented ones: %s", got)
			}
		}
		time.Sleep(time.Minute)
	})
}

// Failures of other tokens do not extend the use of a revoked token.
func TestOpaque_revocationWhileOthersFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newOpaqueWorld(t)
		active := w.mint(time.Hour)
		w.refuseExcept(refusals()["401"], active)
		if got := w.outcome(t, active); got != "active" {
			t.Fatal(got)
		}
		w.idp.Revoke(active)
		w.invent(t, 1000)
		w.outcome(t, active) // has the issuer asked again
		synctest.Wait()
		if got := w.outcome(t, active); got != "inactive" {
			t.Errorf("a revoked token: %s", got)
		}
	})
}

// D17: a flood of invented tokens is bounded in requests and in memory.
func TestFloodsOfOpaqueTokensAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asking, most, total atomic.Int64
		v := introspecting(t, says(func(ctx context.Context, _ string) (bool, []byte, error) {
			total.Add(1)
			now := asking.Add(1)
			defer asking.Add(-1)
			for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
			}
			select {
			case <-time.After(time.Second):
				return false, []byte(`{"active":false}`), nil
			case <-ctx.Done():
				return false, nil, ctx.Err()
			}
		}))
		outcomes, atOnce := map[string]int{}, 0
		begin := time.Now()
		var mu sync.Mutex
		var all sync.WaitGroup
		for i := range 5000 {
			all.Go(func() {
				got := outcome(t, v, fmt.Sprintf("token-%d", i), verify.Request{})
				mu.Lock()
				defer mu.Unlock()
				outcomes[got]++
				if time.Since(begin) == 0 {
					atOnce++
				}
			})
		}
		all.Wait()
		if atOnce != 5000-125 {
			t.Errorf("%d were told at once that too many wait", atOnce)
		}
		if most.Load() != 64 || outcomes["inactive"] != int(total.Load()) || outcomes["inactive"] < 120 || outcomes["inactive"]+outcomes["unavailable"] != 5000 || outcomes["unavailable"] < 3000 {
			t.Errorf("%d at a time, %d in all: %v", most.Load(), total.Load(), outcomes)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		good, filler := true, strings.Repeat("x", 50<<10)
		v := introspecting(t, says(func(context.Context, string) (bool, []byte, error) {
			if good {
				return true, members(jsonObject{"filler": filler}), nil
			}
			return false, nil, nil
		}), func(c *verify.IssuerConfig) { c.Introspection.Cache = 5 * time.Minute })
		for i := range 400 {
			outcome(t, v, fmt.Sprintf("good-%d", i), verify.Request{})
		}
		active, inactive, activeBytes, _ := v.CachedResults()
		if activeBytes > verify.ActiveBytes || activeBytes < verify.ActiveBytes*9/10 || active < 100 || inactive != 0 {
			t.Errorf("%d good tokens of %d bytes are remembered", active, activeBytes)
		}
		if got := outcome(t, v, "good-399", verify.Request{}); got != "active" {
			t.Error(got)
		}
		good = false
		for i := range 3000 {
			outcome(t, v, fmt.Sprintf("bad-%d", i), verify.Request{})
		}
		stillActive, inactive, _, inactiveBytes := v.CachedResults()
		if stillActive != active || inactiveBytes > verify.InactiveBytes || inactive < 1000 {
			t.Errorf("after bad ones: %d good, %d bad of %d bytes are remembered", stillActive, inactive, inactiveBytes)
		}
		time.Sleep(time.Hour)
		outcome(t, v, "bad-again", verify.Request{})
		if _, inactive, _, bytes := v.CachedResults(); inactive != 1 || bytes > 1024 {
			t.Errorf("an hour later %d of %d bytes are remembered", inactive, bytes)
		}
	})
}

func TestOpaque_panicOfTheEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := introspecting(t, says(func(context.Context, string) (bool, []byte, error) { panic("canary") }))
		_, err := v.Verify(t.Context(), redact.New("opaque"), verify.Request{})
		if _, ok := errors.AsType[*verify.UnavailableError](err); !ok || strings.Contains(err.Error(), "canary") {
			t.Error(err)
		}
	})
}

// D20: neither log nor errors, answers or metrics show a token, a secret or what
// the issuer wrote.
func TestOpaque_leaksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newOpaqueWorld(t)
		answers := []func(http.ResponseWriter, *http.Request){
			func(rw http.ResponseWriter, r *http.Request) {
				http.Error(rw, fmt.Sprint(r.PostForm, r.Header), http.StatusInternalServerError)
			},
			func(rw http.ResponseWriter, r *http.Request) {
				http.Error(rw, fmt.Sprint(r.PostForm, r.Header), http.StatusBadRequest)
			},
			func(rw http.ResponseWriter, r *http.Request) {
				http.Redirect(rw, r, "/canary?"+r.PostForm.Encode(), http.StatusFound)
			},
			func(rw http.ResponseWriter, r *http.Request) {
				_, _ = rw.Write([]byte(`{"active":"` + r.PostForm.Get("token") + `"}`))
			},
			func(rw http.ResponseWriter, r *http.Request) {
				_, _ = rw.Write([]byte(`{"active":true,"exp":1,"` + r.PostForm.Get("token") + `":1,"sub":{"x":"` + r.PostForm.Get("token") + `"}}`))
			},
			func(rw http.ResponseWriter, r *http.Request) {
				_, _ = rw.Write([]byte(`{"active":false,"x":"` + r.PostForm.Get("token") + `"}`))
			},
			func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		}
		var output strings.Builder
		for i := range 10 * len(answers) {
			w.idp.SetIntrospection(func(rw http.ResponseWriter, r *http.Request) bool { answers[i%len(answers)](rw, r); return true })
			result, err := w.v.Verify(t.Context(), redact.New(fmt.Sprintf("canary7f3a-%d", i)), verify.Request{})
			fmt.Fprintf(&output, "%+v %#v %v\n", result, err, err)
			for cause := err; cause != nil; cause = errors.Unwrap(cause) {
				fmt.Fprintf(&output, "%+v %#v\n", cause, cause)
			}
			if result.Rejection != nil {
				output.WriteString(result.Rejection.Message)
			}
			time.Sleep(time.Minute)
		}
		w.idp.SetIntrospection(func(rw http.ResponseWriter, r *http.Request) bool { answers[0](rw, r); return true })
		for i := range 20 { // until the broker logs that it backs off
			_, err := w.v.Verify(t.Context(), redact.New(fmt.Sprintf("canary7f3a-again-%d", i)), verify.Request{})
			fmt.Fprintf(&output, "%v %#v\n", err, err)
		}
		output.WriteString(w.log.String())
		if text := output.String(); strings.Contains(text, "canary") || !strings.Contains(text, "backs off") {
			t.Errorf("shown:\n%s", text)
		}
	})
}

func TestIntrospectionIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		a := configOf(issuerA)
		a.Introspection = &verify.Introspection{Endpoint: says(func(_ context.Context, token string) (bool, []byte, error) {
			if token == "broken" {
				return false, nil, errors.New("out of order")
			}
			return token == "good", members(), nil
		})}
		v, err := verify.New(verify.Config{Issuers: []verify.IssuerConfig{a}, HTTP: discovery.NewHTTPClient(serve(nil)), Registerer: registry}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, token := range []string{"good", "good", "bad", "bad", "worse", "broken", "broken"} {
			outcome(t, v, token, verify.Request{})
		}
		if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP tokenbroker_introspections_total Introspection requests for opaque tokens by result: active, inactive or failure.
# TYPE tokenbroker_introspections_total counter
tokenbroker_introspections_total{issuer="https://a.example",result="active"} 1
tokenbroker_introspections_total{issuer="https://a.example",result="failure"} 2
tokenbroker_introspections_total{issuer="https://a.example",result="inactive"} 2
`), "tokenbroker_introspections_total"); err != nil {
			t.Error(err)
		}
	})
}
