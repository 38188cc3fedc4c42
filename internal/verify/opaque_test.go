package verify_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/verify"
	"github.com/cezzis/tokenbroker/internal/verify/jwks"
)

// says is an introspection endpoint as a function of the token.
type says func(ctx context.Context, token string) (active bool, members []byte, err error)

func (s says) Introspect(ctx context.Context, token redact.String) (bool, []byte, error) {
	return s(ctx, token.Reveal())
}

// members returns the response for a valid opaque token, with some members replaced; a nil
// member is removed.
func members(others ...jsonObject) []byte {
	return josetest.Marshal(claims(append([]jsonObject{{"active": true, "token_type": "Bearer"}}, others...)...))
}

func saying(answer func() []byte) says {
	return func(context.Context, string) (bool, []byte, error) { return true, answer(), nil }
}

// introspecting returns a Verifier with introspection at issuer A and not at issuer B.
func introspecting(t testing.TB, endpoint says, change ...func(*verify.IssuerConfig)) *verify.Verifier {
	t.Helper()
	a := configOf(issuerA)
	a.Introspection = &verify.Introspection{Endpoint: endpoint}
	for _, c := range change {
		c(&a)
	}
	return newVerifier(t, serve(nil), a, configOf(issuerB))
}

// opaqueWorld is an IdP that issues opaque tokens, and a Verifier that introspects them with
// a real client.
type opaqueWorld struct {
	v        *verify.Verifier
	idp      *devidp.Server
	password atomic.Value // of the broker's client
	log      bytes.Buffer
}

