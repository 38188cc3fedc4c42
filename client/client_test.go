package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redact"
)

const (
	issuer   = "https://idp.example.com"
	audience = "https://orders.example.com"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a broker and returns a client of it.
func start(t *testing.T) (*client.Client, *devidp.Server) {
	t.Helper()
	idp, err := devidp.New(devidp.Config{Issuer: issuer, Clients: []devidp.Client{
		{ID: "abc", Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read", "write"}, Audiences: []string{audience, "https://other.example.com"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("right"), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := app.ParseConfig("test.yaml", fmt.Appendf(nil, `
listen: {grpc: {address: "127.0.0.1:0", caller: everybody}, ops: "off"}
callers: [{name: everybody, roles: [all]}]
roles: {all: {get: [{client: "*", audiences: ["*"], resources: ["*"], scopes: ["*"]}], verify: [{issuer: "*", audiences: ["*"]}], admin: [{actions: ["*"]}]}}
clients:
  orders: {issuer: %q, client_id: abc, secret: "file:%s", audience: %q, extras: [instance_url]}
issuers: [{issuer: %q, audiences: [%q]}]
`, issuer, file, audience, issuer, audience))
	if err != nil {
		t.Fatal(err)
	}
	broker, err := app.New(config, app.Options{Logger: slog.New(slog.DiscardHandler), Transport: idp.RoundTripper()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- broker.Run(ctx) }()
	c, err := client.New(broker.GRPCAddr(), client.WithPlaintext())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return c, idp
}

func TestTokenAndItsOptions(t *testing.T) {
	c, idp := start(t)
	first, err := c.Token(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	if first.AccessToken() == "" || first.Type() != "Bearer" || first.Source() != "fetched" || first.Degraded() ||
		!first.RefreshAt().Before(first.ExpiresAt()) || time.Until(first.ExpiresAt()) < 59*time.Minute {
		t.Errorf("source %s, expires %v, refresh %v", first.Source(), first.ExpiresAt(), first.RefreshAt())
	}
	second, err := c.Token(t.Context(), "orders", client.WithRejected(first))
	if err != nil || second.AccessToken() == first.AccessToken() {
		t.Errorf("the rejected token came back (%v)", err)
	}
	other, err := c.Token(t.Context(), "orders", client.WithAudience("https://other.example.com"),
		client.WithResources("https://other.example.com"), client.WithScopes("read"), client.WithMinTTL(time.Minute))
	if err != nil || strings.Join(other.Scopes(), " ") != "read" {
		t.Errorf("with options: %v", err)
	}
	last := idp.TokenRequests()[len(idp.TokenRequests())-1]
	if last.Audience != "https://other.example.com" || len(last.Resources) != 1 {
		t.Errorf("the IdP was asked %+v", last)
	}
	_, err = c.Token(t.Context(), "orders", client.WithMinTTL(2*time.Hour))
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("an endless wish: %v", err)
	}
}

func TestTokenDoesNotPrintItself(t *testing.T) {
	c, _ := start(t)
	tok, err := c.Token(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	holder := struct {
		Exported   *client.Token
		unexported *client.Token
		value      client.Token
	}{tok, tok, *tok}
	var out strings.Builder
	for _, value := range []any{tok, *tok, holder, &holder, []*client.Token{tok}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
			fmt.Fprintf(&out, verb+"\n", value)
		}
		slog.New(slog.NewJSONHandler(&out, nil)).Info("a token", "token", value)
		if data, err := json.Marshal(value); err == nil {
			out.Write(data)
		}
	}
	if text := tok.AccessToken(); strings.Contains(out.String(), text[:20]) || strings.Contains(out.String(), fmt.Sprintf("%x", text[:20])) {
		t.Errorf("the token was printed: %s", out.String())
	}
}

func TestVerify(t *testing.T) {
	c, idp := start(t)
	tok, err := c.Token(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	claims, err := c.Verify(t.Context(), tok.AccessToken(), client.Audience(audience, "another"), client.Scopes("read", "write"), client.Issuer(issuer))
	if err != nil {
		t.Fatal(err)
	}
	if claims.Issuer != issuer || claims.Subject != "abc" || claims.ClientID != "abc" || claims.Audience[0] != audience || len(claims.Scopes) != 2 ||
		claims.TokenID == "" || claims.IssuedAt.IsZero() || !json.Valid(claims.JSON) || claims.ValidUntil.After(claims.ExpiresAt) {
		t.Errorf("claims = %+v", claims)
	}
	for reason, verify := range map[string]func() error{
		"insufficient_scope": func() error { _, err := c.Verify(t.Context(), tok.AccessToken(), client.Scopes("admin")); return err },
		"wrong_audience":     func() error { _, err := c.Verify(t.Context(), tok.AccessToken(), client.Audience("x")); return err },
		"unknown_issuer":     func() error { _, err := c.Verify(t.Context(), tok.AccessToken(), client.Issuer("x")); return err },
		"malformed":          func() error { _, err := c.Verify(t.Context(), "x"); return err },
		"expired": func() error {
			old := time.Now().Add(-time.Hour)
			_, err := c.Verify(t.Context(), idp.Mint(map[string]any{"iss": issuer, "sub": "x", "aud": audience, "client_id": "x",
				"iat": old.Unix(), "exp": old.Add(time.Minute).Unix(), "jti": "1"}).Reveal())
			return err
		},
	} {
		rejected, ok := errors.AsType[*client.RejectedError](verify())
		if !ok || rejected.Reason != reason || rejected.Message == "" {
			t.Errorf("%s: %+v", reason, rejected)
		}
	}
}

func TestABrokerThatIsNotThereIsNotARejection(t *testing.T) {
	var network net.ListenConfig
	listener, err := network.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close()
	c, err := client.New(listener.Addr().String(), client.WithPlaintext())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, err = c.Verify(t.Context(), "x")
	if _, rejected := errors.AsType[*client.RejectedError](err); rejected || status.Code(err) != codes.Unavailable {
		t.Errorf("error = %v", err)
	}
}

// The server of the test speaks no TLS, and the client by default nothing else.
func TestPlaintextIsOnlyByChoice(t *testing.T) {
	c, _ := start(t)
	secure, err := client.New(c.Target())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = secure.Close() }()
	if _, err := secure.Token(t.Context(), "orders"); status.Code(err) != codes.Unavailable {
		t.Errorf("error = %v", err)
	}
}
