package config

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// ActorFile returns the file with the actor token, or "".
func (e *Exchange) ActorFile() string {
	if e == nil || !strings.HasPrefix(e.Actor, "file:") {
		return ""
	}
	return strings.TrimPrefix(e.Actor, "file:")
}

// IssuesAssertions reports whether the results of a client are assertions for another IdP.
func (c *Config) IssuesAssertions(name string) bool {
	at := c.Clients[name].Exchange
	return at != nil && at.RequestedTokenType == "id-jag" || c.secondLeg(name) != ""
}

// secondLeg returns the client that exchanges the assertions of another client, or "".
func (c *Config) secondLeg(first string) string {
	for _, name := range slices.Sorted(maps.Keys(c.Clients)) {
		if e := c.Clients[name].Exchange; e != nil && e.AssertionFrom == first {
			return name
		}
	}
	return ""
}

// completeExchange fills in the grant type of a client that exchanges.
func completeExchange(c *Client, given func(key string) bool) {
	entra := c.Preset == "entra"
	switch {
	case given("grant_type"):
	case entra, c.Exchange.AssertionFrom != "":
		c.GrantType = idp.JWTBearer
	default:
		c.GrantType = idp.TokenExchange
	}
	if entra && c.Exchange.AssertionFrom == "" && c.GrantType == idp.JWTBearer && c.Params[idp.ParamTokenUse] == "" {
		params := map[string]string{}
		maps.Copy(params, c.Params)
		params[idp.ParamTokenUse] = idp.OnBehalfOf
		c.Params = params
	}
}

func checkExchange(c *Client, path string, findings *yamlconf.Findings) {
	grantType := yamlconf.Join(path, "grant_type")
	switch {
	case c.Exchange == nil && c.GrantType == idp.TokenExchange:
		findings.Addf(grantType, "the grant needs the token of a user: add exchange: {} to the client")
	case c.Exchange == nil:
	case c.GrantType != idp.TokenExchange && c.GrantType != idp.JWTBearer:
		findings.Addf(grantType, "a client with exchange has the grant type %s or %s", idp.TokenExchange, idp.JWTBearer)
	case c.Exchange.RequestedTokenType != "" && c.GrantType != idp.TokenExchange:
		findings.Addf(yamlconf.Join(path, "exchange.requested_token_type"), "is for grant_type: %s only: remove it", idp.TokenExchange)
	case c.Exchange.Actor != "none" && c.GrantType != idp.TokenExchange:
		findings.Addf(yamlconf.Join(path, "exchange.actor"), "is for grant_type: %s only: remove it", idp.TokenExchange)
	case c.Exchange.AssertionFrom != "" && c.GrantType != idp.JWTBearer:
		findings.Addf(grantType, "a client with exchange.assertion_from has the grant type %s: remove grant_type", idp.JWTBearer)
	case isJWT(c.Exchange.ActorFile()):
		findings.Addf(yamlconf.Join(path, "exchange.actor"), "names the file with the actor token, and must never be the token itself")
	case c.Exchange.Actor != "none" && c.Exchange.Actor != "client" && c.Exchange.ActorFile() == "":
		findings.Addf(yamlconf.Join(path, "exchange.actor"), "expected none, client or file:PATH")
	}
}

// checkLegs checks the pairs of clients that exchange in two legs.
func checkLegs(c *Config, findings *yamlconf.Findings) {
	for _, name := range slices.Sorted(maps.Keys(c.Clients)) {
		e := c.Clients[name].Exchange
		if e == nil {
			continue
		}
		path := yamlconf.Join(yamlconf.Join("clients", name), "exchange")
		first, ok := c.Clients[e.AssertionFrom]
		switch at := yamlconf.Join(path, "assertion_from"); {
		case e.AssertionFrom == "" && e.RequestedTokenType == "id-jag" && c.secondLeg(name) == "":
			findings.Addf(yamlconf.Join(path, "requested_token_type"), "no client uses the assertions: name this client in exchange.assertion_from of the client at the other IdP")
		case e.AssertionFrom == "":
		case findings.Given(yamlconf.Join(path, "subject_types")):
			findings.Addf(yamlconf.Join(path, "subject_types"), "the client in assertion_from exchanges the user's token: set it there")
		case !ok:
			findings.Addf(at, "no such client: add it to clients%s", yamlconf.DidYouMean(e.AssertionFrom, slices.Collect(maps.Keys(c.Clients))))
		case first.Exchange == nil || first.Exchange.AssertionFrom != "" || first.GrantType != idp.TokenExchange:
			findings.Addf(at, "this client issues no assertions: it needs exchange, the grant type %s, and no assertion_from of its own", idp.TokenExchange)
		case first.Exchange.RequestedTokenType != "id-jag" && first.Exchange.RequestedTokenType != "jwt":
			findings.Addf(at, "this client issues no assertions: give it requested_token_type: id-jag (or jwt for identity chaining)")
		}
	}
}

func checkExchangeGrant(c *Config, grant *ExchangeGrant, path string, findings *yamlconf.Findings) {
	client, from := yamlconf.Join(path, "client"), yamlconf.Join(path, "from")
	if _, ok := c.Clients[grant.Client]; ok && c.Clients[grant.Client].Exchange == nil {
		findings.Addf(client, "this client requests its own tokens: grant it under get, or add exchange to the client")
	}
	if c.IssuesAssertions(grant.Client) {
		findings.Addf(client, "this client issues assertions for another IdP, which callers never receive: grant the client with assertion_from")
	}
	checkGranted(c, cmp.Or(grant.Client, policy.Any), client, findings)
	if grant.Client == policy.Any {
		findings.Addf(client, `"*" is not possible here: name the client`)
	}
	if !findings.Given(from) {
		findings.Addf(path, "from is missing: name the issuers and audiences of the tokens that the caller may present")
	}
	for i, issuer := range grant.From.Issuers {
		if !slices.ContainsFunc(c.Issuers, func(configured Issuer) bool { return configured.Issuer == issuer || configured.has(issuer) }) {
			findings.Addf(yamlconf.Item(yamlconf.Join(from, "issuers"), i), "not one of issuers, which are compared byte by byte: add it there, or correct it")
		}
	}
	if i := slices.Index(grant.From.Audiences, policy.Any); i >= 0 {
		findings.Addf(yamlconf.Item(yamlconf.Join(from, "audiences"), i), `"*" is not possible here, because the caller could then use tokens that are meant for others: name the caller's own audience`)
	}
	findings.Scopes(yamlconf.Join(from, "scopes"), grant.From.Scopes)
	for key, values := range map[string][]string{"audiences": grant.Audiences, "resources": grant.Resources, "scopes": grant.Scopes} {
		checkAlone(values, yamlconf.Join(path, key), findings)
	}
}
