// Package apitest sets up a broker for the tests of its APIs, with an IdP and callers.
package apitest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/server"
	"github.com/cezzis/tokenbroker/internal/testkit"
	"github.com/cezzis/tokenbroker/internal/verify"
	"github.com/cezzis/tokenbroker/internal/verify/jwks"
)

// The issuers, the audience and the secret of the IdP.
const (
	Issuer   = "https://idp.example.com"
	Audience = "https://orders.example.com"
	// OpaqueA and OpaqueB are issuers of opaque tokens, in a fixture of NewOpaque: each
	// reports the token of OpaqueToken as its own, with the scope read.
	OpaqueA = "https://a.example.com"
	OpaqueB = "https://b.example.com"
	// SecretCanary is the secret of client "orders".
	SecretCanary = "canary-secret-5d1f"
)

// The callers: Gate may have tokens verified, for Audience; Shop presents JWTs of that
// subject, and may get tokens of client orders and verify; Idle has no permissions.
const (
	Gate = "gate"
	Shop = "shop"
	Idle = "idle"
)

// Fixture is a broker with its IdP and its log.
type Fixture struct {
	IdP    *devidp.Server
	Broker *broker.Broker
	// Setup is that of Broker.
	Setup  broker.Setup
	Logger *slog.Logger
	Log    *testkit.Log
	// Limits are the limits of the servers.
	Limits caller.Limits
	// OpaqueIssuer is the issuer of opaque tokens on gRPC listeners. Empty: not set.
	OpaqueIssuer string
	// Audit is the audit log of the servers, for rejected callers. Nil: no log.
	Audit *audit.Log

	minted atomic.Int64
}

// New makes a Fixture that ends with the test. The IdP is prepared before its first
// request.
func New(t testing.TB, prepare ...func(*devidp.Server)) *Fixture {
	t.Helper()
	return build(t, callers(), nil, prepare)
}

// NewFor is New with the callers of a policy in place of Gate, Shop and Idle.
func NewFor(t testing.TB, who *policy.Policy, prepare ...func(*devidp.Server)) *Fixture {
	t.Helper()
	return build(t, who, nil, prepare)
}

// NewOpaque is New with the further issuers OpaqueA and OpaqueB.
func NewOpaque(t testing.TB) *Fixture {
	t.Helper()
	var issuers []verify.IssuerConfig
	for _, issuer := range []string{OpaqueA, OpaqueB} {
		issuers = append(issuers, verify.IssuerConfig{
			Issuer: issuer, Keys: jwks.Config{URL: issuer}, Audiences: []string{Audience}, Introspection: &verify.Introspection{Endpoint: opaqueIssuer(issuer)},
		})
	}
	return build(t, callers(), issuers, nil)
}

// OnBehalf is the client of a fixture of NewExchanging that exchanges tokens for BFF. Shop
// has an exchange grant for it.
const (
	OnBehalf = "orders-for-user"
	BFF      = "https://bff.example.com"
)

// Egress is a caller of NewExchanging that may only have tokens of client orders. The caller
// Gate, a gateway, may have them too, and exchange tokens with the scope read that it
// verifies.
const Egress = "egress"

