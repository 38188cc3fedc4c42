package exchange_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/exchange"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/testkit"
	"github.com/cezzis/tokenbroker/internal/verify"
	"github.com/cezzis/tokenbroker/internal/verify/jwks"
)

const (
	issuer = "https://idp.example.com"
	bff    = "https://bff.example.com"
	orders = "https://orders.example.com"
	stock  = "https://stock.example.com"
)

// world is an IdP and replicas that share a store. Each replica has the clients "obo" and
// "obo-2", which exchange, and "plain", which does not. The client "obo-2" accepts ID
// tokens.
type world struct {
	t        testing.TB
	idp      *devidp.Server
	shared   store.Store
	towards  http.RoundTripper // to the IdP
	audit    *audit.Log
	settings []func(*broker.Config)
	// clients change the clients of replicas before they are made.
	clients []func(id string, atIdP *idp.Config, client *broker.ClientConfig)
	secrets string // the file with the secret of all clients
	// legSecret is the file with the secret of a first leg.
	legSecret string
	all       []*broker.Broker
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldWith(t, func(*devidp.Client) {})
}

// newWorldWith is newWorld with changed registrations of the clients at the IdP.
func newWorldWith(t testing.TB, change func(*devidp.Client)) *world {
	t.Helper()
	registered := func(id string) devidp.Client {
		return devidp.Client{
			ID: id, Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read", "write"}, Audiences: []string{orders, stock},
			Exchange: &devidp.Exchange{SubjectAudiences: []string{bff, "https://other.example.com", "obo-2"}},
		}
	}
	plain, first, other := registered("plain"), registered("obo"), registered("obo-2")
	plain.Exchange = nil
	change(&first)
	change(&other)
	server, err := devidp.New(devidp.Config{Issuer: issuer, Lifetime: 100 * time.Second, Algorithm: "EdDSA", Clients: []devidp.Client{first, other, plain}})
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, secrets: testkit.SecretFile(t, "right"), idp: server, shared: store.NewMemory(store.MemoryConfig{}), towards: server.RoundTripper()}
}

// add starts a replica.
func (w *world) add() *broker.Broker {
	w.t.Helper()
	verifier, err := verify.New(verify.Config{HTTP: discovery.NewHTTPClient(w.idp.RoundTripper()), Issuers: []verify.IssuerConfig{{
		Issuer: issuer, Keys: jwks.Config{URL: issuer + devidp.JWKSPath}, Audiences: []string{"https://api.example.com"}, Algorithms: []string{"EdDSA"},
		Types: []string{"at+jwt", "JWT"}, MissingAudience: verify.MissingAudience{Value: bff},
		Introspection: &verify.Introspection{Endpoint: introspector{w.introspecting()}, Cache: -1},
	}}}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	cfg := broker.Config{
		Store: w.shared, MAC: sha256Of, Audit: w.audit, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		Setup: broker.Setup{Verifier: verifier, Policy: callers(), Clients: []broker.ClientConfig{w.client("obo"), w.client("obo-2"), w.client("plain")}},
	}
	for _, set := range w.settings {
		set(&cfg)
	}
	b, err := broker.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { b.Run(ctx) })
	running.Go(func() { verifier.Run(ctx) })
	w.t.Cleanup(func() { b.Close(); cancel(); running.Wait() })
	w.all = append(w.all, b)
	return b
}

// introspector asks the IdP about opaque tokens.
type introspector struct{ client *idp.Client }

func (i introspector) Introspect(ctx context.Context, token redact.String) (active bool, members []byte, err error) {
	result, err := i.client.Introspect(ctx, secret.Version{Value: redact.New("right")}, token)
	return result.Active, result.Members, err
}

func (w *world) introspecting() *idp.Client {
	w.t.Helper()
	client, err := idp.New(idp.Config{TokenURL: issuer + devidp.TokenPath, IntrospectionURL: issuer + devidp.IntrospectionPath, ClientID: "plain", HTTP: discovery.NewHTTPClient(w.idp.RoundTripper())})
	if err != nil {
		w.t.Fatal(err)
	}
	return client
}

func sha256Of(data []byte) [sha256.Size]byte { return sha256.Sum256(data) }

func (w *world) client(id string) broker.ClientConfig {
	w.t.Helper()
	source := w.openSecret(w.secrets)
	cfg := idp.Config{TokenURL: issuer + devidp.TokenPath, ClientID: id, HTTP: discovery.NewHTTPClient(w.towards)}
	if id != "plain" {
		cfg.Grant, cfg.Exchange = idp.TokenExchange, &idp.Exchange{}
	}
	if id == "obo-2" {
		cfg.Exchange.SubjectTypes = []string{idp.TypeAccessToken, idp.TypeIDToken}
	}
	client := broker.ClientConfig{Name: id, Secret: source, Audience: orders, Scopes: []string{"read", "write"}}
	for _, change := range w.clients {
		change(id, &cfg, &client)
	}
	var err error
	if client.IdP, err = idp.New(cfg); err != nil {
		w.t.Fatal(err)
	}
	return client
}

