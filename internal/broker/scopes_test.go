package broker_test

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// startScoped runs a broker whose client has these default scopes, with callers of
// the names and scopes of grants.
func startScoped(t testing.TB, defaults []string, grants map[string][]string) (*fleet, *book) {
	t.Helper()
	b := openBook(t, audit.Config{})
	callers := policy.Config{
		Clients: map[string]policy.Defaults{"orders": {Audience: audience, Scopes: defaults}}, Roles: map[string]policy.Role{},
	}
	for name, scopes := range grants {
		callers.Callers = append(callers.Callers, policy.CallerConfig{Name: name, Roles: []string{name}})
		callers.Roles[name] = policy.Role{Get: []policy.GetGrant{{Client: "orders", Scopes: scopes}}}
	}
	return startAs(t, nil, func(cfg *broker.Config) {
		cfg.Setup.Clients[0].Scopes = defaults
		cfg.Setup.Policy = policy.New(callers)
		cfg.Audit = b.Log
	}), b
}

// saysNoScope makes the IdP's answers leave out the scope.
func (f *fleet) saysNoScope() {
	f.idp.SetAnswer(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"access_token": %q, "token_type": "Bearer", "expires_in": 100}`, rand.Text())
		return true
	})
}

func TestDefaultScopes_granted(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f, b := startScoped(t, []string{"write", "read"}, map[string][]string{"all": nil, "any": {"*"}, "reader": {"read"}, "writer": {"write", "admin"}})
		given := map[string]broker.Answer{}
		for _, tt := range []struct {
			caller string
			want   []string
			origin broker.Origin
		}{
			{"all", []string{"read", "write"}, broker.OriginFetched},
			{"reader", []string{"read"}, broker.OriginFetched},
			{"writer", []string{"write"}, broker.OriginFetched},
			{"any", []string{"read", "write"}, broker.OriginMemory},
			{"reader", []string{"read"}, broker.OriginMemory},
		} {
			answer, err := f.get(t, tt.caller, orders())
			if err != nil || !slices.Equal(answer.Token.Scopes, tt.want) || answer.Origin != tt.origin {
				t.Fatalf("%s: %+v, %v", tt.caller, answer, err)
			}
			given[tt.caller] = answer
			for _, l := range b.news() {
				if l.Caller != tt.caller || !slices.Equal(l.Scopes, tt.want) || !slices.Equal(l.GrantedScopes, tt.want) {
					t.Errorf("%s: the audit has %+v", tt.caller, l)
				}
			}
		}
		if given["all"].Token != given["any"].Token {
			t.Error("two callers with the same resolved scopes do not share a token")
		}
		// The same scopes by their names are the same request.
		named, err := f.get(t, "reader", broker.Ask{Client: "orders", Scopes: []string{"read"}})
		if err != nil || named.Token != given["reader"].Token {
			t.Errorf("%+v, %v", named, err)
		}
	})
}

func TestDefaultScopes_watch(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f, _ := startScoped(t, []string{"read", "write"}, map[string][]string{"reader": {"read"}, "other": {"admin"}})
		enough := fmt.Errorf("enough")
		watch := func(caller string) (sent broker.Answer, err error) {
			err = f.Watch(t.Context(), func() (*policy.Caller, error) { return f.Policy().Named(caller), nil }, orders(),
				func(a broker.Answer) error { sent = a; return enough })
			return sent, err
		}
		if sent, err := watch("reader"); err != enough || !slices.Equal(sent.Token.Scopes, []string{"read"}) { //nolint:errorlint // the very one
			t.Errorf("%+v, %v", sent, err)
		}
		_, err := watch("other")
		wantError(t, err, apierror.PermissionDenied, apierror.ReasonNotEntitled)
	})
}

// Where the client has defaults and none is granted, the request is never sent
// without scopes.
func TestDefaultScopes_namedInTheDenial(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f, b := startScoped(t, []string{"read", "write"}, map[string][]string{"admin": {"admin"}})
		_, err := f.get(t, "admin", orders())
		told := wantError(t, err, apierror.PermissionDenied, apierror.ReasonNotEntitled)
		for _, want := range []string{`"read" "write"`, audience, "(the client's own)", "broker policy explain FILE admin"} {
			if !strings.Contains(told.Message, want) {
				t.Errorf("the message lacks %s: %s", want, told.Message)
			}
		}
		b.expect("a denial", func(l line) bool {
			return l.Outcome == "denied" && slices.Equal(l.Scopes, []string{"read", "write"}) && slices.Equal(l.Audiences, []string{audience})
		})
		_, err = f.get(t, "admin", broker.Ask{Client: "orders", Scopes: []string{"admin", "read"}})
		told = wantError(t, err, apierror.PermissionDenied, apierror.ReasonNotEntitled)
		if !strings.Contains(told.Message, `scopes ["admin" "read"]`) {
			t.Errorf("the message does not name the scopes that were asked for: %s", told.Message)
		}
		if n := f.fetches(); n != 0 {
			t.Errorf("%d fetches", n)
		}
	})
}

// A token whose scopes nobody knows goes only to callers that may have any, and to
// those whose grant leaves the scopes to the client.
func TestTokenOfUnknownScopesNeedsAFullGrant(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f, b := startScoped(t, nil, map[string][]string{"any": {"*"}, "open": nil, "reader": {"read"}})
		f.saysNoScope()
		// The token is in memory when the others ask for it.
		for _, caller := range []string{"any", "open"} {
			if answer, err := f.get(t, caller, orders()); err != nil || len(answer.Token.Scopes) > 0 {
				t.Fatalf("%s: %+v, %v", caller, answer, err)
			}
		}
		b.news()
		_, err := f.get(t, "reader", orders())
		told := wantError(t, err, apierror.PermissionDenied, apierror.ReasonGrantedUnknown)
		if !strings.Contains(told.Message, "name scopes in the request") {
			t.Errorf("the message does not say what to do: %s", told.Message)
		}
		b.expect("a denial", func(l line) bool {
			return l.Outcome == "denied" && l.Reason == apierror.ReasonGrantedUnknown && l.Caller == "reader"
		})
		// Scopes that were requested count where the IdP is silent.
		answer, err := f.get(t, "reader", broker.Ask{Client: "orders", Scopes: []string{"read"}})
		if err != nil || !slices.Equal(answer.Token.Scopes, []string{"read"}) {
			t.Errorf("%+v, %v", answer, err)
		}
	})
}

func TestTokenWithNamedScopesIsReturned(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f, _ := startScoped(t, nil, map[string][]string{"reader": {"read"}, "writer": {"write"}})
		f.grants("read")
		if answer, err := f.get(t, "reader", orders()); err != nil || !slices.Equal(answer.Token.Scopes, []string{"read"}) {
			t.Errorf("%+v, %v", answer, err)
		}
		_, err := f.get(t, "writer", orders())
		wantError(t, err, apierror.PermissionDenied, apierror.ReasonGrantedTooMuch)
	})
}

func TestNarrowedHitAllocatesNothing(t *testing.T) {
	f, _ := startScoped(t, []string{"read", "write"}, map[string][]string{"reader": {"read"}})
	ctx, caller := t.Context(), f.Policy().Named("reader")
	get := func() {
		if _, err := f.Get(ctx, caller, orders()); err != nil {
			t.Fatal(err)
		}
	}
	get()
	if n := testing.AllocsPerRun(1000, get); n > 0 {
		t.Errorf("%v allocations a hit", n)
	}
}