// NewExchanging is New with the client OnBehalf.
func NewExchanging(t testing.TB) *Fixture {
	t.Helper()
	f := New(t)
	http := discovery.NewHTTPClient(f.IdP.RoundTripper())
	atIdP, err := idp.New(idp.Config{TokenURL: Issuer + devidp.TokenPath, ClientID: "obo", HTTP: http, Grant: idp.TokenExchange, Exchange: &idp.Exchange{}})
	must(t, err)
	f.Setup.Clients = append(f.Setup.Clients, broker.ClientConfig{Name: OnBehalf, IdP: atIdP, Secret: secretSource(t), Audience: Audience, Scopes: []string{"read"}})
	exchanges := func(scopes ...string) policy.Role {
		from := policy.From{Issuers: []string{Issuer}, Audiences: []string{BFF}, Scopes: scopes}
		return policy.Role{Exchange: []policy.ExchangeGrant{{Client: OnBehalf, From: from}}}
	}
	f.Setup.Policy = policy.New(policy.Config{
		Callers: []policy.CallerConfig{
			{Name: Shop, Match: policy.Match{Issuer: Issuer, Subject: Shop}, Roles: []string{"bff"}},
			{Name: Gate, Roles: []string{"gateway", "orders", "readers"}},
			{Name: Egress, Roles: []string{"orders"}},
		},
		Roles: map[string]policy.Role{
			"bff": exchanges(), "readers": exchanges("read"), "orders": {Get: []policy.GetGrant{{Client: "orders"}}},
			"gateway": {Verify: []policy.VerifyGrant{{Issuer: Issuer, Audiences: []string{Audience, BFF}}}},
		},
		Clients: map[string]policy.Defaults{
			OnBehalf: {Audience: Audience, Scopes: []string{"read"}, Exchanges: true}, "orders": {Audience: Audience, Scopes: []string{"read", "write"}},
		},
		Issuers: map[string][]string{Issuer: {Audience}},
	})
	must(t, f.Broker.Apply(f.Setup))
	return f
}

// opaqueIssuer introspects opaque tokens, as the issuer of its own name.
type opaqueIssuer string

// Introspect is the only method that package verify needs.
func (o opaqueIssuer) Introspect(_ context.Context, token redact.String) (active bool, members []byte, err error) {
	members, err = json.Marshal(map[string]any{
		"client_id": "client", "aud": Audience, "scope": "read", "token_type": "Bearer", "exp": time.Now().Add(time.Hour).Unix(),
	})
	return token.Reveal() == OpaqueToken(string(o)), members, err
}

// OpaqueToken is an opaque token of an issuer. It was issued to a client, and has no sub.
func OpaqueToken(issuer string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(issuer + " opaque"))
}