func (w *world) openSecret(path string) *secret.Source {
	w.t.Helper()
	ref, err := secret.ParseRef("file:" + path)
	if err != nil {
		w.t.Fatal(err)
	}
	source, err := secret.OpenKeyed(ref, sha256Of)
	if err != nil {
		w.t.Fatal(err)
	}
	return source
}

// callers has the callers "bff", which may exchange tokens for bff, "narrow", which may
// have the scope read only, and "other", which may exchange the tokens for another
// audience.
func callers() *policy.Policy {
	grant := func(client, audience string, scopes ...string) policy.ExchangeGrant {
		return policy.ExchangeGrant{Client: client, From: policy.From{Issuers: []string{issuer}, Audiences: []string{audience}}, Audiences: []string{orders, stock}, Scopes: scopes}
	}
	defaults := policy.Defaults{Audience: orders, Scopes: []string{"read", "write"}, Exchanges: true}
	return policy.New(policy.Config{
		Clients: map[string]policy.Defaults{"obo": defaults, "obo-2": defaults, "plain": {Audience: orders, Scopes: []string{"read", "write"}}},
		Roles: map[string]policy.Role{
			"bff":    {Exchange: []policy.ExchangeGrant{grant("obo", bff), grant("obo", "obo-2"), grant("obo-2", bff), grant("obo-2", "obo-2")}, Get: []policy.GetGrant{{Client: "*"}}},
			"narrow": {Exchange: []policy.ExchangeGrant{grant("obo", bff, "read")}},
			"other":  {Exchange: []policy.ExchangeGrant{grant("obo", "https://other.example.com")}},
			"none":   {Get: []policy.GetGrant{{Client: "*"}}},
		},
		Callers: []policy.CallerConfig{
			{Name: "bff", Roles: []string{"bff"}}, {Name: "narrow", Roles: []string{"narrow"}}, {Name: "other", Roles: []string{"other"}}, {Name: "none", Roles: []string{"none"}},
		},
	})
}

// user mints a token of alice, with changed claims; nil removes one.
func (w *world) user(changes map[string]any) redact.String { return w.userWith(nil, changes) }

func (w *world) userWith(header, changes map[string]any) redact.String {
	now := time.Now().Unix()
	claims := map[string]any{
		"iss": issuer, "sub": "alice", "client_id": "web", "aud": bff, "scope": "openid", "iat": now, "exp": now + 600, "jti": "1",
	}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
	return w.idp.MintWith(header, claims)
}

// opaque mints an opaque token of alice, with changed members; nil removes one.
func (w *world) opaque(changes map[string]any) redact.String {
	now := time.Now().Unix()
	members := map[string]any{
		"iss": issuer, "sub": "alice", "client_id": "web", "aud": bff, "scope": "openid", "token_type": "Bearer", "iat": now, "exp": now + 600,
	}
	maps.Copy(members, changes)
	maps.DeleteFunc(members, func(_ string, value any) bool { return value == nil })
	return w.idp.MintOpaque(members)
}

func (w *world) get(b *broker.Broker, caller string, ask broker.Ask, token redact.String) (broker.Answer, *apierror.Error) {
	w.t.Helper()
	return w.getAs(b, caller, ask, idp.Subject{Token: token, Type: idp.TypeAccessToken})
}

func (w *world) getAs(b *broker.Broker, caller string, ask broker.Ask, subject idp.Subject) (broker.Answer, *apierror.Error) {
	w.t.Helper()
	answer, err := exchange.Get(w.t.Context(), b, b.Policy().Named(caller), ask, subject)
	if err == nil {
		return answer, nil
	}
	var failure *apierror.Error
	if !errors.As(err, &failure) {
		w.t.Fatalf("the error is a %T: %v", err, err)
	}
	return broker.Answer{}, failure
}

func (w *world) mustGet(b *broker.Broker, caller string, ask broker.Ask, token redact.String) broker.Answer {
	w.t.Helper()
	answer, err := w.get(b, caller, ask, token)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer
}

func (w *world) fetches() int { return w.idp.Requests(devidp.TokenPath) }

// claims returns the claims of a token that the broker handed out.
func (w *world) claims(a broker.Answer) jose.Object {
	w.t.Helper()
	compact, err := jose.Split(a.Token.Value)
	if err != nil {
		w.t.Fatal(err)
	}
	claims, err := jose.ParseObject(compact.Payload)
	if err != nil {
		w.t.Fatal(err)
	}
	return claims
}

func (w *world) text(a broker.Answer, name string) string {
	w.t.Helper()
	text, _, err := w.claims(a).Text(name)
	if err != nil {
		w.t.Fatal(err)
	}
	return text
}

func obo() broker.Ask { return broker.Ask{Client: "obo"} }
