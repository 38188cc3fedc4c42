package client_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/client/brokertest"
)

const (
	audience = "https://orders-api.example.com"
	other    = "https://other.example.com"
)

func TestTokenAndItsOptions(t *testing.T) {
	b := brokertest.New(t, brokertest.WithClients(brokertest.Client{Name: name, Audiences: []string{audience, other}}))
	c := b.Client()
	first, err := c.Token(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if first.AccessToken() == "" || first.Type() != "Bearer" || first.IsZero() || first.Authorization() != "Bearer "+first.AccessToken() ||
		first.Origin() != "fetched" || first.Degraded() || first.Extra("instance_url") != "" ||
		!first.RefreshAt().Before(first.ExpiresAt()) || time.Until(first.ExpiresAt()) < 59*time.Minute {
		t.Errorf("origin %s, expires %v, refresh %v", first.Origin(), first.ExpiresAt(), first.RefreshAt())
	}
	second, err := c.Token(t.Context(), name, client.WithRejected(first))
	if err != nil || second.AccessToken() == first.AccessToken() {
		t.Errorf("the rejected token was returned again (%v)", err)
	}
	for _, options := range [][]client.TokenOption{
		{client.WithAudience(other), client.WithScopes("read"), client.WithMinTTL(time.Minute)},
		{client.WithResources(other), client.WithScopes("read")},
	} {
		got, err := c.Token(t.Context(), name, options...)
		if err != nil || strings.Join(got.Scopes(), " ") != "read" {
			t.Fatalf("with options: %v", err)
		}
		claims, err := c.Verify(t.Context(), got.AccessToken(), client.RequireAudience(other))
		if err != nil || strings.Join(claims.Scopes, " ") != "read" {
			t.Errorf("with options: %v", err)
		}
	}
	_, err = c.Token(t.Context(), name, client.WithMinTTL(2*time.Hour))
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a minimum TTL beyond the lifetime: %v", err)
	}
}

func TestTokenDoesNotPrintItself(t *testing.T) {
	b := brokertest.New(t)
	c := b.Client()
	source := c.TokenSource(name)
	tok := mustToken(t, source)
	holder := struct {
		Exported   *client.Token
		unexported *client.Token
		value      client.Token
	}{tok, tok, *tok}
	var out strings.Builder
	for _, value := range []any{tok, *tok, holder, &holder, []*client.Token{tok}, c, source} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
			fmt.Fprintf(&out, verb+"\n", value)
		}
		slog.New(slog.NewJSONHandler(&out, nil)).Info("a token", "token", value)
		if data, err := json.Marshal(value); err == nil {
			out.Write(data)
		}
	}
	for _, value := range []any{source.PerRPCCredentials(), source.OAuth2(), source.HTTPClient(), c.Verifier()} {
		fmt.Fprintf(&out, "%v %+v %#v\n", value, value, value)
	}
	if text := tok.AccessToken(); strings.Contains(out.String(), text[:20]) || strings.Contains(out.String(), fmt.Sprintf("%x", text[:20])) {
		t.Errorf("the token was printed: %s", out.String())
	}
}

func TestZeroTokenIsUnusable(t *testing.T) {
	var none *client.Token
	for _, token := range []*client.Token{none, {}} {
		if token.AccessToken() != "" || token.String() != "[redacted]" || token.Origin() != "unknown" || token.Authorization() != "" {
			t.Error("a zero token has contents")
		}
		if !token.IsZero() || !token.ExpiresAt().IsZero() || !token.RefreshAt().IsZero() {
			t.Errorf("IsZero is %v, expires at %v, refresh at %v", token.IsZero(), token.ExpiresAt(), token.RefreshAt())
		}
	}
}

func TestVerify(t *testing.T) {
	b := brokertest.New(t)
	c := b.Client()
	token := b.Mint(brokertest.Claims{Subject: "alice", ClientID: "shop", Scopes: []string{"read", "write"}})
	claims, err := c.Verify(t.Context(), token, client.RequireAudience(audience, "another"), client.RequireScopes("read", "write"), client.RequireIssuer(brokertest.Issuer))
	if err != nil {
		t.Fatal(err)
	}
	if claims.Issuer != brokertest.Issuer || claims.Subject != "alice" || claims.ClientID != "shop" || claims.Audience[0] != audience || len(claims.Scopes) != 2 ||
		claims.TokenID == "" || claims.IssuedAt.IsZero() || !json.Valid(claims.JSON) || claims.ValidUntil.After(claims.ExpiresAt) {
		t.Errorf("claims = %+v", claims)
	}
	if !claims.HasScopes() || !claims.HasScopes("write", "read") || claims.HasScopes("read", "admin") {
		t.Error("HasScopes is wrong")
	}
	for reason, verify := range map[client.Reason]func() error{
		client.ReasonInsufficientScope: func() error { _, err := c.Verify(t.Context(), token, client.RequireScopes("admin")); return err },
		client.ReasonWrongAudience:     func() error { _, err := c.Verify(t.Context(), token, client.RequireAudience("x")); return err },
		client.ReasonUnknownIssuer:     func() error { _, err := c.Verify(t.Context(), token, client.RequireIssuer("x")); return err },
		client.ReasonMalformed:         func() error { _, err := c.Verify(t.Context(), "x"); return err },
		client.ReasonExpired: func() error {
			_, err := c.Verify(t.Context(), b.Mint(brokertest.Claims{Lifetime: -time.Hour}))
			return err
		},
	} {
		rejected, ok := errors.AsType[*client.RejectedError](verify())
		if !ok || rejected.Reason != reason || rejected.Message == "" {
			t.Errorf("%s: %+v", reason, rejected)
		}
	}
}

func TestUnreachableBrokerIsNoRejection(t *testing.T) {
	c, err := client.New(unusedAddress(t), client.WithPlaintext())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, err = c.Verify(t.Context(), "x")
	if _, rejected := errors.AsType[*client.RejectedError](err); rejected || status.Code(err) != codes.Unavailable {
		t.Errorf("error = %v", err)
	}
}

// unusedAddress returns an address without a listener.
func unusedAddress(t *testing.T) string {
	t.Helper()
	var network net.ListenConfig
	listener, err := network.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

// The server has no TLS, which the client requires by default.
func TestPlaintextNeedsAnOption(t *testing.T) {
	b := brokertest.New(t, brokertest.OnLoopback())
	secure, err := client.New(b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = secure.Close() }()
	if _, err := secure.Token(t.Context(), name); status.Code(err) != codes.Unavailable {
		t.Errorf("error = %v", err)
	}
}

func TestUnavailableCallIsRetried(t *testing.T) {
	b := brokertest.New(t)
	c := b.Client()
	b.FailNext(3, codes.Unavailable)
	if _, err := c.Token(t.Context(), name); err != nil || b.Calls().GetToken != 4 {
		t.Errorf("after %d calls: %v", b.Calls().GetToken, err)
	}
	b.FailNext(1, codes.Internal)
	if _, err := c.Token(t.Context(), name); status.Code(err) != codes.Internal || b.Calls().GetToken != 5 {
		t.Errorf("after %d calls: %v", b.Calls().GetToken, err)
	}
}

// The whole fleet knows that the IdP is unavailable: the broker advises clients
// not to retry at once.
func TestFailureOfTheIdPIsNotRetried(t *testing.T) {
	b := brokertest.New(t)
	c := b.Client()
	b.SetIdPDown(true)
	if _, err := c.Token(t.Context(), name); status.Code(err) != codes.Unavailable || b.Calls().GetToken != 1 {
		t.Errorf("after %d calls: %v", b.Calls().GetToken, err)
	}
}
