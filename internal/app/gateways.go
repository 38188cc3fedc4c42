package app

import (
	"github.com/cezzis/tokenbroker/internal/extauthz"
	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// forGateways judges for gateways.
func (a *App) forGateways() *gateway.Judge {
	c := &a.config.Gateways
	return gateway.New(gateway.Config{Broker: a.parts.broker, Prefix: c.HeaderPrefix, Realm: c.Realm})
}

// undecided maps the values of gateways.ext_authz.undecided.
func undecided() map[string]extauthz.Undecided {
	return map[string]extauthz.Undecided{"error": extauthz.AsError, "error_response": extauthz.AsErrorResponse, "denial": extauthz.AsDenial}
}

// extAuthzConfig is the configuration of Envoy's ext_authz.
func extAuthzConfig(c *ExtAuthzConfig, judge *gateway.Judge) extauthz.Config {
	made := extauthz.Config{
		Judge: judge, Claims: c.Claims,
		Undecided: undecided()[c.Undecided],
	}
	for _, rule := range c.Rules {
		made.Rules = append(made.Rules, gateway.Rule{
			Host: rule.Host, Path: rule.Path, IgnoreCase: rule.IgnoreCase, Needs: verify.Request{Audience: rule.Audiences, Scopes: rule.Scopes, Issuer: rule.Issuer},
		})
	}
	return made
}
