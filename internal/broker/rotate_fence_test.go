package broker_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/rotation"
)

// holdBack holds the next request that comes with a secret, until it is let go.
// How the IdP judges it then, it judges it by what it takes then.
func (r *replicas) holdBack(value string) (letGo func()) {
	gate, held := make(chan struct{}), false
	r.idp.SetAnswer(func(_ http.ResponseWriter, request *http.Request) bool {
		if _, sent, ok := request.BasicAuth(); ok && sent == value && !held {
			held = true
			<-gate
		}
		return false
	})
	return func() { close(gate) }
}

// A fetch with the old secret begins before the rotation and ends after it, on
// another replica: refused, or with a token. Neither undoes the rotation.
func TestRotation_oldFetchEndsLater(t *testing.T) {
	for name, tt := range map[string]struct {
		takes []string // when the old fetch is judged
		knows bool     // its replica has heard of the rotation by then
		good  bool
	}{
		"it is refused":                      {[]string{"two"}, false, false},
		"it is refused, which is old news":   {[]string{"two"}, true, false},
		"it brings a token":                  {[]string{"one", "two"}, false, true},
		"it brings a token, which is old":    {[]string{"one", "two"}, true, true},
		"it brings what the new one did not": {[]string{"one"}, true, true}, // the new one flaps
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startManaged(t, 3)
				r.takes("one", "two")
				r.rotate(rotationTo("one"))
				time.Sleep(2 * time.Minute) // its proof is over, and so is the token

				letGo := r.holdBack("one")
				slow := make(chan error, 1)
				var answer broker.Answer
				go func() {
					var err error
					answer, err = r.all[2].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(7)})
					slow <- err
				}()
				synctest.Wait() // it is at the IdP
				r.all[2].link.deaf.Store(true)

				// The old fetch has the turn to try the secret; its replica is cut off, so
				// that the turn is lost and another replica gets it.
				r.all[2].link.state.Store(away)
				time.Sleep(4 * time.Second)
				r.all[2].link.state.Store(good)
				r.rotate(rotationTo("two"))
				if tt.knows {
					if got := secretsOf(t, r.all[2]); got != "two:current one:previous" {
						t.Fatal(got)
					}
				}
				r.takes(tt.takes...)
				letGo()
				err := <-slow
				if tt.good && (err != nil || answer.Token.SecretVersion != idOf("one")) {
					t.Errorf("the old fetch: %+v, %v", answer.Token, err)
				}
				if !tt.good && (err != nil || answer.Token.SecretVersion != idOf("two")) {
					t.Errorf("the old fetch was refused and did not go on with the new secret: %+v, %v", answer.Token, err)
				}
				r.takes("two")
				r.idp.SetAnswer(nil)
				time.Sleep(6 * time.Second)
				r.expectSecrets("two:current one:previous")
				before := r.refusals("one")
				for i := range 10 {
					for _, replica := range r.all {
						got, err := replica.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(10 + i)})
						if err != nil || got.Token.SecretVersion != idOf("two") {
							t.Errorf("after it: %+v, %v", got.Token, err)
						}
					}
				}
				if got := r.refusals("one") - before; got != 0 {
					t.Errorf("the old secret was sent %d times afterwards", got)
				}
			})
		})
	}
}

// The same where the old fetch was made because the old secret was refused and the
// staged one tried: by the time that it has its token another rotation has gone
// past it.
func TestOldFallbackActivatesNoSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 2)
		r.rotate(rotationTo("one"))
		asked := rotationTo("two")
		asked.StageOnly = true
		r.rotate(asked)
		expire()
		r.takes("two")
		letGo := r.holdBack("two")
		slow := make(chan error, 1)
		go func() {
			_, err := r.all[1].Get(t.Context(), policy.Self(), orders())
			slow <- err
		}()
		synctest.Wait() // "one" was refused, "two" is at the IdP
		r.all[1].link.deaf.Store(true)
		r.all[1].link.state.Store(away)
		time.Sleep(4 * time.Second)
		// Meanwhile operators have put it in force, and then another one.
		r.takes("two", "three")
		r.idp.SetAnswer(nil)
		if _, err := rotation.New(r.all[0], nil).Activate(t.Context(), policy.Self(), idOf("two"), change("go")); err != nil {
			t.Fatal(err)
		}
		r.rotate(rotationTo("three"))
		r.all[1].link.state.Store(good)
		letGo()
		if err := <-slow; err != nil {
			t.Errorf("the old fetch: %v", err)
		}
		time.Sleep(6 * time.Second)
		r.expectSecrets("three:current two:previous one:retired")
	})
}

// Fetches that are refused while they are under way at the same time are one try:
// the pause after it is the first one.
func TestConcurrentRefusalsCountOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 1)
		r.rotate(rotationTo("one")) // proven: fetches go at once
		r.idp.SetDelay(time.Second)
		r.takes()
		failed := make(chan error, 50)
		for i := range 50 {
			go func() {
				_, err := r.all[0].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(i)})
				failed <- err
			}()
		}
		for range 50 {
			wantError(t, <-failed, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
		}
		at := r.refusals("one")
		r.takes("one")
		// Within two minutes of a rotation the first pause is 5 s.
		time.Sleep(6 * time.Second)
		if _, err := r.all[0].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(0)}); err != nil {
			t.Errorf("after %d refusals at once: %v", at, err)
		}
		if good, _ := r.idp.Attempts("abc", redact.New("one")); good != 2 {
			t.Errorf("%d tokens", good)
		}
	})
}
