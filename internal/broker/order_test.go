package broker_test

import (
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/store"
)

// The fence of a fetch orders its result: what an older fetch brings changes
// nothing that a newer one has shown.

func ordersFor(audience string) broker.Ask { return broker.Ask{Client: "orders", Audience: audience} }

// holdAtIdP keeps the requests for a token of an audience at the IdP until it is
// told to let them go.
func holdAtIdP(idp *devidp.Server, audience string) (letGo func()) {
	gate := make(chan struct{})
	idp.SetAnswer(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.PostFormValue("audience") == audience {
			<-gate
		}
		return false
	})
	return func() { close(gate) }
}

// getLater begins a Get, gives it the time to reach the IdP and returns a function
// that waits for its result.
func (r *replica) getLater(t *testing.T, ask broker.Ask) (result func() (broker.Answer, error)) {
	t.Helper()
	var answer broker.Answer
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		answer, err = r.Get(t.Context(), policy.Self(), ask)
	}()
	time.Sleep(100 * time.Millisecond)
	return func() (broker.Answer, error) { <-done; return answer, err }
}

// lose gives all replicas an empty store.
func (r *replicas) lose() {
	r.shared = store.NewMemory(store.MemoryConfig{})
	for _, replica := range r.all {
		replica.link.to.Store(r.shared)
	}
}

var (
	rightSecret   = redact.New("right")
	anotherSecret = redact.New("another")
)

func TestOrder_olderFetchProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 1)
		r.everybody(1, orders()) // the secret is proven: fetches go together from here on
		letGo := holdAtIdP(r.idp, audienceNo(0))
		older := r.all[0].getLater(t, ordersFor(audienceNo(0)))
		r.idp.SetSecrets("abc", anotherSecret)
		_, err := r.all[0].Get(t.Context(), policy.Self(), ordersFor(audienceNo(1)))
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
		r.idp.SetSecrets("abc", rightSecret)
		letGo()
		if _, err := older(); err != nil {
			t.Fatal(err)
		}
		r.idp.SetSecrets("abc", anotherSecret)
		r.lose() // or the store would correct the replica
		time.Sleep(31 * time.Second)

		before := r.fetches()
		r.idp.SetDelay(time.Second)
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				_, err := r.all[0].Get(t.Context(), policy.Self(), ordersFor(audienceNo(2+i)))
				wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
			})
		}
		wg.Wait()
		if got := r.fetches() - before; got != 1 {
			t.Errorf("a secret that may be wrong was sent %d times", got)
		}
	})
}

func TestOrder_olderRefusalChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 1)
		r.everybody(1, orders())
		letGo := holdAtIdP(r.idp, audienceNo(0))
		older := r.all[0].getLater(t, ordersFor(audienceNo(0)))
		if _, err := r.all[0].Get(t.Context(), policy.Self(), ordersFor(audienceNo(1))); err != nil {
			t.Fatal(err)
		}
		r.idp.SetSecrets("abc", anotherSecret)
		r.lose() // or the store would correct the replica
		letGo()
		_, err := older()
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
		r.idp.SetSecrets("abc", rightSecret)
		time.Sleep(31 * time.Second) // the pause after the refusal

		r.idp.SetDelay(time.Second)
		begun := time.Now()
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				if _, err := r.all[0].Get(t.Context(), policy.Self(), ordersFor(audienceNo(2+i))); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(begun); took > 1500*time.Millisecond {
			t.Errorf("the requests took %v: they waited for a fetch that tries the secret", took)
		}
	})
}

func TestOrder_olderTokenReplacesNoNewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 2)
		slow, fast := r.all[0], r.all[1]
		sent := make(chan broker.Answer, 10)
		who := func() (*policy.Caller, error) { return policy.Self(), nil }
		go func() {
			_ = slow.Watch(t.Context(), who, orders(), func(a broker.Answer) error { sent <- a; return nil })
		}()
		r.idp.SetDelay(6 * time.Second)
		// The fetch of slow loses its lease while slow cannot reach the store.
		time.Sleep(500 * time.Millisecond) // it is at the IdP
		slow.link.state.Store(refused)
		r.idp.SetDelay(time.Second)
		newer := fast.getLater(t, orders())
		time.Sleep(3 * time.Second)
		slow.link.state.Store(good)
		answer, err := newer()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // the store notifies slow, which adopts the token
		slow.link.state.Store(refused)     // or slow would read the newer token again
		older := <-sent
		if older.Origin != broker.OriginFetched || older.Token.Fence >= answer.Token.Fence || r.fetches() != 2 {
			t.Fatalf("the fetches did not overlap: %+v after %d fetches", older, r.fetches())
		}
		time.Sleep(time.Second)
		if held := r.mustGetFrom(slow, orders()); held.Token.SHA256 != answer.Token.SHA256 {
			t.Errorf("the token of the older fetch, with fence %d, replaced that with fence %d", held.Token.Fence, answer.Token.Fence)
		}
	})
}

