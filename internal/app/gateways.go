package app

import (
	"github.com/cezzis/tokenbroker/internal/extauthz"
	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/gatewayconf"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// forGateways returns the judge for gateway requests.
func (a *App) forGateways() *gateway.Judge {
	c := &a.config.Gateways
	return gateway.New(gateway.Config{Broker: a.parts.broker, Prefix: c.HeaderPrefix, Realm: c.Realm, Upstreams: c.ForGateways()})
}

// extAuthzConfig is the configuration of Envoy's ext_authz.
func extAuthzConfig(c *gatewayconf.ExtAuthz, judge *gateway.Judge, resources *gateway.Resources) extauthz.Config {
	authz := extauthz.Config{
		Judge: judge, Claims: c.Claims, Resources: resources,
		Undecided: gatewayconf.Undecided()[c.Undecided],
	}
	for _, rule := range c.Rules {
		authz.Rules = append(authz.Rules, gateway.Rule{
			Host: rule.Host, Path: rule.Path, IgnoreCase: rule.IgnoreCase, Upstream: rule.Upstream, Resource: resources.Named(rule.Resource),
			Needs: verify.Request{Audience: rule.Audiences, Scopes: rule.Scopes, Issuer: rule.Issuer},
		})
	}
	return authz
}
