package broker_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/revocation"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// ordersPolicy has callers whose roles grant, of the client orders: its own, one
// scope, any scope, nothing.
func ordersPolicy() policy.Config {
	get := func(scopes ...string) policy.Role {
		return policy.Role{Get: []policy.GetGrant{{Client: "orders", Scopes: scopes}}}
	}
	cfg := policy.Config{
		Clients: map[string]policy.Defaults{"orders": {Audience: audience, Scopes: []string{"read", "write"}}},
		Roles: map[string]policy.Role{
			"own": get(), "read": get("read"), "any": get("*"),
			"nothing": {Admin: []policy.AdminGrant{{Actions: []policy.Action{policy.GetClient}}}},
		},
	}
	for name := range cfg.Roles {
		cfg.Callers = append(cfg.Callers, policy.CallerConfig{Name: name, Roles: []string{name}})
	}
	return cfg
}

func TestPolicy_get(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		callers := policy.New(ordersPolicy())
		readOnly := broker.Ask{Client: "orders", Scopes: []string{"read"}}
		all := broker.Ask{Client: "orders", Scopes: []string{"write", "read"}}
		for _, test := range []struct {
			name   string
			caller *policy.Caller
			ask    broker.Ask
			want   string // reason; empty: a token
		}{
			// The tokens that are handed out first are in memory when others ask for them.
			{"its own", callers.Named("own"), orders(), ""},
			{"less", callers.Named("read"), readOnly, ""},
			{"the defaults, narrowed", callers.Named("read"), orders(), ""},
			{"the defaults by their names, which are more", callers.Named("read"), all, apierror.ReasonNotEntitled},
			{"another audience", callers.Named("own"), broker.Ask{Client: "orders", Audience: audienceNo(1)}, apierror.ReasonNotEntitled},
			{"nothing", callers.Named("nothing"), orders(), apierror.ReasonNotEntitled},
			{"nobody", nil, orders(), apierror.ReasonNotEntitled},
			{"a client that is not there", callers.Named("own"), broker.Ask{Client: "zebra"}, apierror.ReasonNotEntitled},
			{"what the IdP would refuse, too", callers.Named("own"), broker.Ask{Client: "orders", Scopes: []string{"zebra"}}, apierror.ReasonNotEntitled},
		} {
			_, err := f.Get(t.Context(), test.caller, test.ask)
			told, denied := errors.AsType[*apierror.Error](err)
			switch {
			case test.want == "" && err != nil:
				t.Errorf("%s: %v", test.name, err)
			case test.want != "" && (!denied || told.Code != apierror.PermissionDenied || told.Reason != test.want):
				t.Errorf("%s: %v, want %s", test.name, err, test.want)
			}
		}
		wantError(t, f.Purge(t.Context(), callers.Named("own"), purgeOf("orders")), apierror.PermissionDenied, apierror.ReasonNotEntitled)
		if fetched := f.fetches(); fetched != 2 {
			t.Errorf("%d fetches; those who may not ask must not cost any", fetched)
		}
	})
}

// What does not exist and what is another's look alike.
func TestPolicy_denialsShowNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		caller := policy.New(ordersPolicy()).Named("nothing")
		_, known := f.Get(t.Context(), caller, broker.Ask{Client: "orders", Audience: "x"})
		_, unknown := f.Get(t.Context(), caller, broker.Ask{Client: "zebras", Audience: "x"})
		a, b := asError(t, known), asError(t, unknown)
		if a.Code != b.Code || a.Reason != b.Reason || len(a.Metadata) != len(b.Metadata) ||
			strings.ReplaceAll(a.Message, "orders", "zebras") != b.Message {
			t.Errorf("%+v\n%+v", a, b)
		}
		if !strings.Contains(a.Message, `"nothing"`) || !strings.Contains(a.Message, "broker policy explain FILE nothing") || !strings.Contains(a.Message, `audience "x"`) {
			t.Errorf("the message does not say who asked for what, and how to find out more: %s", a.Message)
		}
	})
}

