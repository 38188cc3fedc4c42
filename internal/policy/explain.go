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
	return append(lines, "and nothing else."), true
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
				"    with scopes:   "+full.scopes.String())
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
		clients := newScope(grant.Clients, []string{Any})
		actions := make([]string, len(grant.Actions))
		for i, action := range grant.Actions {
			actions[i] = string(action)
		}
		lines = append(lines, "  may act as an operator: "+strings.Join(actions, ", "), "    on clients: "+clients.String())
	}
	return lines
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
	case m.Subject != "":
		return fmt.Sprintf("recognised by a JWT with the subject %s of the issuer %s", m.Subject, m.Issuer)
	case m.UID != nil:
		return fmt.Sprintf("recognised by the user %d of its process", *m.UID)
	default:
		return "recognised by a listener that is bound to it"
	}
}
