package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Explain describes in lines of text how a caller is identified, and the permissions
// that each of its roles gives it. line returns the line of an item in the configuration
// file, to which the keys lead, or 0 if it is unknown. ok is false if there is no such
// caller.
func Explain(cfg Config, name string, line func(keys ...any) int) (lines []string, ok bool) {
	i := slices.IndexFunc(cfg.Callers, func(c CallerConfig) bool { return c.Name == name })
	if i < 0 {
		return nil, false
	}
	e := explainer{cfg, line}
	caller := cfg.Callers[i]
	lines = append(lines, fmt.Sprintf("caller %s%s, %s", caller.Name, e.at("callers", i), caller.Match))
	for _, role := range caller.Roles {
		lines = append(lines, "by role "+role+e.at("roles", role)+":")
		before := len(lines)
		lines = append(lines, e.role(role)...)
		if len(lines) == before {
			lines = append(lines, "  nothing: its grants name no client and no issuer that exists")
		}
	}
	return append(append(lines, explainDefaultRequests(cfg, caller)...), "and nothing else."), true
}

type explainer struct {
	cfg  Config
	line func(keys ...any) int
}

// at returns the line of an item in parentheses.
func (e *explainer) at(keys ...any) string {
	if line := e.line(keys...); line > 0 {
		return fmt.Sprintf(" (line %d)", line)
	}
	return ""
}

// listed describes the values of a grant that lists some, or takes those of the client or
// the issuer.
func listed(granted []string, resolved *scope, owner string) string {
	if len(granted) > 0 {
		return resolved.String()
	}
	return resolved.String() + " (the " + owner + "'s own)"
}

// explainDefaultRequests explains the requests that name only a client.
func explainDefaultRequests(cfg Config, caller CallerConfig) (lines []string) {
	c := newCaller(caller, &cfg)
	for _, client := range slices.Sorted(maps.Keys(c.get)) {
		defaults := cfg.Clients[client]
		req := Request{Client: client, Audience: defaults.Audience, Resources: defaults.Resources, Scopes: sortedSet(defaults.Scopes), Narrow: true}
		lines = append(lines, "a request for a token of client "+client+" that names nothing else "+c.explainRequest(req))
	}
	return lines
}

func (c *Caller) explainRequest(req Request) string {
	scopes, ok := c.Resolve(req)
	target := req
	target.Scopes = nil
	_, targetOK := c.Resolve(target)
	switch {
	case ok && len(scopes) > 0:
		return "gets the scopes " + strings.Join(scopes, ", ")
	case ok && c.MayReceive(req, nil):
		return "is sent without scopes"
	case ok:
		return "is sent without scopes, and denied unless the IdP names the scopes that it granted"
	case targetOK:
		return "is denied: no grant allows any of the client's default scopes, which are " + strings.Join(req.Scopes, ", ")
	default:
		return "is denied: no grant allows the client's default audience and resources"
	}
}

// explainNarrowing describes the scopes of a request that names none.
func (g *getGrant) explainNarrowing() string {
	switch {
	case len(g.narrowed) > 0:
		return strings.Join(g.narrowed, ", ")
	case len(g.defaults) > 0:
		return "denied, because the grant includes none of the client's default scopes"
	case g.listsScopes && !g.scopes.all:
		return "those that the IdP names in its response, if the grant includes them"
	default:
		return "none"
	}
}

func (e *explainer) role(name string) (lines []string) {
	role := e.cfg.Roles[name]
	for i, grant := range role.Get {
		for _, client := range slices.Sorted(maps.Keys(e.cfg.Clients)) {
			if grant.Client != client && grant.Client != Any {
				continue
			}
			lines = append(lines, "  may get tokens of client "+client+e.at("roles", name, "get", i))
			lines = append(lines, e.target(&grant, client)...)
		}
	}
	lines = append(lines, e.exchanges(name, role.Exchange)...)
	for i, grant := range role.Verify {
		for _, issuer := range slices.Sorted(maps.Keys(e.cfg.Issuers)) {
			if grant.Issuer != issuer && grant.Issuer != Any {
				continue
			}
			audiences := newScope(grant.Audiences, e.cfg.Issuers[issuer])
			lines = append(lines, "  may verify tokens of issuer "+issuer+e.at("roles", name, "verify", i),
				"    audiences: "+listed(grant.Audiences, &audiences, "issuer"))
		}
	}
	for i, grant := range role.Admin {
		clients := grant.clients()
		lines = append(lines, "  may perform admin actions: "+explainActions(grant.Actions)+e.at("roles", name, "admin", i), "    clients: "+clients.String())
	}
	return lines
}

// target describes the tokens of a client that a grant allows.
func (e *explainer) target(grant *GetGrant, client string) []string {
	resolved := grant.resolve(e.cfg.Clients[client])
	return []string{
		"    audiences: " + listed(grant.Audiences, &resolved.audiences, "client"),
		"    resources: " + listed(grant.Resources, &resolved.resources, "client"),
		"    scopes:    " + listed(grant.Scopes, &resolved.scopes, "client"),
		"    scopes of a request that names none: " + resolved.explainNarrowing(),
	}
}

// exchanges describes the grants for tokens on behalf of users.
func (e *explainer) exchanges(role string, grants []ExchangeGrant) (lines []string) {
	for i, grant := range grants {
		if !e.cfg.Clients[grant.Client].Exchanges {
			continue
		}
		from := "    for user tokens of issuer " + strings.Join(grant.From.Issuers, " or ") + ", for audience " + strings.Join(grant.From.Audiences, " or ")
		if len(grant.From.Scopes) > 0 {
			from += ", with all of the scopes " + strings.Join(grant.From.Scopes, ", ")
		}
		lines = append(lines, "  may get tokens of client "+grant.Client+" on behalf of users"+e.at("roles", role, "exchange", i), from)
		target := GetGrant{Client: grant.Client, Audiences: grant.Audiences, Resources: grant.Resources, Scopes: grant.Scopes}
		lines = append(lines, e.target(&target, grant.Client)...)
	}
	return lines
}

// explainActions lists actions. The wildcard includes actions of later versions.
func explainActions(granted []Action) string {
	later := ""
	if slices.Contains(granted, AnyAction) {
		granted, later = Actions(), ", and every action that a later version adds"
	}
	names := make([]string, len(granted))
	for i, action := range granted {
		names[i] = string(action)
	}
	return strings.Join(names, ", ") + later
}

// String describes how a caller is identified.
func (m Match) String() string {
	switch {
	case m.SPIFFEID != "":
		return "identified by the SPIFFE ID " + m.SPIFFEID + " in its certificate"
	case m.URISAN != "":
		return "identified by the URI " + m.URISAN + " in its certificate"
	case m.DNSSAN != "":
		return "identified by the DNS name " + m.DNSSAN + " in its certificate"
	case m.Issuer != "":
		return m.jwt()
	case m.UID != nil:
		return fmt.Sprintf("identified by the Unix user %d of its process", *m.UID)
	default:
		return "identified by a listener that is bound to it"
	}
}

func (m Match) jwt() string {
	var parts []string
	if m.Subject != "" {
		parts = append(parts, "the subject "+m.Subject)
	}
	for _, claim := range m.Claims {
		parts = append(parts, fmt.Sprintf("%s in the claim %s", claim.Value, strings.Join(claim.Path, " > ")))
	}
	return fmt.Sprintf("identified by a JWT of the issuer %s with %s", m.Issuer, strings.Join(parts, " and "))
}
