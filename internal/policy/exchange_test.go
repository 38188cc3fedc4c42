package policy_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/policy"
)

const (
	login  = "https://login.example.com"
	bff    = "https://bff.example.com"
	target = "https://orders.example.com"
)

// exchanger has a caller "bff" with two exchange grants for the client "obo", and with a
// get grant for every client.
func exchanger() *policy.Caller {
	return policy.New(policy.Config{
		Clients: map[string]policy.Defaults{
			"obo":   {Audience: target, Scopes: []string{"read", "write"}, Exchanges: true},
			"plain": {Scopes: []string{"read"}},
		},
		Roles: map[string]policy.Role{"r": {
			Get: []policy.GetGrant{{Client: policy.Any, Audiences: []string{"*"}, Scopes: []string{"*"}}},
			Exchange: []policy.ExchangeGrant{
				{Client: "obo", From: policy.From{Issuers: []string{login}, Audiences: []string{bff}}, Scopes: []string{"read"}},
				{Client: "obo", From: policy.From{Issuers: []string{login, "urn:other"}, Audiences: []string{"urn:admin"}, Scopes: []string{"admin"}}, Audiences: []string{"urn:vault"}, Scopes: []string{"write"}},
				{Client: "plain", From: policy.From{Issuers: []string{login}, Audiences: []string{bff}}},
				{Client: "*", From: policy.From{Issuers: []string{"*"}, Audiences: []string{"*"}}, Audiences: []string{"*"}, Scopes: []string{"*"}},
			},
		}},
		Callers: []policy.CallerConfig{{Name: "bff", Roles: []string{"r"}}},
	}).Named("bff")
}

func TestExchangeGrants_admitSubjectAndTargetTogether(t *testing.T) {
	caller := exchanger()
	user := policy.Subject{Issuer: login, Audiences: []string{"x", bff}, Scopes: []string{"openid"}}
	admin := policy.Subject{Issuer: "urn:other", Audiences: []string{"urn:admin"}, Scopes: []string{"admin", "openid"}}
	for name, tt := range map[string]struct {
		audience string
		scopes   []string
		subject  policy.Subject
		want     bool
	}{
		"the user's target":           {target, []string{"read"}, user, true},
		"the administrator's target":  {"urn:vault", []string{"write"}, admin, true},
		"the other grant's target":    {"urn:vault", []string{"write"}, user, false},
		"the other grant's scope":     {target, []string{"write"}, user, false},
		"both scopes":                 {target, []string{"read", "write"}, user, false},
		"the other grant's subject":   {target, []string{"read"}, admin, false},
		"another issuer":              {target, []string{"read"}, policy.Subject{Issuer: "urn:other", Audiences: user.Audiences}, false},
		"another audience":            {target, []string{"read"}, policy.Subject{Issuer: login, Audiences: []string{"x"}}, false},
		"no audience":                 {target, []string{"read"}, policy.Subject{Issuer: login}, false},
		"a literal * is no wildcard":  {target, []string{"read"}, policy.Subject{Issuer: "*", Audiences: []string{"*"}}, false},
		"without the required scope":  {"urn:vault", []string{"write"}, policy.Subject{Issuer: "urn:other", Audiences: admin.Audiences}, false},
		"issuer and audience of both": {"urn:vault", []string{"write"}, policy.Subject{Issuer: "urn:other", Audiences: []string{bff}, Scopes: admin.Scopes}, false},
	} {
		t.Run(name, func(t *testing.T) {
			req := policy.Request{Client: "obo", Audience: tt.audience, Scopes: tt.scopes}
			if scopes, ok := caller.ResolveExchange(req, tt.subject); ok != tt.want || ok && !slices.Equal(scopes, tt.scopes) {
				t.Errorf("%v, %v", scopes, ok)
			}
			if got := caller.MayReceiveExchanged(req, tt.subject, tt.scopes); got != tt.want {
				t.Errorf("may receive: %v", got)
			}
		})
	}
	if scopes, ok := caller.ResolveExchange(policy.Request{Client: "obo", Audience: target, Scopes: []string{"read", "write"}, Narrow: true}, user); !ok || !slices.Equal(scopes, []string{"read"}) {
		t.Errorf("the default scopes are narrowed to %v, %v", scopes, ok)
	}
	if caller.MayReceiveExchanged(policy.Request{Client: "obo", Audience: target, Scopes: []string{"read"}}, user, []string{"read", "write"}) {
		t.Error("the caller may receive more than its grant allows")
	}
}

// The token of a client that exchanges is somebody's: without a subject there is none.
func TestExchangeGrants_areApartFromGetGrants(t *testing.T) {
	caller := exchanger()
	if _, ok := caller.Resolve(policy.Request{Client: "obo", Audience: target, Scopes: []string{"read"}}); ok || caller.HasGrant("obo") {
		t.Error(`a get grant for "*" covers a client that exchanges`)
	}
	if !caller.HasExchange("obo") || caller.HasExchange("plain") || caller.HasExchange("*") {
		t.Error("exchange grants apply to clients that exchange, by name")
	}
	user := policy.Subject{Issuer: login, Audiences: []string{bff}}
	if _, ok := caller.ResolveExchange(policy.Request{Client: "plain", Scopes: []string{"read"}}, user); ok {
		t.Error("an exchange by a client that does not exchange")
	}
	want := policy.SubjectTokens{Issuers: map[string][]string{login: nil, "urn:other": nil}, Audiences: []string{bff, "urn:admin"}}
	if diff := cmp.Diff(want, caller.SubjectTokens("obo")); diff != "" {
		t.Errorf("subject tokens: %s", diff)
	}
	var nobody *policy.Caller
	if nobody.SubjectTokens("obo").Issuers == nil || caller.SubjectTokens("plain").Issuers == nil {
		t.Error("no grant admits the tokens of every issuer")
	}
	if _, ok := nobody.ResolveExchange(policy.Request{Client: "obo"}, user); ok || nobody.HasExchange("obo") || nobody.MayReceiveExchanged(policy.Request{Client: "obo"}, user, nil) {
		t.Error("an unidentified caller may exchange")
	}
}
