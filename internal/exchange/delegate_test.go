package exchange_test

import (
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/rotation"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// seeing shows the requests to the token endpoint.
func (w *world) seeing(see func(form url.Values)) {
	w.towards = tampering{w.towards, func(form url.Values) (int, string) {
		see(form)
		return 0, ""
	}}
}

// The IdP requires an actor token, and the client sends one of its own.
func TestGet_actorIsTheClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldWith(t, func(c *devidp.Client) { c.Exchange.RequireActor = true })
		without := w.add()
		alice, bob := w.user(nil), w.user(map[string]any{"sub": "bob"})
		if _, err := w.get(without, "bff", obo(), alice); err == nil || err.Reason != apierror.ReasonRequestRefused {
			t.Errorf("without an actor token: %v", err)
		}
		w.clients = append(w.clients, func(id string, cfg *idp.Config, client *broker.ClientConfig) {
			if id == "obo" {
				cfg.Exchange.Actor, client.Exchange.SelfActor = "client", true
			}
		})
		b, before := w.add(), w.fetches()
		first := w.mustGet(b, "bff", obo(), alice)
		act, _, _ := w.claims(first).Object("act")
		if actor, _, _ := act.Text("sub"); actor != "obo" {
			t.Errorf("the actor is %q", actor)
		}
		w.mustGet(b, "bff", obo(), bob)
		if n := w.fetches() - before; n != 3 {
			t.Errorf("%d requests, want 3: one actor token and two exchanges", n)
		}
		time.Sleep(95 * time.Second) // the actor token has ended
		w.mustGet(b, "bff", obo(), alice)
		if n := w.fetches() - before; n != 5 {
			t.Errorf("%d requests, want 5", n)
		}
	})
}

// New bytes of the same actor do not repeat exchanges. Another actor does not get the
// tokens of the one before.
func TestGet_actorFromAFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldWith(t, func(c *devidp.Client) { c.Exchange.RequireActor = true })
		path := filepath.Join(t.TempDir(), "actor.jwt")
		write := func(actor, id string) {
			t.Helper()
			if err := os.WriteFile(path, []byte(w.user(map[string]any{"sub": actor, "jti": id}).Reveal()), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		w.clients = append(w.clients, func(id string, cfg *idp.Config, client *broker.ClientConfig) {
			if id == "obo" {
				cfg.Exchange.Actor, client.Exchange.ActorFile = "file:"+path, path
			}
		})
		b, alice := w.add(), w.user(nil)
		if _, err := w.get(b, "bff", obo(), alice); err == nil || err.Reason != apierror.ReasonIdPMisconfigured || !strings.Contains(err.Message, path) {
			t.Errorf("no file: %v", err)
		}
		time.Sleep(time.Minute)
		write("pod-a", "1")
		first := w.mustGet(b, "bff", obo(), alice)
		act, _, _ := w.claims(first).Object("act")
		if actor, _, _ := act.Text("sub"); actor != "pod-a" {
			t.Errorf("the actor is %q", actor)
		}
		write("pod-a", "2")
		time.Sleep(6 * time.Second)
		if got := w.mustGet(b, "bff", obo(), alice); got.Origin != broker.OriginMemory {
			t.Errorf("the same actor renewed its token: %v", got.Origin)
		}
		write("pod-b", "1")
		time.Sleep(6 * time.Second)
		got := w.mustGet(b, "bff", obo(), alice)
		act, _, _ = w.claims(got).Object("act")
		if actor, _, _ := act.Text("sub"); actor != "pod-b" || got.Origin != broker.OriginFetched {
			t.Errorf("after a change of the actor: %q from %v", actor, got.Origin)
		}
		// The exchange notices the change at the latest. It discards the token, which does not
		// belong to the actor of its key.
		write("pod-c", "1")
		before := w.fetches()
		act, _, _ = w.claims(w.mustGet(b, "bff", obo(), w.user(map[string]any{"sub": "bob"}))).Object("act")
		if actor, _, _ := act.Text("sub"); actor != "pod-c" || w.fetches() != before+2 {
			t.Errorf("after a change just before the exchange: %q, %d exchanges", actor, w.fetches()-before)
		}
	})
}