func (r *replicas) mustGetFrom(from *replica, ask broker.Ask) broker.Answer {
	r.t.Helper()
	answer, err := from.Get(r.t.Context(), policy.Self(), ask)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer
}

// After a success the next failure is the first one in all replicas, also in those
// that never saw the token.
func TestSuccessEndsSharedFailures(t *testing.T) {
	for name, tt := range map[string]struct {
		fail   func(*devidp.Server)
		repair func(*devidp.Server)
		code   apierror.Code
		reason string
		first  time.Duration // the pause after the first failure in a row
	}{
		"of a secret": {
			func(idp *devidp.Server) { idp.SetSecrets("abc", anotherSecret) }, func(idp *devidp.Server) { idp.SetSecrets("abc", rightSecret) },
			apierror.FailedPrecondition, apierror.ReasonCredentialsRefused, 30 * time.Second,
		},
		"of a request": {
			func(idp *devidp.Server) { idp.FailNext(1, http.StatusBadRequest, "invalid_scope", nil) }, func(*devidp.Server) {},
			apierror.FailedPrecondition, apierror.ReasonRequestRefused, time.Minute,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startReplicas(t, 1)
				fails := func(from *replica, when string) {
					t.Helper()
					tt.fail(r.idp)
					_, err := from.Get(t.Context(), policy.Self(), orders())
					if told := wantError(t, err, tt.code, tt.reason); told.RetryAfter > tt.first || told.RetryAfter < tt.first-time.Second {
						t.Errorf("%s: the pause is %v, not that after a first failure, %v", when, told.RetryAfter, tt.first)
					}
				}
				fails(r.all[0], "at first")
				tt.repair(r.idp)
				time.Sleep(tt.first + time.Second)
				r.everybody(1, orders())
				time.Sleep(3 * time.Minute) // nobody has the token any more, and failures are remembered for longer
				fails(r.add("right"), "in a replica that starts later")
				tt.repair(r.idp)
			})
		})
	}
}

func TestSuccessEndsThrottlingForTheFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 2)
		held := r.everybody(1, orders())[1]
		r.idp.FailNext(1, http.StatusTooManyRequests, "", http.Header{"Retry-After": {"2"}})
		for _, replica := range r.all {
			_, err := replica.Get(t.Context(), policy.Self(), ordersFor(audienceNo(0)))
			wantError(t, err, apierror.ResourceExhausted, apierror.ReasonIdPThrottled)
		}
		time.Sleep(3 * time.Second)
		r.mustGetFrom(r.all[0], ordersFor(audienceNo(1)))
		// The other replica reads the store for a request that brings no token.
		r.idp.FailNext(1, http.StatusBadRequest, "invalid_scope", nil)
		_, err := r.all[1].Get(t.Context(), policy.Self(), ordersFor(audienceNo(2)))
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonRequestRefused)
		time.Sleep(time.Until(held.Token.RefreshAt))
		if answer := r.mustGetFrom(r.all[1], orders()); answer.Degraded {
			t.Errorf("the throttling that ended still counts: %+v", answer)
		}
	})
}

// A flight that was after any good token brings one of another replica, which this
// caller cannot use: another request follows for it, and it gets what it asked for.
func TestUnsuitableSharedTokenIsReplaced(t *testing.T) {
	for name, ask := range map[string]func(held broker.Answer) broker.Ask{
		"it ends too soon":    func(broker.Answer) broker.Ask { return broker.Ask{Client: "orders", MinTTL: 70 * time.Second} },
		"it was rejected":     func(held broker.Answer) broker.Ask { return broker.Ask{Client: "orders", Rejected: &held.Token.SHA256} },
		"it will do, in fact": func(broker.Answer) broker.Ask { return broker.Ask{Client: "orders", MinTTL: 30 * time.Second} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startReplicas(t, 2)
				held := r.mustGetFrom(r.all[0], orders())
				time.Sleep(40 * time.Second) // 60 s are left
				want, origin := 2, broker.OriginFetched
				if name == "it will do, in fact" {
					want, origin = 1, broker.OriginShared
				}
				answer, err := r.all[1].Get(t.Context(), policy.Self(), ask(held))
				if err != nil || answer.Origin != origin || answer.Degraded || (answer.Token.SHA256 == held.Token.SHA256) != (want == 1) {
					t.Errorf("%+v, %v", answer, err)
				}
				if got := r.fetches(); got != want {
					t.Errorf("the IdP was asked %d times, want %d", got, want)
				}
			})
		})
	}
}
