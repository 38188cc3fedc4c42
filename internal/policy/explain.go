package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Explain says, line by line, how a caller is recognised, and what it may by which
// of its roles. False: there is no such caller.
func Explain(cfg Config, name string) (lines []string, known bool) {
	at := slices.IndexFunc(cfg.Callers, func(c CallerConfig) bool { return c.Name == name })
	if at < 0 {
		return nil, false
	}
	caller := cfg.Callers[at]
	lines = append(lines, fmt.Sprintf("caller %s, %s", caller.Name, caller.Match))
	for _, role := range caller.Roles {
		lines = append(lines, "by role "+role+":")
		before := len(lines)
		lines = append(lines, explainRole(cfg, cfg.Roles[role])...)
		if len(lines) == before {
			lines = append(lines, "  nothing: its grants are for what does not exist")
		}
	}
	return append(append(lines, explainUnnamed(cfg, caller)...), "and nothing else."), true
}

// explainUnnamed explains the requests that name nothing but a client.
func explainUnnamed(cfg Config, caller CallerConfig) (lines []string) {
	made := newCaller(caller, &cfg)
	for _, client := range slices.Sorted(maps.Keys(made.get)) {
		own := cfg.Clients[client]
		ask := Ask{Client: client, Audience: own.Audience, Resources: own.Resources, Scopes: sortedSet(own.Scopes), Narrow: true}
		lines = append(lines, "a request for a token of client "+client+" that names nothing else "+made.explainAsk(ask))
	}
	return lines
}

func (c *Caller) explainAsk(ask Ask) string {
	scopes, may := c.Resolve(ask)
	target := ask
	target.Scopes = nil
	_, mayTarget := c.Resolve(target)
	switch {
	case may && len(scopes) > 0:
		return "gets the scopes " + strings.Join(scopes, ", ")
	case may && c.MayHave(ask, nil):
		return "is sent without scopes"
	case may:
		return "is sent without scopes, and denied unless the IdP says which scopes it granted"
	case mayTarget:
		return "is denied: no grant admits any of the client's default scopes, which are " + strings.Join(ask.Scopes, ", ")
	default:
		return "is denied: no grant admits the client's own audience and resources"
	}
}

// unnamed says which scopes the grant admits of a request that names none.
func (g *getGrant) unnamed() string {
	switch {
	case len(g.kept) > 0:
		return strings.Join(g.kept, ", ")
	case len(g.defaults) > 0:
		return "denied, for none of the client's default scopes is granted"
	case g.named && !g.scopes.all:
		return "those that the IdP says it granted, if they are granted here"
	default:
		return "none"
	}
}

func explainRole(cfg Config, role Role) (lines []string) {
	for _, grant := range role.Get {
		for _, client := range slices.Sorted(maps.Keys(cfg.Clients)) {
			if grant.Client != client && grant.Client != Any {
				continue
			}
			full := grant.resolve(cfg.Clients[client])
			lines = append(lines, "  may have tokens of client "+client,
				"    for audiences: "+full.audiences.String(),
				"    for resources: "+full.resources.String(),
				"    with scopes:   "+full.scopes.String(),
				"    with none named: "+full.unnamed())
		}
	}
	for _, grant := range role.Verify {
		for _, issuer := range slices.Sorted(maps.Keys(cfg.Issuers)) {
			if grant.Issuer != issuer && grant.Issuer != Any {
				continue
			}
			audiences := newScope(grant.Audiences, cfg.Issuers[issuer])
			lines = append(lines, "  may have tokens of issuer "+issuer+" verified", "    for audiences: "+audiences.String())
		}
	}
	for _, grant := range role.Admin {
		clients := grant.clients()
		lines = append(lines, "  may act as an operator: "+explainActions(grant.Actions), "    on clients: "+clients.String())
	}
	return lines
}

// explainActions lists actions. The wildcard stands for more than this version has.
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

// String says how a caller is recognised.
func (m Match) String() string {
	switch {
	case m.SPIFFEID != "":
		return "recognised by the SPIFFE ID " + m.SPIFFEID + " in its certificate"
	case m.URISAN != "":
		return "recognised by the URI " + m.URISAN + " in its certificate"
	case m.DNSSAN != "":
		return "recognised by the DNS name " + m.DNSSAN + " in its certificate"
	case m.Issuer != "":
		return m.jwt()
	case m.UID != nil:
		return fmt.Sprintf("recognised by the user %d of its process", *m.UID)
	default:
		return "recognised by a listener that is bound to it"
	}
}

func (m Match) jwt() string {
	var says []string
	if m.Subject != "" {
		says = append(says, "the subject "+m.Subject)
	}
	for _, claim := range m.Claims {
		says = append(says, fmt.Sprintf("%s in the claim %s", claim.Value, strings.Join(claim.Path, " > ")))
	}
	return fmt.Sprintf("recognised by a JWT with %s of the issuer %s", strings.Join(says, " and "), m.Issuer)
}