// Identity chaining: the assertion of the first leg is a plain JWT. It is for the other
// server only, so it is neither kept nor handed out.
func TestGet_identityChaining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLegs(t)
		var issued, requested []string
		w.seeing(func(form url.Values) {
			if assertion := form.Get("assertion"); assertion != "" {
				issued = append(issued, assertion)
			} else {
				requested = append(requested, form.Get("requested_token_type"))
			}
		})
		w.clients = append(w.clients, func(id string, cfg *idp.Config, _ *broker.ClientConfig) {
			if id == "obo-2" {
				cfg.Exchange.RequestedTokenType = idp.TypeJWTToken
			}
		})
		a, b := w.add(), w.add()
		first := w.mustGet(a, "bff", obo(), w.user(nil))
		if w.text(first, "sub") != "alice" || w.text(first, "iss") != second || w.text(first, "aud") != orders || len(issued) != 1 || issued[0] == first.Token.Value.Reveal() ||
			len(requested) != 1 || requested[0] != idp.TypeJWTToken {
			t.Errorf("sub %q of %q for %q, %d assertions, requested %q", w.text(first, "sub"), w.text(first, "iss"), w.text(first, "aud"), len(issued), requested)
		}
		if got := w.mustGet(b, "bff", obo(), w.user(nil)); got.Origin != broker.OriginShared || len(issued) != 1 {
			t.Errorf("by another replica: %v, %d assertions", got.Origin, len(issued))
		}
		if _, err := w.get(a, "bff", broker.Ask{Client: "obo-2", Audience: orders}, w.user(nil)); err == nil || err.Reason != apierror.ReasonNotEntitled {
			t.Errorf("the assertion itself: %v", err)
		}
	})
}

// second is the issuer of the second leg.
const second = "https://as.example.com"