func build(t testing.TB, who *policy.Policy, others []verify.IssuerConfig, prepare []func(*devidp.Server)) *Fixture {
	t.Helper()
	f := &Fixture{Log: &testkit.Log{}}
	f.Logger = slog.New(slog.NewJSONHandler(f.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	f.IdP, err = devidp.New(devidp.Config{Issuer: Issuer, Clients: []devidp.Client{
		{ID: "abc", Secrets: []redact.String{redact.New(SecretCanary)}, Scopes: []string{"read", "write"}, Audiences: []string{Audience, "https://other.example.com"}},
		{ID: "obo", Secrets: []redact.String{redact.New(SecretCanary)}, Scopes: []string{"read"}, Audiences: []string{Audience}, Exchange: &devidp.Exchange{SubjectAudiences: []string{BFF}}},
	}})
	must(t, err)
	for _, change := range prepare {
		change(f.IdP)
	}
	client := discovery.NewHTTPClient(f.IdP.RoundTripper())
	known := discovery.New(discovery.Config{Issuer: Issuer, HTTP: client})
	orders, err := idp.New(idp.Config{Issuer: known, ClientID: "abc", HTTP: client})
	must(t, err)
	verifier, err := verify.New(verify.Config{HTTP: client, Logger: f.Logger, CacheBytes: 1 << 20, Issuers: append([]verify.IssuerConfig{
		{
			Issuer: Issuer, Keys: jwks.Config{Discovery: known}, Audiences: []string{Audience},
			// Neither helps a JWT of a caller.
			MissingSubject: true, MissingAudience: verify.MissingAudience{Value: caller.DefaultAudience},
		},
	}, others...)}, nil)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); verifier.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	f.Setup = broker.Setup{
		Clients:  []broker.ClientConfig{{Name: "orders", IdP: orders, Secret: secretSource(t), Audience: Audience, Scopes: []string{"read", "write"}}},
		Verifier: verifier,
		Policy:   who,
	}
	f.Broker, err = broker.New(broker.Config{Setup: f.Setup, Logger: f.Logger})
	must(t, err)
	t.Cleanup(f.Broker.Close)
	return f
}

func secretSource(t testing.TB) *secret.Source {
	t.Helper()
	ref, err := secret.ParseRef("file:" + testkit.SecretFile(t, SecretCanary))
	must(t, err)
	source, err := secret.Open(ref)
	must(t, err)
	return source
}

func callers() *policy.Policy {
	own := policy.Defaults{Audience: Audience, Scopes: []string{"read", "write"}}
	return policy.New(policy.Config{
		Callers: []policy.CallerConfig{
			{Name: Gate, Match: policy.Match{DNSSAN: "gate.example.com"}, Roles: []string{"gateway"}},
			{Name: Shop, Match: policy.Match{Issuer: Issuer, Subject: Shop}, Roles: []string{"orders", "gateway"}},
			{Name: Idle, Match: policy.Match{Issuer: Issuer, Subject: Idle}},
		},
		Roles: map[string]policy.Role{
			"gateway": {Verify: []policy.VerifyGrant{{Issuer: Issuer}, {Issuer: OpaqueA}, {Issuer: OpaqueB}}},
			"orders":  {Get: []policy.GetGrant{{Client: "orders"}}},
		},
		Clients: map[string]policy.Defaults{"orders": own},
		Issuers: map[string][]string{Issuer: {Audience}, OpaqueA: {Audience}, OpaqueB: {Audience}},
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Server is a gRPC server of the broker, bound to a caller.
func (f *Fixture) Server(t testing.TB, bound string) *server.Server {
	t.Helper()
	s := server.New(server.Config{Broker: f.Broker, Bound: caller.Bound{TCP: bound, OpaqueTCP: f.OpaqueIssuer}, Limits: f.Limits, Audit: f.Audit, Logger: f.Logger})
	t.Cleanup(func() { s.Shutdown(0, time.Second) })
	return s
}

// Token mints an access token of "user-1" with the scopes read and write. The claims
// replace its own; a nil claim removes one. Its jti is jti-1, then jti-2 and so on: no
// two tokens are the same, so no cache has an entry for a token before its first use.
func (f *Fixture) Token(claims map[string]any) string {
	now := time.Now()
	all := map[string]any{
		"iss": Issuer, "sub": "user-1", "aud": Audience, "client_id": "web", "scope": "read write", "jti": fmt.Sprintf("jti-%d", f.minted.Add(1)),
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	for name, value := range claims {
		if value == nil {
			delete(all, name)
			continue
		}
		all[name] = value
	}
	return f.IdP.Mint(all).Reveal()
}

// ExpectUnchangedFacts fails the test at its end if the facts of a token for the audience
// were changed: the cache and all results share them.
func (f *Fixture) ExpectUnchangedFacts(t testing.TB, token, audience string) {
	t.Helper()
	facts := func() (*verify.Facts, string) {
		request := verify.Request{Audience: []string{audience}, Caller: audience == caller.DefaultAudience}
		result, err := f.Setup.Verifier.Verify(context.Background(), redact.New(token), request)
		if err != nil || result.Facts == nil {
			t.Fatalf("the token is not accepted: %v, %v", result.Rejection, err)
		}
		return result.Facts, fmt.Sprintf("%+v %+v %s", *result.Facts, result.Facts.Confirmation, result.Facts.Claims)
	}
	shared, before := facts()
	t.Cleanup(func() {
		if again, after := facts(); again != shared || after != before {
			t.Errorf("the facts of a token changed from %s to %s", before, after)
		}
	})
}

// ManyFacts are claims with a value in each list and object of the facts.
func ManyFacts() map[string]any {
	return map[string]any{"aud": []string{"z", Audience, "a"}, "scope": "write read admin", "azp": "web", "nested": map[string]any{"z": []int{3, 1, 2}}}
}

// CallerJWT returns a JWT that authenticates a caller.
func (f *Fixture) CallerJWT(subject string) string {
	return f.Token(map[string]any{"sub": subject, "aud": caller.DefaultAudience})
}
