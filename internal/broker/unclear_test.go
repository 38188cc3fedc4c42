package broker_test

import (
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// refusesUnclearly makes the IdP refuse a secret in words of its own, and returns how
// often each secret was sent.
func (r *replicas) refusesUnclearly(value string, status int, body string) (sent map[string]int) {
	sent = map[string]int{}
	r.idp.SetAnswer(func(w http.ResponseWriter, req *http.Request) bool {
		_, secret, _ := req.BasicAuth()
		sent[secret]++
		if secret != value && value != "*" {
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		return true
	})
	return sent
}

func refusals() map[string]struct {
	status int
	body   string
} {
	return map[string]struct {
		status int
		body   string
	}{
		"server_error, with 401": {401, `{"error":"server_error","error_description":"access_denied"}`},
		"an empty 403":           {403, ""},
		"an empty 400":           {400, ""},
		"an error, with 200":     {200, `{"error":"wrong_secret"}`},
		"a message, with 200":    {200, `{"status":"error","message":"Invalid client"}`},
	}
}

func TestUnclearRefusal_backoff(t *testing.T) {
	for name, refusal := range refusals() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startFiles(t, 2)
				sent := r.refusesUnclearly("*", refusal.status, refusal.body)
				for range 40 {
					for _, replica := range r.all {
						if _, err := replica.Get(t.Context(), policy.Self(), orders()); err == nil {
							t.Fatal("there is a token")
						}
					}
					time.Sleep(time.Second)
				}
				// 30 s after the first refusal of a secret by 401 it is tried again.
				if sent["one"] > 2 || sent["one"] < 1 {
					t.Errorf("the secret was sent %d times in 40 s", sent["one"])
				}
			})
		})
	}
}

func TestUnclearRefusal_fallback(t *testing.T) {
	for name, refusal := range refusals() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startFiles(t, 2)
				r.takes("one", "two")
				r.everybody(1, orders())
				for _, replica := range r.all {
					replica.writes(t, "two")
				}
				time.Sleep(polls)
				r.expectSecrets("two:current one:previous")
				expire()
				sent := r.refusesUnclearly("two", refusal.status, refusal.body)
				r.everybody(1, orders())
				if sent["two"] != 1 || sent["one"] != 1 {
					t.Errorf("sent: %v", sent)
				}
				r.everybody(1, broker.Ask{Client: "orders", Audience: audienceNo(1)})
				if sent["two"] != 1 || sent["one"] != 2 {
					t.Errorf("sent for another audience: %v", sent)
				}
				if got, _ := r.all[0].Client(t.Context(), policy.Self(), "orders"); got.InUse != idOf("one") {
					t.Errorf("%+v", got)
				}
			})
		})
	}
}

// Where the other secret does not help, the request is at fault.
func TestUnclearRefusal_oneFallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFiles(t, 1)
		r.takes("one", "two")
		r.everybody(1, orders())
		r.all[0].writes(t, "two")
		time.Sleep(polls)
		expire()
		sent := r.refusesUnclearly("*", http.StatusForbidden, "")
		for range 200 {
			_, err := r.all[0].Get(t.Context(), policy.Self(), orders())
			wantError(t, err, apierror.FailedPrecondition, apierror.ReasonRequestRefused)
			time.Sleep(time.Second)
		}
		if sent["one"] != 1 || sent["two"] != 2 {
			t.Errorf("sent in 200 s: %v", sent)
		}
		// A new secret is tried at once, whatever was remembered of the old one.
		r.takes("three")
		r.idp.SetAnswer(nil)
		r.all[0].writes(t, "three")
		time.Sleep(polls)
		r.everybody(1, orders())
	})
}

// A secret that obtained a token a moment ago is not the reason.
func TestUnclearRefusal_ofOneAudience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFiles(t, 1)
		r.takes("one", "two")
		r.everybody(1, orders())
		r.all[0].writes(t, "two")
		time.Sleep(polls)
		sent := map[string]int{}
		r.idp.SetAnswer(func(w http.ResponseWriter, req *http.Request) bool {
			_, secret, _ := req.BasicAuth()
			sent[secret]++
			if req.PostForm.Get("audience") == audienceNo(1) {
				w.WriteHeader(http.StatusForbidden)
				return true
			}
			return false
		})
		_, err := r.all[0].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(1)})
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonRequestRefused)
		r.everybody(1, broker.Ask{Client: "orders", Audience: audienceNo(2)})
		if sent["one"] != 0 || sent["two"] != 2 {
			t.Errorf("sent: %v", sent)
		}
	})
}
