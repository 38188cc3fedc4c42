package broker_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// Each endpoint judges the versions of a secret by itself: what the token endpoint
// refuses is still used to ask about tokens, and a version that is refused there
// gives way to another one for a minute.
func TestIntrospectionProvesItsSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFiles(t, 1)
		r.everybody(1, orders())
		time.Sleep(time.Second)
		r.all[0].writes(t, "two") // the IdP does not know it yet
		time.Sleep(polls)
		used := func() string {
			t.Helper()
			v, err := r.all[0].Secrets("orders").ForIntrospection(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return v.Value.Reveal()
		}
		if got := used(); got != "one" {
			t.Errorf("%s is used, which was never proved", got)
		}
		one, err := r.all[0].Secrets("orders").ForIntrospection(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.all[0].Secrets("orders").Introspected(one.ID, nil)
		r.takes()
		expire()
		_, err = r.all[0].Get(t.Context(), policy.Self(), orders())
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
		if got := used(); got != "one" {
			t.Errorf("%s is used after the token endpoint refused the other", got)
		}
		r.all[0].Secrets("orders").Introspected(one.ID, errors.New("not about the secret"))
		if got := used(); got != "one" {
			t.Errorf("%s is used after a failure of another kind", got)
		}
		r.all[0].Secrets("orders").Introspected(one.ID, &idp.Error{Class: idp.CredentialRefused})
		if got := used(); got != "two" {
			t.Errorf("%s is used after introspection refused it", got)
		}
		two, err := r.all[0].Secrets("orders").ForIntrospection(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.all[0].Secrets("orders").Introspected(two.ID, &idp.Error{Class: idp.CredentialRefused})
		_, err = r.all[0].Secrets("orders").ForIntrospection(t.Context())
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
		time.Sleep(time.Minute)
		if got := used(); got != "one" {
			t.Errorf("%s is used a minute later", got)
		}
	})
}