// newLegs returns a world in which the client "obo" exchanges the assertions that the IdP
// issues to "obo-2" at another authorization server.
func newLegs(t *testing.T) *world {
	t.Helper()
	w := newWorldWith(t, func(c *devidp.Client) {
		if c.ID == "obo-2" {
			c.Exchange.Assertions, c.Audiences = true, []string{second}
		}
	})
	as, err := devidp.New(devidp.Config{Issuer: second, Lifetime: 100 * time.Second, Algorithm: "EdDSA", Clients: []devidp.Client{{
		ID: "obo", Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read", "write"}, Audiences: []string{orders, stock},
		Grant: idp.JWTBearer, Exchange: &devidp.Exchange{AssertionsOf: w.idp},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	w.towards = byHost{"idp.example.com": w.towards, "as.example.com": as.RoundTripper()}
	w.clients = append(w.clients, func(id string, cfg *idp.Config, client *broker.ClientConfig) {
		switch id {
		case "obo":
			cfg.TokenURL, cfg.Grant, client.Exchange.AssertionFrom = second+devidp.TokenPath, idp.JWTBearer, "obo-2"
		case "obo-2":
			cfg.Exchange.Assertions, cfg.Exchange.RequestedTokenType = true, idp.TypeIDJAG
			client.Audience, client.Exchange.ProvesByUse = second, true
			if w.legSecret == "" {
				w.legSecret = testkit.SecretFile(t, "right")
			}
			client.Secret = w.openSecret(w.legSecret)
		}
	})
	return w
}

// Two legs: the IdP of the user issues an assertion for the server of the API, which
// exchanges it. The assertion is neither kept nor handed out.
func TestGet_twoLegs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLegs(t)
		assertions := map[string]bool{}
		w.seeing(func(form url.Values) {
			if assertion := form.Get("assertion"); assertion != "" {
				assertions[assertion] = true
			}
		})
		a, b := w.add(), w.add()
		alice := w.user(nil)
		first := w.mustGet(a, "bff", obo(), alice)
		if w.text(first, "sub") != "alice" || w.text(first, "iss") != second || w.text(first, "aud") != orders || len(assertions) != 1 || assertions[first.Token.Value.Reveal()] {
			t.Errorf("sub %q of %q for %q, %d assertions", w.text(first, "sub"), w.text(first, "iss"), w.text(first, "aud"), len(assertions))
		}
		// An ID token is judged by the client of the first leg.
		idToken := w.userWith(map[string]any{"typ": "JWT"}, map[string]any{"sub": "bob", "aud": "obo-2", "scope": nil, "client_id": nil})
		if got, err := w.getAs(a, "bff", obo(), idp.Subject{Token: idToken, Type: idp.TypeIDToken}); err != nil || w.text(got, "sub") != "bob" {
			t.Errorf("an ID token: %v", err)
		}
		clear(assertions)
		if got := w.mustGet(b, "bff", obo(), alice); got.Origin != broker.OriginShared {
			t.Errorf("by another replica: %v", got.Origin)
		}
		if _, err := w.get(a, "bff", broker.Ask{Client: "obo-2", Audience: orders}, alice); err == nil || err.Reason != apierror.ReasonNotEntitled {
			t.Errorf("the assertion itself: %v", err)
		}
		synctest.Wait() // both replicas subscribe to events
		if err := a.Purge(t.Context(), policy.Self(), broker.Purge{Client: "obo-2", Request: "1"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := w.mustGet(b, "bff", obo(), alice); got.Origin != broker.OriginFetched || len(assertions) != 1 {
			t.Errorf("after a purge of the first leg: %v, %d assertions", got.Origin, len(assertions))
		}
		// A new secret of the first leg is proved by its next use.
		w.idp.SetSecrets("obo-2", redact.New("right"), redact.New("newer"))
		if err := os.WriteFile(w.legSecret, []byte("newer"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		w.mustGet(a, "bff", obo(), w.user(map[string]any{"sub": "zoe"}))
		synctest.Wait()
		w.idp.SetSecrets("obo-2", redact.New("newer"))
		w.mustGet(a, "bff", obo(), w.user(map[string]any{"sub": "yann"}))
		// A wrong secret of the first leg does not condemn that of the second.
		w.idp.SetSecrets("obo-2", redact.New("another"))
		for _, user := range []string{"carol", "dave"} {
			_, err := w.get(a, "bff", obo(), w.user(map[string]any{"sub": user}))
			if err == nil || err.Reason != apierror.ReasonIdPMisconfigured || !strings.Contains(err.Message, `"obo-2"`) {
				t.Errorf("with a wrong secret of the first leg: %v", err)
			}
		}
		for _, c := range a.LocalClients(time.Now()) {
			if c.Name == "obo" && c.State == broker.ClientRefused {
				t.Errorf("the client of the second leg counts as refused: %s", c.LastError)
			}
		}
	})
}

type byHost map[string]http.RoundTripper

func (h byHost) RoundTrip(r *http.Request) (*http.Response, error) { return h[r.URL.Host].RoundTrip(r) }

// The IdP gives the client no tokens of its own, so the next exchange proves a new secret.
func TestGet_provesTheSecretByUse(t *testing.T) {
	for name, right := range map[string]bool{"a right secret": true, "a wrong one": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorldWith(t, func(c *devidp.Client) {
					if c.Exchange != nil {
						c.Exchange.Only = true
					}
				})
				w.clients = append(w.clients, func(_ string, _ *idp.Config, client *broker.ClientConfig) { client.Exchange.ProvesByUse = true })
				b := w.add()
				w.mustGet(b, "bff", obo(), w.user(nil))
				if right {
					w.idp.SetSecrets("obo", redact.New("right"), redact.New("newer"))
				}
				before := w.fetches()
				if err := os.WriteFile(w.secrets, []byte("newer"), 0o600); err != nil {
					t.Fatal(err)
				}
				time.Sleep(30 * time.Second)
				if n := w.fetches() - before; n != 0 {
					t.Errorf("%d requests to prove the secret", n)
				}
				for _, user := range []string{"bob", "carol", "dave"} {
					w.mustGet(b, "bff", obo(), w.user(map[string]any{"sub": user}))
				}
				if right {
					w.idp.SetSecrets("obo", redact.New("newer"))
				}
				w.mustGet(b, "bff", obo(), w.user(map[string]any{"sub": "erin"}))
				most := map[bool]int{true: 4, false: 6}[right] // the refused try, and its control
				if n := w.fetches() - before; n > most {
					t.Errorf("%d requests, want at most %d", n, most)
				}
			})
		})
	}
}

// A rotation by an operator only stages the secret; the next exchange makes it current.
func TestRotate_isProvedByTheNextExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldWith(t, func(c *devidp.Client) {
			if c.Exchange != nil {
				c.Exchange.Only = true
			}
		})
		w.clients = append(w.clients, func(id string, _ *idp.Config, client *broker.ClientConfig) {
			if id == "obo" {
				client.Secret, client.Managed, client.Exchange.ProvesByUse = nil, true, true
			}
		})
		b := w.add()
		rotator := rotation.New(b, nil)
		rotate := func(request, secret string, compromised bool) error {
			_, err := rotator.Rotate(t.Context(), policy.Self(), rotation.NewSecret{
				Change: rotation.Change{Client: "obo", Request: request}, Secret: redact.New(secret), Compromised: compromised,
			})
			return err
		}
		if err := rotate("1", "right", false); err != nil || w.fetches() != 0 {
			t.Fatalf("%v, %d requests", err, w.fetches())
		}
		secrets := b.Secrets("obo")
		first := secrets.View().Pending
		if first == nil || secrets.View().Current != nil {
			t.Fatal("the secret is not staged")
		}
		w.mustGet(b, "bff", obo(), w.user(nil))
		synctest.Wait()
		if secrets.View().History.CurrentID() != first.ID {
			t.Error("the exchange did not make the secret current")
		}
		var refused *apierror.Error
		if err := rotate("2", "newer", true); !errors.As(err, &refused) || refused.Field != "compromised" {
			t.Errorf("a compromised secret: %v", err)
		}
		// A wrong secret is refused by its first exchange, which goes on with the current one.
		if err := rotate("3", "wrong", false); err != nil {
			t.Fatal(err)
		}
		w.mustGet(b, "bff", obo(), w.user(map[string]any{"sub": "bob"}))
		synctest.Wait()
		if secrets.View().History.CurrentID() != first.ID {
			t.Error("a wrong secret became current")
		}
	})
}