func newOpaqueWorld(t *testing.T, change ...func(*verify.IssuerConfig)) *opaqueWorld {
	t.Helper()
	server, err := devidp.New(devidp.Config{Issuer: issuerA, Algorithm: "EdDSA", Clients: []devidp.Client{
		{ID: "broker", Secrets: []redact.String{redact.New("canary-one")}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	w := &opaqueWorld{idp: server}
	w.password.Store("canary-one")
	web := discovery.NewHTTPClient(server.RoundTripper())
	metadata := discovery.New(discovery.Config{Issuer: issuerA, HTTP: web})
	client, err := idp.New(idp.Config{Issuer: metadata, ClientID: "broker", HTTP: web})
	if err != nil {
		t.Fatal(err)
	}
	a := verify.IssuerConfig{Issuer: issuerA, Keys: jwks.Config{Discovery: metadata}, Audiences: []string{audience}}
	a.Introspection = &verify.Introspection{Endpoint: says(func(ctx context.Context, token string) (bool, []byte, error) {
		version := secret.Version{ID: "v", Value: redact.New(w.password.Load().(string))}
		result, err := client.Introspect(ctx, version, redact.New(token))
		return result.Active, result.Members, err
	})}
	for _, c := range change {
		c(&a)
	}
	w.v, err = verify.New(verify.Config{Issuers: []verify.IssuerConfig{a}, HTTP: web, Logger: slog.New(slog.NewTextHandler(&w.log, nil))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// mint issues an opaque token with this lifetime.
func (w *opaqueWorld) mint(life time.Duration) redact.String {
	c := claims(jsonObject{"token_type": "Bearer", "exp": time.Now().Add(life).Unix()})
	return w.idp.MintOpaque(c)
}

func (w *opaqueWorld) outcome(t *testing.T, token redact.String) string {
	t.Helper()
	return outcome(t, w.v, token.Reveal(), verify.Request{})
}

func (w *opaqueWorld) requests() int { return w.idp.Requests(devidp.IntrospectionPath) }

// I13: one request for each token and cached result, for any number of callers, and none
// after the token's expiry.
func TestOpaque_resultsAreCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newOpaqueWorld(t)
		token := w.mint(time.Hour)
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				if got := w.outcome(t, token); got != "active" {
					t.Error(got)
				}
			})
		}
		all.Wait()
		if n := w.requests(); n != 1 {
			t.Errorf("100 callers at once: %d questions", n)
		}
		for second := range 120 {
			if got := w.outcome(t, token); got != "active" {
				t.Fatalf("after %d s: %s", second, got)
			}
			time.Sleep(time.Second)
		}
		if n := w.requests(); n != 4 {
			t.Errorf("%d questions in 2 min with an answer used for 30 s", n)
		}
		if other := w.mint(time.Hour); w.outcome(t, other) != "active" || w.requests() != 5 {
			t.Errorf("another token shares the answer: %d questions", w.requests())
		}
	})
}

// I13: a revocation at the issuer is noticed when the cached result expires.
func TestOpaque_revocation(t *testing.T) {
	for cache, most := range map[time.Duration]time.Duration{0: 30 * time.Second, 2 * time.Second: 2 * time.Second, 5 * time.Minute: 5 * time.Minute, -1: 0} {
		synctest.Test(t, func(t *testing.T) {
			w := newOpaqueWorld(t, func(c *verify.IssuerConfig) { c.Introspection.Cache = cache })
			token := w.mint(time.Hour)
			result, err := w.v.Verify(t.Context(), token, verify.Request{})
			if got := word(t, result, err); got != "active" || time.Until(result.ValidUntil) != most {
				t.Fatalf("%s, valid for %v, want %v", got, time.Until(result.ValidUntil), most)
			}
			w.idp.Revoke(token)
			if most > 0 {
				time.Sleep(most - time.Millisecond)
				if got := w.outcome(t, token); got != "active" {
					t.Errorf("within the answer's time: %s", got)
				}
				time.Sleep(time.Millisecond)
			}
			if got := w.outcome(t, token); got != "inactive" {
				t.Errorf("cache %v: after the answer's time: %s", cache, got)
			}
		})
	}
}

// I13, D13: a result is not used after the token's expiry, even if the issuer would still
// report the token as active.
func TestOpaqueTokensExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		questions := 0
		exp := time.Now().Add(10 * time.Second)
		v := introspecting(t, says(func(context.Context, string) (bool, []byte, error) {
			questions++
			return true, members(jsonObject{"exp": exp.Unix()}), nil
		}), func(c *verify.IssuerConfig) { c.Leeway = -1 })
		result, _ := v.Verify(t.Context(), redact.New("opaque"), verify.Request{})
		if result.Facts == nil || !result.ValidUntil.Equal(exp) {
			t.Fatalf("valid until %v, want %v", result.ValidUntil, exp)
		}
		time.Sleep(10*time.Second - time.Millisecond)
		if got := outcome(t, v, "opaque", verify.Request{}); got != "active" || questions != 1 {
			t.Errorf("before the expiry: %s, %d questions", got, questions)
		}
		time.Sleep(time.Millisecond)
		if got := outcome(t, v, "opaque", verify.Request{}); got != "expired" || questions != 2 {
			t.Errorf("at the expiry: %s, %d questions", got, questions)
		}
	})
}

func TestOpaque_defaultLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newOpaqueWorld(t, func(c *verify.IssuerConfig) { c.Introspection.DefaultLifetime = 10 * time.Second })
		c := claims(jsonObject{"exp": nil, "token_type": "Bearer"})
		token := w.idp.MintOpaque(c)
		for second := range 25 {
			result, err := w.v.Verify(t.Context(), token, verify.Request{})
			if word(t, result, err) != "active" || time.Until(result.ValidUntil) > 10*time.Second {
				t.Fatalf("after %d s: %+v, %v", second, result, err)
			}
			time.Sleep(time.Second)
		}
		if n := w.requests(); n != 3 {
			t.Errorf("%d questions in 25 s", n)
		}
		// The exp of a response takes precedence.
		exp := time.Now().Unix() + 5
		result, err := w.v.Verify(t.Context(), w.idp.MintOpaque(claims(jsonObject{"exp": exp, "token_type": "Bearer"})), verify.Request{})
		if word(t, result, err) != "active" || result.Facts.ExpiresAt.Unix() != exp {
			t.Errorf("a token that expires in 5 s: %+v, %v", result, err)
		}
	})
}

