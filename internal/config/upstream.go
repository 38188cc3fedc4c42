package config

import (
	"cmp"
	"maps"
	"slices"

	"github.com/cezzis/tokenbroker/internal/gatewayconf"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// Kinds implements [gatewayconf.Clients].
func (c *Config) Kinds() map[string]bool {
	kinds := map[string]bool{}
	for name := range c.Clients {
		kinds[name] = c.Clients[name].Exchange != nil
	}
	return kinds
}

// UpstreamUsers returns the callers that may use each upstream entry: as gateways, with the
// grants that a call of their own would need.
func (c *Config) UpstreamUsers() map[string][]string {
	users := map[string][]string{}
	if len(c.Gateways.Upstream) == 0 {
		return users
	}
	p := policy.New(c.PolicyConfig())
	for name, u := range c.Gateways.Upstream {
		for i := range c.Callers {
			if caller := p.Named(c.Callers[i].Name); c.mayUse(caller, &c.Callers[i], &u) {
				users[name] = append(users[name], caller.Name())
			}
		}
	}
	return users
}

func (c *Config) mayUse(caller *policy.Caller, named *Caller, u *gatewayconf.Upstream) bool {
	client := c.Clients[u.Client]
	target := policy.Request{
		Client: u.Client, Audience: cmp.Or(u.Audience, client.Audience), Resources: client.Resources, Scopes: u.Scopes, Narrow: len(u.Scopes) == 0,
	}
	if target.Narrow {
		target.Scopes = client.Scopes
	}
	if _, verifies := caller.MayVerify(); verifies == u.Unverified() {
		return false
	}
	if !u.OnBehalfOf {
		_, ok := caller.Resolve(target)
		return ok
	}
	for _, role := range named.Roles {
		for _, grant := range c.Roles[role].Exchange {
			from := policy.Subject{Issuer: first(grant.From.Issuers), Audiences: grant.From.Audiences, Scopes: grant.From.Scopes}
			if _, ok := caller.ResolveExchange(target, from); ok && grant.Client == u.Client {
				return true
			}
		}
	}
	return false
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// warnOfUpstreams reports entries that no caller may use.
func (c *Config) warnOfUpstreams(findings *yamlconf.Findings) {
	users := c.UpstreamUsers()
	for _, name := range slices.Sorted(maps.Keys(c.Gateways.Upstream)) {
		u := c.Gateways.Upstream[name]
		if len(users[name]) > 0 {
			continue
		}
		needs := "a get grant for its client, audience and scopes, and a verify grant"
		switch {
		case u.OnBehalfOf:
			needs = "an exchange grant for its client, audience and scopes, and a verify grant"
		case u.Unverified():
			needs = "a get grant for its client, audience and scopes, and no verify grant"
		}
		findings.Warn(yamlconf.Join("gateways.upstream", name), "no caller may use the entry, so every request for it would be refused: its gateway needs "+needs)
	}
}
