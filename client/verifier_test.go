package client_test

import (
	"errors"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/client/brokertest"
)

func reasonOf(err error) client.Reason {
	rejected, ok := errors.AsType[*client.RejectedError](err)
	if !ok {
		return ""
	}
	return rejected.Reason
}

func TestVerifierChecksScopesLocally(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t)
		v := b.Client().Verifier()
		token := b.Mint(brokertest.Claims{Subject: "alice", Scopes: []string{"read", "write"}})
		first, err := v.Verify(t.Context(), token)
		if err != nil || first.Subject != "alice" {
			t.Fatal(err)
		}
		for range 10 {
			again, err := v.Verify(t.Context(), token, client.RequireScopes("read"))
			if err != nil || again != first {
				t.Errorf("not from memory: %v", err)
			}
			if _, err := v.Verify(t.Context(), token, client.RequireScopes("read", "admin")); reasonOf(err) != client.ReasonInsufficientScope {
				t.Errorf("error = %v", err)
			}
		}
		if n := b.Calls().VerifyToken; n != 1 {
			t.Errorf("%d calls", n)
		}
	})
}

// A result is cached for its requirements only: another audience, issuer or verifier does
// not get it.
func TestVerifierCacheKeepsRequestsApart(t *testing.T) {
	b := brokertest.New(t, brokertest.WithClients(brokertest.Client{Name: name, Audiences: []string{audience, other}}))
	c := b.Client()
	v := c.Verifier(client.RequireAudience(audience), client.RequireScopes("read"))
	token := b.Mint(brokertest.Claims{Audience: []string{audience}, Scopes: []string{"read"}})
	for range 2 {
		if _, err := v.Verify(t.Context(), token); err != nil {
			t.Error(err)
		}
		if _, err := v.Verify(t.Context(), token, client.RequireAudience(other)); reasonOf(err) != client.ReasonWrongAudience {
			t.Errorf("for another audience: %v", err)
		}
		if _, err := v.Verify(t.Context(), token, client.RequireAudience(other, audience)); err != nil {
			t.Errorf("for either audience: %v", err)
		}
		if _, err := v.Verify(t.Context(), token, client.RequireIssuer("https://else.example.com")); reasonOf(err) != client.ReasonUnknownIssuer {
			t.Errorf("of another issuer: %v", err)
		}
	}
	for _, strict := range []*client.Verifier{c.Verifier(client.RequireScopes("admin")), c.Verifier(client.RequireAudience(other)), c.Verifier(client.RequireIssuer("https://else.example.com"))} {
		if _, err := strict.Verify(t.Context(), token); reasonOf(err) == "" {
			t.Errorf("a strict verifier: %v", err)
		}
	}
}

// A cached token stays valid for as long as the broker allowed, also without a broker.
// Then it cannot be verified.
func TestVerifierCacheOutlivesTheBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t)
		c := b.Client()
		v := c.Verifier()
		token, uncached := b.Mint(brokertest.Claims{}), b.Mint(brokertest.Claims{})
		claims, err := v.Verify(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		b.Kill()
		if _, err := v.Verify(t.Context(), uncached); status.Code(err) != codes.Unavailable || reasonOf(err) != "" {
			t.Errorf("a token that is not cached: %v", err)
		}
		for time.Until(claims.ValidUntil) > time.Second {
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Fatalf("%v before the end: %v", time.Until(claims.ValidUntil), err)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(time.Second)
		if _, err := v.Verify(t.Context(), token); status.Code(err) != codes.Unavailable {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestRevocationCountsWhenTheEntryExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t)
		c := b.Client()
		token := b.Mint(brokertest.Claims{Lifetime: 10 * time.Hour})
		shortLived, longLived, uncached := c.Verifier(client.WithCacheMaxAge(20*time.Second)), c.Verifier(), c.Verifier(client.WithCacheSize(0))
		var claims *client.Claims
		for _, v := range []*client.Verifier{shortLived, longLived, uncached} {
			var err error
			if claims, err = v.Verify(t.Context(), token); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		b.Revoke(token)
		for _, step := range []struct {
			v    *client.Verifier
			late time.Duration
		}{{uncached, 0}, {shortLived, 20 * time.Second}, {longLived, time.Until(claims.ValidUntil)}} {
			if before := time.Until(start.Add(step.late - time.Second)); before > 0 {
				time.Sleep(before)
				if _, err := step.v.Verify(t.Context(), token); err != nil {
					t.Errorf("%v: after %v: %v", step.late, time.Since(start), err)
				}
			}
			time.Sleep(time.Until(start.Add(step.late)))
			if _, err := step.v.Verify(t.Context(), token); reasonOf(err) != client.ReasonRevoked {
				t.Errorf("%v: after %v: %v", step.late, time.Since(start), err)
			}
		}
		if late := claims.ValidUntil.Sub(start); late < 30*time.Second || late > 5*time.Minute {
			t.Errorf("the broker's result is valid for %v", late)
		}
	})
}

func TestVerifierSendsNoInvalidToken(t *testing.T) {
	b := brokertest.New(t)
	v := b.Client().Verifier()
	for _, text := range []string{"", " ", "a b", "a\n", "ü", "=", "a=b", strings.Repeat("a", 64<<10+1), "\xff", "a,b"} {
		if _, err := v.Verify(t.Context(), text); reasonOf(err) != client.ReasonMalformed {
			t.Errorf("%.10q: %v", text, err)
		}
	}
	if n := b.Calls().VerifyToken; n != 0 {
		t.Errorf("%d calls", n)
	}
	if _, err := v.Verify(t.Context(), "opaque-but-no-token=="); reasonOf(err) != client.ReasonMalformed || b.Calls().VerifyToken != 1 {
		t.Errorf("%v", err)
	}
}

// Invalid tokens are not cached: an attacker could fill the memory with them.
func TestVerifierCachesNoBadToken(t *testing.T) {
	b := brokertest.New(t)
	v := b.Client().Verifier()
	token := b.Mint(brokertest.Claims{Lifetime: -time.Hour})
	for range 3 {
		if _, err := v.Verify(t.Context(), token); reasonOf(err) != client.ReasonExpired {
			t.Errorf("error = %v", err)
		}
	}
	if n := b.Calls().VerifyToken; n != 3 {
		t.Errorf("%d calls", n)
	}
}

// The cache is bounded, and entries in use stay in it.
func TestVerifierCacheIsBounded(t *testing.T) {
	b := brokertest.New(t)
	v := b.Client().Verifier(client.WithCacheSize(100))
	frequent := b.Mint(brokertest.Claims{})
	for range 500 {
		for _, token := range []string{frequent, b.Mint(brokertest.Claims{})} {
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Fatal(err)
			}
		}
		if n := client.CachedEntries(v); n > 100 {
			t.Fatalf("%d entries are cached", n)
		}
	}
	if n := b.Calls().VerifyToken; n != 501 {
		t.Errorf("%d calls for 501 tokens, one of them in constant use", n)
	}
	if n := client.CachedEntries(v); n < 50 {
		t.Errorf("%d entries are cached", n)
	}
	runtime.KeepAlive(v)
}