func asError(t *testing.T, err error) *apierror.Error {
	t.Helper()
	told, ok := errors.AsType[*apierror.Error](err)
	if !ok {
		t.Fatalf("%v is no apierror.Error", err)
	}
	return told
}

// grants makes the IdP grant these scopes, whatever it is asked for.
func (f *fleet) grants(scopes string) {
	f.idp.SetAnswer(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"access_token": %q, "token_type": "Bearer", "expires_in": 100, "scope": %q}`, rand.Text(), scopes)
		return true
	})
}

// An IdP may grant more than was asked for. Who may not have that does not get the
// token, though others may.
func TestPolicy_scopesOfTheIdP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		f.grants("read write")
		callers := policy.New(ordersPolicy())
		readOnly := broker.Ask{Client: "orders", Scopes: []string{"read"}}
		_, err := f.Get(t.Context(), callers.Named("read"), readOnly)
		told := wantError(t, err, apierror.PermissionDenied, apierror.ReasonGrantedTooMuch)
		if !strings.Contains(told.Message, "write") {
			t.Errorf("the message does not say what was granted: %s", told.Message)
		}
		for _, name := range []string{"own", "any"} {
			if _, err := f.Get(t.Context(), callers.Named(name), readOnly); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		f.grants("read profile")
		other := broker.Ask{Client: "orders", Scopes: []string{"read", "write"}}
		_, err = f.Get(t.Context(), callers.Named("own"), other)
		wantError(t, err, apierror.PermissionDenied, apierror.ReasonGrantedTooMuch)
		if _, err := f.Get(t.Context(), callers.Named("any"), other); err != nil {
			t.Errorf("any: %v", err)
		}
	})
}

func TestPolicy_operators(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 1)
		b := j.all[0]
		nobody := policy.New(ordersPolicy()).Named("nothing")
		exp := time.Now().Add(time.Hour)
		_, err := b.Revocations().Revoke(t.Context(), nobody, revocation.Revocation{Issuer: issuer, Subject: "a", ExpiresAt: exp}, "1")
		wantError(t, err, apierror.PermissionDenied, apierror.ReasonNotEntitled)
		_, err = b.Revocations().List(t.Context(), nobody, "")
		wantError(t, err, apierror.PermissionDenied, apierror.ReasonNotEntitled)
		wantError(t, b.Revocations().Delete(t.Context(), nobody, revocation.Deletion{ID: "x"}), apierror.PermissionDenied, apierror.ReasonNotEntitled)
		wantError(t, b.Purge(t.Context(), nobody, purgeOf("orders")), apierror.PermissionDenied, apierror.ReasonNotEntitled)

		operator := policy.New(policy.Config{
			Callers: []policy.CallerConfig{{Name: "alice", Roles: []string{"r"}}},
			Roles:   map[string]policy.Role{"r": {Admin: []policy.AdminGrant{{Actions: []policy.Action{policy.RevokeTokens}}}}},
		}).Named("alice")
		made, err := b.Revocations().Revoke(t.Context(), operator, revocation.Revocation{Issuer: issuer, Subject: "a", ExpiresAt: exp}, "1")
		if err != nil || made.CreatedBy != "alice" {
			t.Errorf("%+v, %v", made, err)
		}
		wantError(t, b.Revocations().Delete(t.Context(), operator, revocation.Deletion{ID: made.ID}), apierror.PermissionDenied, apierror.ReasonNotEntitled)
	})
}

// For a caller there are no issuers but those of its grants.
func TestPolicy_verify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 1)
		b := j.all[0]
		grants := func(grants ...policy.VerifyGrant) *policy.Caller {
			return policy.New(policy.Config{
				Callers: []policy.CallerConfig{{Name: "edge", Roles: []string{"r"}}},
				Roles:   map[string]policy.Role{"r": {Verify: grants}},
				Issuers: map[string][]string{issuer: {audience}, "https://other.example.com": {"z"}},
			}).Named("edge")
		}
		elsewhere := grants(policy.VerifyGrant{Issuer: "https://other.example.com"})
		own, anything := grants(policy.VerifyGrant{Issuer: issuer}), grants(policy.VerifyGrant{Issuer: "*", Audiences: []string{"*"}})
		narrow := grants(policy.VerifyGrant{Issuer: issuer, Audiences: []string{"https://elsewhere.example.com"}})
		for i, test := range []struct {
			name   string
			caller *policy.Caller
			ask    verify.Request
			reason verify.Reason // of a rejection; 0: active
			denied bool
		}{
			{"its issuer", own, verify.Request{}, 0, false},
			{"its audience", own, verify.Request{Audience: []string{audience}}, 0, false},
			{"any", anything, verify.Request{Audience: []string{audience, "x"}}, 0, false},
			{"another issuer", elsewhere, verify.Request{}, verify.UnknownIssuer, false},
			{"another issuer by its name", elsewhere, verify.Request{Issuer: issuer}, verify.UnknownIssuer, false},
			{"another audience", own, verify.Request{Audience: []string{audience, "x"}}, 0, true},
			{"the issuer's, not its own", narrow, verify.Request{}, 0, true},
			{"an audience that is not theirs", narrow, verify.Request{Audience: []string{"https://elsewhere.example.com"}}, verify.WrongAudience, false},
			{"nothing", grants(), verify.Request{}, 0, true},
			{"nobody", nil, verify.Request{}, 0, true},
		} {
			token := j.token("alice", "abc", fmt.Sprint("id", i))
			check := func(when string) {
				result, err := b.Verify(t.Context(), test.caller, token, test.ask)
				told, _ := errors.AsType[*apierror.Error](err)
				switch {
				case test.denied && (told == nil || told.Code != apierror.PermissionDenied || told.Reason != apierror.ReasonNotEntitled):
					t.Errorf("%s, %s: %+v, %v, want a denial", test.name, when, result, err)
				case test.denied:
				case err != nil:
					t.Errorf("%s, %s: %v", test.name, when, err)
				case test.reason == 0 && result.Facts == nil, test.reason != 0 && (result.Rejection == nil || result.Rejection.Reason != test.reason):
					t.Errorf("%s, %s: %+v", test.name, when, result.Rejection)
				}
			}
			check("seen for the first time")
			// Another caller's verification puts the token into the cache.
			if result, err := b.Verify(t.Context(), anything, token, verify.Request{}); err != nil || result.Facts == nil {
				t.Fatalf("%+v, %v", result, err)
			}
			check("from the cache")
		}
	})
}

func TestApply_keepsUnchangedClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		first, err := f.Get(t.Context(), policy.Self(), orders())
		if err != nil {
			t.Fatal(err)
		}
		same := f.config
		if err := f.Apply(broker.Setup{Clients: []broker.ClientConfig{same, {Name: "other", IdP: same.IdP, Secret: same.Secret}}}); err != nil {
			t.Fatal(err)
		}
		if again, err := f.Get(t.Context(), policy.Self(), orders()); err != nil || again.Token != first.Token {
			t.Errorf("the token is gone: %v", err)
		}
		if err := f.Apply(broker.Setup{Clients: []broker.ClientConfig{same, same}}); err == nil {
			t.Error("two clients of one name are accepted")
		}
		if _, err := f.Get(t.Context(), policy.Self(), orders()); err != nil {
			t.Errorf("after a setup that was refused: %v", err)
		}
		if err := f.Apply(broker.Setup{}); err != nil {
			t.Fatal(err)
		}
		_, err = f.Get(t.Context(), policy.Self(), orders())
		wantError(t, err, apierror.PermissionDenied, apierror.ReasonNotEntitled)
		if fetched := f.idp.Requests(devidp.TokenPath); fetched != 1 {
			t.Errorf("%d fetches", fetched)
		}
	})
}

// A client that is configured anew under an old name has another's tokens no more,
// and what was purged before stays purged.
func TestApply_forgetsChangedClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		narrow := broker.Ask{Client: "orders", Scopes: []string{"read"}}
		old, err := f.Get(t.Context(), policy.Self(), narrow)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Purge(t.Context(), policy.Self(), purgeOf("orders")); err != nil {
			t.Fatal(err)
		}
		changed := f.config
		changed.Audience = audienceNo(1)
		if err := f.Apply(broker.Setup{Clients: []broker.ClientConfig{changed}}); err != nil {
			t.Fatal(err)
		}
		answer, err := f.Get(t.Context(), policy.Self(), narrow)
		if err != nil || answer.Token.SHA256 == old.Token.SHA256 || answer.Token.Epoch == 0 {
			t.Errorf("%+v, %v", answer, err)
		}
	})
}

func TestApply_restoresLostValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 1)
		b := r.all[0]
		if err := b.Purge(t.Context(), policy.Self(), purgeOf("orders")); err != nil {
			t.Fatal(err)
		}
		b.link.to.Store(store.NewMemory(store.MemoryConfig{}))
		changed := b.config
		changed.Audience = audienceNo(1)
		if err := b.Apply(broker.Setup{Clients: []broker.ClientConfig{changed}}); err != nil {
			t.Fatal(err)
		}
		if answer, err := b.Get(t.Context(), policy.Self(), orders()); err != nil || answer.Token.Epoch == 0 {
			t.Errorf("the purge is forgotten: %+v, %v", answer, err)
		}
	})
}

// A question that reads the same is another one when it goes to another IdP.
func TestApply_usesTheNewIdP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		narrow := broker.Ask{Client: "orders", Scopes: []string{"read"}}
		if _, err := f.Get(t.Context(), policy.Self(), narrow); err != nil {
			t.Fatal(err)
		}
		elsewhere, err := idp.New(idp.Config{
			TokenURL: issuer + devidp.TokenPath, ClientID: "abc", Auth: idp.SecretPost, HTTP: discovery.NewHTTPClient(f.idp.RoundTripper()),
		})
		if err != nil {
			t.Fatal(err)
		}
		changed := f.config
		changed.IdP = elsewhere
		if err := f.Apply(broker.Setup{Clients: []broker.ClientConfig{changed}}); err != nil {
			t.Fatal(err)
		}
		if answer, err := f.Get(t.Context(), policy.Self(), narrow); err != nil || answer.Origin != broker.OriginFetched {
			t.Errorf("%+v, %v", answer, err)
		}
	})
}

// A purge reaches a client that was configured anew, too: it subscribes anew.
func TestApply_watchContinues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		sent := make(chan broker.Answer, 10)
		ended := make(chan error, 1)
		who := policy.Self()
		go func() {
			ended <- f.Watch(t.Context(), func() (*policy.Caller, error) { return who, nil }, orders(), func(a broker.Answer) error { sent <- a; return nil })
		}()
		first := <-sent
		same := f.config
		if err := f.Apply(broker.Setup{Clients: []broker.ClientConfig{same}}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(sent) != 0 {
			t.Error("a reload that changed nothing sent the token again")
		}
		changed := f.config
		changed.Audience = audienceNo(1)
		if err := f.Apply(broker.Setup{Clients: []broker.ClientConfig{changed}}); err != nil {
			t.Fatal(err)
		}
		if second := <-sent; second.Token.SHA256 == first.Token.SHA256 {
			t.Error("the watch has the old audience's token")
		}
		if err := f.Purge(t.Context(), policy.Self(), purgeOf("orders")); err != nil {
			t.Fatal(err)
		}
		if third := <-sent; third.Token.Epoch == 0 {
			t.Errorf("after the purge: epoch %d", third.Token.Epoch)
		}
		synctest.Wait()
		who = nil
		taken := time.Now()
		if err := f.Apply(broker.Setup{Clients: []broker.ClientConfig{changed}}); err != nil {
			t.Fatal(err)
		}
		wantError(t, <-ended, apierror.PermissionDenied, apierror.ReasonNotEntitled)
		if late := time.Since(taken); late > 0 {
			t.Errorf("the watch went on for %v", late)
		}
	})
}
