package config

import (
	"cmp"
	"maps"
	"slices"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// completeExchange fills in the grant type of a client that exchanges.
func completeExchange(c *Client, given func(key string) bool) {
	entra := c.Preset == "entra"
	switch {
	case given("grant_type"):
	case entra:
		c.GrantType = idp.JWTBearer
	default:
		c.GrantType = idp.TokenExchange
	}
	if entra && c.GrantType == idp.JWTBearer && c.Params[idp.ParamTokenUse] == "" {
		c.Params = maps.Clone(c.Params)
		if c.Params == nil {
			c.Params = map[string]string{}
		}
		c.Params[idp.ParamTokenUse] = idp.OnBehalfOf
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
	}
}

func checkExchangeGrant(c *Config, grant *ExchangeGrant, path string, findings *yamlconf.Findings) {
	client, from := yamlconf.Join(path, "client"), yamlconf.Join(path, "from")
	if _, ok := c.Clients[grant.Client]; ok && c.Clients[grant.Client].Exchange == nil {
		findings.Addf(client, "this client requests its own tokens: grant it under get, or add exchange to the client")
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
	checkScopes(grant.From.Scopes, yamlconf.Join(from, "scopes"), findings)
	for key, values := range map[string][]string{"audiences": grant.Audiences, "resources": grant.Resources, "scopes": grant.Scopes} {
		checkAlone(values, yamlconf.Join(path, key), findings)
	}
}
