package broker_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/rotation"
)

// status is what a replica shows operators of the client "orders", by itself and in
// the list, which must agree.
func (r *replicas) status(i int) broker.ClientStatus {
	r.t.Helper()
	one, err := r.all[i].Client(r.t.Context(), policy.Self(), "orders")
	if err != nil {
		r.t.Fatal(err)
	}
	all, err := r.all[i].Clients(r.t.Context(), policy.Self())
	if err != nil || len(all) != 1 {
		r.t.Fatalf("%d clients, %v", len(all), err)
	}
	if all[0].LastError != one.LastError || all[0].State != one.State || all[0].Resolved != one.Resolved {
		r.t.Errorf("replica %d shows %v %q %v in the list and %v %q %v by itself", i, all[0].State, all[0].LastError, all[0].Resolved, one.State, one.LastError, one.Resolved)
	}
	return one
}

func TestLastFailureIsShownByEveryReplica(t *testing.T) {
	for name, test := range map[string]struct {
		breakIdP, mend func(r *replicas)
		ask            broker.Ask
		state          broker.ClientState
		says           string
	}{
		"down": {
			func(r *replicas) { r.idp.SetDown(true) }, func(r *replicas) { r.idp.SetDown(false) },
			broker.Ask{Client: "orders"}, broker.ClientFailing, "orders",
		},
		"another audience": {
			func(r *replicas) { r.idp.FailNext(1, 400, "invalid_target", nil) }, func(*replicas) {},
			broker.Ask{Client: "orders", Audience: audienceNo(1)}, broker.ClientFailing, "invalid_target",
		},
		"secret": {
			func(r *replicas) { r.idp.SetSecrets("abc", redact.New("another")) }, func(r *replicas) { r.idp.SetSecrets("abc", redact.New("right")) },
			broker.Ask{Client: "orders"}, broker.ClientRefused, "invalid_client",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startReplicas(t, 3)
				test.breakIdP(r)
				if _, err := r.all[0].Get(t.Context(), policy.Self(), test.ask); err == nil {
					t.Fatal("the fetch did not fail")
				}
				failedAt := time.Now()
				time.Sleep(10 * time.Second)
				for i := range r.all {
					s := r.status(i)
					if s.State != test.state || s.Resolved || !strings.Contains(s.LastError, test.says) || failedAt.Sub(s.LastFailure).Abs() > time.Second {
						t.Errorf("replica %d: %+v", i, s)
					}
				}
				test.mend(r)
				time.Sleep(10 * time.Minute)
				if _, err := r.all[1].Get(t.Context(), policy.Self(), test.ask); err != nil {
					t.Fatal(err)
				}
				for i := range r.all {
					s := r.status(i)
					if s.State == test.state || !s.Resolved || !strings.Contains(s.LastError, test.says) {
						t.Errorf("replica %d, after a success: %+v", i, s)
					}
				}
			})
		})
	}
}

func TestRefusedSecretStaysRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 2)
		r.rotate(rotationTo("one"))
		_, err := rotation.New(r.all[0], nil).Rotate(t.Context(), policy.Self(), rotationTo("wrong"))
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
		time.Sleep(time.Hour)
		for i := range r.all {
			if got := r.status(i).State; got == broker.ClientRefused || got == broker.ClientFailing {
				t.Errorf("replica %d: state %v although the current secret works", i, got)
			}
			for _, v := range r.status(i).Versions {
				if refused := v.ID == idOf("wrong"); refused != !v.RefusedAt.IsZero() {
					t.Errorf("replica %d: version %s, %v, was refused at %v", i, v.ID, v.State, v.RefusedAt)
				}
			}
		}
	})
}

func TestStage_warnsOfSuspiciousBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 1)
		got, err := rotation.New(r.all[0], nil).Rotate(t.Context(), policy.Self(), rotationTo("one "))
		told := wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
		if !strings.Contains(told.Message, "begins or ends with white space") {
			t.Errorf("%q, %+v", told.Message, got)
		}
		if first := rotatedIn(t, err).Steps[0]; !strings.Contains(first.Message, "begins or ends with white space") {
			t.Errorf("%+v", first)
		}
	})
}