func TestOpaque_inactiveResultsAreCached(t *testing.T) {
	for cache, most := range map[time.Duration]time.Duration{0: 5 * time.Second, 2 * time.Second: 2 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			w := newOpaqueWorld(t, func(c *verify.IssuerConfig) { c.Introspection.Cache = cache })
			token := redact.New("made-up")
			for range 50 {
				if got := w.outcome(t, token); got != "inactive" {
					t.Fatal(got)
				}
				time.Sleep(most / 50)
			}
			if n := w.requests(); n != 1 {
				t.Errorf("%d questions within %v", n, most)
			}
			if w.outcome(t, token); w.requests() != 2 {
				t.Errorf("%d questions after %v", w.requests(), most)
			}
		})
	}
}

// D16: if the first caller gives up, the others still get the result.
func TestOpaque_canceledCallerCancelsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newOpaqueWorld(t)
		w.idp.SetIntrospection(func(http.ResponseWriter, *http.Request) bool { time.Sleep(2 * time.Second); return false })
		token := w.mint(time.Hour)
		ctx, leave := context.WithCancel(t.Context())
		canceled := make(chan error)
		go func() {
			_, err := w.v.Verify(ctx, token, verify.Request{})
			canceled <- err
		}()
		synctest.Wait()
		var others sync.WaitGroup
		for range 5 {
			others.Go(func() {
				if got := w.outcome(t, token); got != "active" {
					t.Error(got)
				}
			})
		}
		time.Sleep(time.Second)
		leave()
		if err := <-canceled; !errors.Is(err, context.Canceled) {
			t.Errorf("the one who left: %v", err)
		}
		others.Wait()
		if n := w.requests(); n != 1 {
			t.Errorf("%d questions", n)
		}
	})
}

// D11, I9: each request is judged separately.
func TestOpaque_resultServesEachPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newOpaqueWorld(t)
		token := w.mint(time.Hour)
		policies := map[string]verify.Request{
			"active": {Scopes: []string{"read"}}, "insufficient_scope": {Scopes: []string{"admin"}}, "wrong_audience": {Audience: []string{"https://other.example"}}, "unknown_issuer": {Issuer: issuerB},
		}
		for want, policy := range policies {
			first := w.mint(time.Hour)
			for _, when := range []string{"the first question about a token", "from the cache"} {
				if got := outcome(t, w.v, first.Reveal(), policy); got != want {
					t.Errorf("%s: %s, want %s", when, got, want)
				}
			}
		}
		before := w.requests()
		var all sync.WaitGroup
		for range 20 {
			for want, policy := range policies {
				all.Go(func() {
					if got := outcome(t, w.v, token.Reveal(), policy); got != want {
						t.Errorf("%s, want %s", got, want)
					}
				})
			}
		}
		all.Wait()
		first, _ := w.v.Verify(t.Context(), token, verify.Request{})
		if again, _ := w.v.Verify(t.Context(), token, verify.Request{}); again.Facts == nil || again.Facts != first.Facts {
			t.Errorf("two results have facts of their own: %p and %p", first.Facts, again.Facts)
		}
		checkNoSpareRoom(t, first.Facts)
		if n := w.requests() - before; n != 1 {
			t.Errorf("%d questions", n)
		}
	})
}

func TestOpaque_rotatedSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newOpaqueWorld(t)
		if got := w.outcome(t, w.mint(time.Hour)); got != "active" {
			t.Fatal(got)
		}
		w.idp.SetSecrets("broker", redact.New("canary-two"))
		w.password.Store("canary-two")
		if got := w.outcome(t, w.mint(time.Hour)); got != "active" {
			t.Errorf("after a rotation: %s", got)
		}
	})
}
