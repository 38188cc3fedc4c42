package brokertest_test

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/client/brokertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBrokerInASynctestBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t)
		orders := b.Client().TokenSource("orders-api")
		first, err := orders.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		second, err := orders.Token(t.Context())
		if err != nil || second.AccessToken() == first.AccessToken() {
			t.Errorf("an hour later: the same token, or %v", err)
		}
		if n := b.IdPRequests(); n != 2 {
			t.Errorf("%d requests at the identity provider", n)
		}
	})
}

func TestConfiguredClients(t *testing.T) {
	b := brokertest.New(t, brokertest.WithLifetime(10*time.Minute), brokertest.WithClients(
		brokertest.Client{Name: "plain"},
		brokertest.Client{Name: "full", Audiences: []string{"https://a.example.com", "https://b.example.com"}, Scopes: []string{"x"}},
	))
	c := b.Client()
	for name, want := range map[string]struct{ audience, scope string }{
		"plain": {"https://plain.example.com", "read"}, "full": {"https://a.example.com", "x"},
	} {
		token, err := c.Token(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		claims, err := c.Verify(t.Context(), token.AccessToken(), client.RequireAudience(want.audience), client.RequireScopes(want.scope))
		if err != nil || claims.Subject != name || claims.ExpiresAt.Sub(claims.IssuedAt) != 10*time.Minute {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.Token(t.Context(), "full", client.WithAudience("https://b.example.com")); err != nil {
		t.Error(err)
	}
	if _, err := c.Token(t.Context(), "nobody"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("error = %v", err)
	}
}

func TestIdPFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t)
		c := b.Client()
		b.FailIdP(1, 401, "invalid_client")
		if _, err := c.Token(t.Context(), "orders-api"); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("refused: %v", err)
		}
		time.Sleep(time.Hour)
		b.SetIdPDown(true)
		if _, err := c.Token(t.Context(), "orders-api"); status.Code(err) != codes.Unavailable {
			t.Errorf("down: %v", err)
		}
		b.SetIdPDown(false)
		b.SetIdPDelay(3 * time.Second)
		time.Sleep(time.Hour)
		start := time.Now()
		if _, err := c.Token(t.Context(), "orders-api"); err != nil || time.Since(start) != 3*time.Second {
			t.Errorf("slow: after %v: %v", time.Since(start), err)
		}
		b.SetToken("orders-api", "fixed")
		b.SetIdPDelay(0)
		b.Purge("orders-api")
		if token, err := c.Token(t.Context(), "orders-api"); err != nil || token.AccessToken() != "fixed" {
			t.Errorf("fixed: %v", err)
		}
		b.SetToken("orders-api", "")
		b.SetLifetime(5 * time.Minute)
		b.Purge("orders-api")
		if token, err := c.Token(t.Context(), "orders-api"); err != nil || token.AccessToken() == "fixed" || time.Until(token.ExpiresAt()) > 5*time.Minute {
			t.Errorf("minted again: %v", err)
		}
	})
}

func TestBrokerFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t)
		c := b.Client()
		b.SetDelay(2 * time.Second)
		start := time.Now()
		if _, err := c.Token(t.Context(), "orders-api"); err != nil || time.Since(start) != 2*time.Second {
			t.Errorf("slow: after %v: %v", time.Since(start), err)
		}
		b.SetDelay(0)
		for name, end := range map[string]func(){"stopped": b.Stop, "killed": b.Kill} {
			end()
			end()
			if _, err := c.Token(t.Context(), "orders-api"); status.Code(err) != codes.Unavailable {
				t.Errorf("%s: %v", name, err)
			}
			b.Start()
			b.Start()
			time.Sleep(10 * time.Second)
			if _, err := c.Token(t.Context(), "orders-api"); err != nil {
				t.Errorf("%s and started: %v", name, err)
			}
		}
		// Each restart lost the token.
		if calls := b.Calls(); calls.GetToken != 3 || b.IdPRequests() != 3 {
			t.Errorf("%+v, %d", calls, b.IdPRequests())
		}
	})
}

func TestKeysAndRevocations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t)
		c := b.Client()
		old := b.Mint(brokertest.Claims{Lifetime: 10 * time.Hour})
		if _, err := c.Verify(t.Context(), old); err != nil {
			t.Error(err)
		}
		b.Revoke(old)
		if _, err := c.Verify(t.Context(), old); err == nil {
			t.Error("a revoked token is accepted")
		}
		old = b.Mint(brokertest.Claims{Lifetime: 10 * time.Hour, More: map[string]any{"tenant": "a"}})
		b.RotateKeys(false)
		time.Sleep(time.Hour)
		if _, err := c.Verify(t.Context(), b.Mint(brokertest.Claims{})); err != nil {
			t.Errorf("of the new key: %v", err)
		}
		if _, err := c.Verify(t.Context(), old); err == nil {
			t.Error("a token of a withdrawn key is accepted")
		}
	})
}

func TestBrokerOnLoopback(t *testing.T) {
	b := brokertest.New(t, brokertest.OnLoopback())
	t.Setenv("TOKENBROKER_ADDR", b.Addr())
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	c, err := client.FromEnv()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Token(t.Context(), "orders-api"); err != nil {
		t.Error(err)
	}
	addr := b.Addr()
	b.Kill()
	b.Start()
	if b.Addr() != addr {
		t.Errorf("the address changed from %s to %s", addr, b.Addr())
	}
	if _, err := b.Client().Token(t.Context(), "orders-api"); err != nil {
		t.Error(err)
	}
}
