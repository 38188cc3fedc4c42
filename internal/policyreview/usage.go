package policyreview

import (
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// Usage tells how much of a file's grants the requests of a log needed.
type Usage struct {
	// Grants are all grants of roles, in the order of the file.
	Grants []GrantUsage
	// Roles are the roles of callers from which no request of that caller needed a grant.
	Roles []RoleUsage

	file *File
}

// GrantUsage tells how much of a grant was needed.
type GrantUsage struct {
	Role string `json:"role"`
	Kind Kind   `json:"kind"`
	Line string `json:"line"`
	// Grant describes the grant.
	Grant string `json:"grant"`
	// Count is the number of recorded requests that needed the grant, Last the time of the
	// last one, and Callers the callers that made them. A request for which several grants
	// would do counts for the first one, so a caller needs no unused grant.
	Count   uint64    `json:"count"`
	Last    time.Time `json:"last,omitzero"`
	Callers []string  `json:"callers,omitempty"`
	// Unused are the values that the grant lists and no request needed.
	Unused []string `json:"unused,omitempty"`
	// Unknown: the log does not have such requests, because accepted verifications are
	// not audited, or it does not have the audience of the user's token of an exchange.
	Unknown bool `json:"unknown,omitempty"`

	used map[string]bool // values
}

// RoleUsage is a role that its caller did not need. Seen is false if the log has no request
// of the caller at all.
type RoleUsage struct {
	Caller string `json:"caller"`
	Role   string `json:"role"`
	Line   string `json:"line"`
	Seen   bool   `json:"seen"`
}

// Usage counts the requests of a log by the grants that allow them.
func (f *File) Usage(log *Log) *Usage {
	u := &Usage{file: f}
	byGrant := map[Grant]*GrantUsage{}
	needed := map[[2]string]bool{} // caller and role
	seen := map[string]bool{}
	for _, r := range log.order {
		seen[r.caller] = true
		if !r.allowed() {
			continue
		}
		counted := map[Grant]bool{}
		for _, u := range f.side.uses(r.caller, r) {
			usage := byGrant[u.Grant]
			if usage == nil {
				usage = &GrantUsage{used: map[string]bool{}}
				byGrant[u.Grant] = usage
			}
			if !counted[u.Grant] {
				usage.count(r)
			}
			usage.mark(&u, r)
			counted[u.Grant] = true
			needed[[2]string{r.caller, u.Role}] = true
		}
	}
	unknown := !f.recordsVerifications(log)
	for _, role := range f.rolesByLine() {
		for _, g := range f.side.roles[role] {
			u.Grants = append(u.Grants, f.grantUsage(&g, byGrant[g.Grant], unknown))
		}
		u.Grants = append(u.Grants, f.exchangeUsage(role)...)
	}
	for i, caller := range f.config.Callers {
		for j, role := range caller.Roles {
			onlyUnknown := unknown && slices.ContainsFunc(f.side.roles[role], func(g grant) bool { return g.verify != nil })
			onlyUnknown = onlyUnknown || len(f.side.cfg.Roles[role].Exchange) > 0
			if !needed[[2]string{caller.Name, role}] && !onlyUnknown {
				u.Roles = append(u.Roles, RoleUsage{caller.Name, role, f.line("callers", i, "roles", j), seen[caller.Name]})
			}
		}
	}
	return u
}

// count counts a recorded request.
func (u *GrantUsage) count(r *recorded) {
	u.Count += r.count
	if r.last.After(u.Last) {
		u.Last = r.last
	}
	u.Callers = appendNew(u.Callers, r.caller)
}

// mark marks the values that the request needs.
func (u *GrantUsage) mark(needed *use, r *recorded) {
	for name, values := range map[string][]string{
		"audience": needed.audiences, "resource": needed.resources, "scope": needed.scopes, "action": {string(r.action)}, "client": {r.client},
	} {
		for _, value := range values {
			u.used[name+" "+value] = true
		}
	}
}

// recordsVerifications reports whether the log has accepted verifications, or would have
// them with this file.
func (f *File) recordsVerifications(log *Log) bool {
	if c := f.config.Audit; c != nil && c.Verifications == "all" {
		return true
	}
	return slices.ContainsFunc(log.order, func(r *recorded) bool { return r.outcome == audit.Active })
}

func (f *File) rolesByLine() []string {
	roles := union(f.config.Roles)
	slices.SortStableFunc(roles, func(a, b string) int { return f.config.Line("roles", a) - f.config.Line("roles", b) })
	return roles
}

func (f *File) grantUsage(g *grant, use *GrantUsage, unknown bool) GrantUsage {
	var result GrantUsage
	if use != nil {
		result = *use
	}
	result.Role, result.Kind, result.Line, result.Grant = g.Role, g.Kind, f.place(g.Grant), g.describe()
	result.Unknown = result.Count == 0 && g.verify != nil && unknown
	slices.Sort(result.Callers)
	if result.Count == 0 {
		return result
	}
	unused := func(name string, values []string) {
		for _, value := range values {
			if value != policy.Any && !result.used[name+" "+value] {
				result.Unused = append(result.Unused, name+" "+value)
			}
		}
	}
	switch {
	case g.get != nil:
		unused("audience", g.get.Audiences)
		unused("resource", g.get.Resources)
		unused("scope", g.get.Scopes)
	case g.verify != nil:
		unused("audience", g.verify.Audiences)
	case g.admin != nil:
		for _, action := range g.admin.Actions {
			unused("action", []string{string(action)})
		}
		if !result.used["client "] { // actions without a client
			unused("client", g.admin.Clients)
		}
	}
	return result
}

// describe describes a grant in the words of the file.
func (g *grant) describe() string {
	var words []string
	add := func(name string, values []string) {
		if len(values) > 0 {
			words = append(words, name+" "+strings.Join(values, ", "))
		}
	}
	switch {
	case g.get != nil:
		words = append(words, "get client "+g.get.Client)
		add("audiences", g.get.Audiences)
		add("resources", g.get.Resources)
		add("scopes", g.get.Scopes)
	case g.verify != nil:
		words = append(words, "verify issuer "+g.verify.Issuer)
		add("audiences", g.verify.Audiences)
	default:
		actions := make([]string, len(g.admin.Actions))
		for i, action := range g.admin.Actions {
			actions[i] = string(action)
		}
		words = append(words, "admin "+strings.Join(actions, ", "))
		add("clients", g.admin.Clients)
	}
	return strings.Join(words, "; ")
}
