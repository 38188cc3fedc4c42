package config_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// exchangeFile is a good file with the clients "obo", with more keys, and "own", and one
// exchange grant.
func exchangeFile(more, grant string) string {
	return `clients:
  obo: {issuer: https://login.example.com, client_id: a, secret: "file:/s", ` + more + `}
  own: {issuer: https://login.example.com, client_id: b, secret: "file:/s"}
issuers: [{issuer: https://login.example.com, audiences: [a]}]
callers: [{name: bff, uid: 1, roles: [bff]}]
roles: {bff: {` + grant + `}}
`
}

const goodGrant = "exchange: [{client: obo, from: {issuers: [https://login.example.com], audiences: [bff], scopes: [openid]}, audiences: [x], resources: [y], scopes: [z]}]"

func TestExchange_isRead(t *testing.T) {
	for name, tt := range map[string]struct {
		more, grantType, auth string
		params                map[string]string
	}{
		"the default":      {"exchange: {requested_token_type: jwt}", idp.TokenExchange, "client_secret_basic", nil},
		"jwt-bearer":       {"exchange: {}, grant_type: " + idp.JWTBearer, idp.JWTBearer, "client_secret_basic", nil},
		"Entra ID":         {"exchange: {}, preset: entra", idp.JWTBearer, "client_secret_post", map[string]string{"requested_token_use": "on_behalf_of"}},
		"Entra's params":   {"exchange: {}, preset: entra, params: {a: b}", idp.JWTBearer, "client_secret_post", map[string]string{"a": "b", "requested_token_use": "on_behalf_of"}},
		"Entra ID, by key": {"exchange: {}, preset: entra, grant_type: " + idp.TokenExchange, idp.TokenExchange, "client_secret_post", nil},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := config.Parse("x", []byte(exchangeFile(tt.more, goodGrant)))
			if err != nil {
				t.Fatal(err)
			}
			got := c.Clients["obo"]
			if got.GrantType != tt.grantType || got.Auth != tt.auth || got.Exchange == nil || !got.NeedsSecret() {
				t.Errorf("grant type %q, auth %q", got.GrantType, got.Auth)
			}
			if d := cmp.Diff(tt.params, got.Params); d != "" {
				t.Error(d)
			}
			want := []policy.ExchangeGrant{{
				Client: "obo", From: policy.From{Issuers: []string{"https://login.example.com"}, Audiences: []string{"bff"}, Scopes: []string{"openid"}},
				Audiences: []string{"x"}, Resources: []string{"y"}, Scopes: []string{"z"},
			}}
			p := c.PolicyConfig()
			if d := cmp.Diff(want, p.Roles["bff"].Exchange); d != "" || !p.Clients["obo"].Exchanges || p.Clients["own"].Exchanges {
				t.Errorf("the policy: %s", d)
			}
		})
	}
}

const legs = `
clients:
  leg: {issuer: https://login.example.com, client_id: a, secret: "file:/s", audience: https://as.example.com, exchange: {requested_token_type: TYPE}}
  obo: {issuer: https://as.example.com, client_id: b, secret: "file:/s", exchange: {assertion_from: leg, prove: next_exchange}}
issuers: [{issuer: https://login.example.com, audiences: [a]}]
callers: [{name: bff, uid: 1, roles: [bff]}]
roles: {bff: {exchange: [{client: CLIENT, from: {issuers: [https://login.example.com], audiences: [bff]}}]}}
`

func TestExchange_twoLegs(t *testing.T) {
	for name, tt := range map[string]struct{ kind, client, want string }{
		"ID-JAG":                {"id-jag", "obo", ""},
		"identity chaining":     {"jwt", "obo", ""},
		"an access token":       {"access_token", "obo", "give it requested_token_type"},
		"a grant for the first": {"jwt", "leg", "callers never receive"},
	} {
		c, err := config.Parse("x", []byte(strings.NewReplacer("TYPE", tt.kind, "CLIENT", tt.client).Replace(legs)))
		switch {
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tt.want == "" && (c.Clients["obo"].GrantType != idp.JWTBearer || !c.IssuesAssertions("leg") || c.IssuesAssertions("obo") || c.Clients["leg"].Exchange.Prove != "client_credentials"):
			t.Errorf("%s: %+v", name, c.Clients)
		}
	}
}

func TestExchange_problems(t *testing.T) {
	grant := func(client, issuer, audience string) string {
		return "exchange: [{client: " + client + ", from: {issuers: [" + issuer + "], audiences: [" + audience + "]}}]"
	}
	const login = "https://login.example.com"
	for name, tt := range map[string]struct{ more, grant, want string }{
		"another grant type":     {"exchange: {}, grant_type: password", goodGrant, "a client with exchange has the grant type"},
		"no exchange":            {"grant_type: " + idp.TokenExchange, grant("obo", login, "a"), "add exchange: {} to the client"},
		"a type with jwt-bearer": {"exchange: {requested_token_type: jwt}, grant_type: " + idp.JWTBearer, goodGrant, "remove it"},
		"another type":           {"exchange: {requested_token_type: saml2}", goodGrant, "requested_token_type"},
		"assertions for nobody":  {"exchange: {requested_token_type: id-jag}", "get: [{client: own}]", "no client uses the assertions"},
		"another subject type":   {"exchange: {subject_types: [refresh_token]}", goodGrant, "subject_types"},
		"another actor":          {"exchange: {actor: obo}", goodGrant, "expected none, client or file:PATH"},
		"an actor token":         {"exchange: {actor: 'file:eyJh.eyJh.eyJh'}", goodGrant, "must never be the token itself"},
		"an actor by jwt-bearer": {"exchange: {actor: client}, grant_type: " + idp.JWTBearer, goodGrant, "remove it"},
		"another proof":          {"exchange: {prove: never}", goodGrant, "prove"},
		"types of a leg":         {"exchange: {assertion_from: own, subject_types: [id_token]}", goodGrant, "set it there"},
		"no first leg":           {"exchange: {assertion_from: nothing}", goodGrant, "no such client"},
		"a first leg of its own": {"exchange: {assertion_from: own}", goodGrant, "issues no assertions"},
		"legs by exchange":       {"exchange: {assertion_from: own}, grant_type: " + idp.TokenExchange, goodGrant, "remove grant_type"},
		"a parameter":            {"exchange: {}, params: {subject_token: x}", goodGrant, "may not be set here"},
		"a get grant":            {"exchange: {}", "get: [{client: obo}]", "grant it under exchange"},
		"a client of its own":    {"exchange: {}", grant("own", login, "a"), "grant it under get"},
		"any client":             {"exchange: {}", grant("'*'", login, "a"), "name the client"},
		"no such client":         {"exchange: {}", grant("nothing", login, "a"), "no such client"},
		"no such issuer":         {"exchange: {}", grant("obo", "https://x.example.com", "a"), "not one of issuers"},
		"any issuer":             {"exchange: {}", grant("obo", "'*'", "a"), "not one of issuers"},
		"any audience":           {"exchange: {}", grant("obo", login, "'*'"), "name the caller's own audience"},
		"no from":                {"exchange: {}", "exchange: [{client: obo}]", "from"},
		"no audiences":           {"exchange: {}", "exchange: [{client: obo, from: {issuers: [" + login + "]}}]", "audiences"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Parse("x", []byte(exchangeFile(tt.more, tt.grant)))
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "x:") {
				t.Errorf("%v, want %q with its line", err, tt.want)
			}
		})
	}
}
