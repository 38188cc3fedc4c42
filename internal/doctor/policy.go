package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// policy checks whether callers, roles and grants fit together and fit the clients.
func (d *doctor) policy() {
	d.add("permissions of callers", []any{"callers"}, func(_ context.Context, r *result) { r.idleCallers() })
	d.add("requests without parameters", []any{"roles"}, func(_ context.Context, r *result) { r.defaultRequests() })
	d.add("scopes of roles", []any{"roles"}, func(_ context.Context, r *result) { r.roleScopes() })
}

// idleCallers reports callers whose roles permit nothing. The file is refused if a caller
// has no role at all.
func (r *result) idleCallers() {
	all := policy.New(r.config.PolicyConfig())
	for i := range r.config.Callers {
		name := r.config.Callers[i].Name
		if !r.permitted(all.Named(name)) {
			r.reportAt(Warning, "caller-without-permission", []any{"callers", i},
				fmt.Sprintf("caller %s may do nothing: the grants of its roles name no client and no issuer that exists", name),
				"Give it a role with a grant that has an effect, or remove the caller. `broker policy explain` shows what it may do.")
		}
	}
}

func (r *result) permitted(caller *policy.Caller) bool {
	if _, ok := caller.MayVerify(); ok {
		return true
	}
	for client := range r.config.Clients {
		if caller.HasGrant(client) {
			return true
		}
	}
	return slices.ContainsFunc(policy.Actions(), func(action policy.Action) bool {
		if caller.MayDo(action, "") {
			return true
		}
		for client := range r.config.Clients {
			if caller.MayDo(action, client) {
				return true
			}
		}
		return false
	})
}

// narrow is a finding about requests that name nothing but a client.
type narrow struct {
	severity    Severity
	id, message string
	action      string
}

// defaultRequests reports grants that are narrower than the defaults of a client, so that
// a request which names nothing else is denied or gets less.
func (r *result) defaultRequests() {
	type key struct {
		narrow
		role string
		item int
	}
	all, callers := policy.New(r.config.PolicyConfig()), map[key][]string{}
	var order []key
	for i := range r.config.Callers {
		caller := &r.config.Callers[i]
		for _, client := range slices.Sorted(maps.Keys(r.config.Clients)) {
			if !all.Named(caller.Name).HasGrant(client) {
				continue
			}
			n, ok := r.narrowed(all.Named(caller.Name), client)
			if !ok {
				continue
			}
			k := key{narrow: n}
			k.role, k.item = r.grantOf(caller, client)
			if callers[k] == nil {
				order = append(order, k)
			}
			callers[k] = append(callers[k], caller.Name)
		}
	}
	for _, k := range order {
		r.reportAt(k.severity, k.id, []any{"roles", k.role, "get", k.item}, k.message+" (callers: "+list(callers[k])+")", k.action)
	}
}

// grantOf returns the first grant for the client among the roles of a caller.
func (r *result) grantOf(caller *config.Caller, client string) (role string, item int) {
	for _, role := range caller.Roles {
		i := slices.IndexFunc(r.config.Roles[role].Get, func(g config.GetGrant) bool { return g.Client == client || g.Client == policy.Any })
		if i >= 0 {
			return role, i
		}
	}
	return "", 0
}

// narrowed judges a request of a caller that names only the client.
func (r *result) narrowed(caller *policy.Caller, client string) (n narrow, ok bool) {
	defaults := r.config.Clients[client]
	req := policy.Request{
		Client: client, Audience: defaults.Audience, Resources: slices.Sorted(slices.Values(defaults.Resources)),
		Scopes: slices.Sorted(slices.Values(defaults.Scopes)), Narrow: true,
	}
	scopes, allowed := caller.Resolve(req)
	target := req
	target.Scopes = nil
	_, targetAllowed := caller.Resolve(target)
	prefix := "a request for a token of client " + client + " that names nothing else "
	switch {
	case !targetAllowed && !allowed:
		return narrow{
			Warning, "grant-narrower", prefix + "is denied: no grant allows the default audience and resources of the client",
			"Add them to the grant, or make sure that callers name an audience and resources that it allows.",
		}, true
	case !allowed:
		return narrow{
			Warning, "grant-narrower", prefix + "is denied: no grant allows any of its default scopes, which are " + list(req.Scopes),
			"Add some of them to the grant, or make sure that callers name scopes that it allows.",
		}, true
	case len(scopes) < len(req.Scopes):
		missing := slices.DeleteFunc(slices.Clone(req.Scopes), func(s string) bool { return slices.Contains(scopes, s) })
		return narrow{
			Note, "grant-narrower", prefix + "gets a token without the default scopes " + list(missing),
			"Nothing, if this is intended; else add the scopes to the grant.",
		}, true
	case len(scopes) == 0 && !caller.MayReceive(req, nil):
		return narrow{
			Note, "grant-narrower", prefix + "is denied unless the IdP names the scopes that it granted",
			"Set scopes of the client, or make sure that callers name scopes.",
		}, true
	}
	return narrow{}, false
}

// roleScopes reports scopes of grants that none of their clients has. Whether the IdP
// grants them is tried with Mint, for grants that name a client.
func (r *result) roleScopes() {
	for _, role := range slices.Sorted(maps.Keys(r.config.Roles)) {
		for i, grant := range r.config.Roles[role].Get {
			if r.Mint && grant.Client != policy.Any {
				continue
			}
			missing := slices.DeleteFunc(slices.Clone(grant.Scopes), func(scope string) bool {
				return scope == policy.Any || r.hasScope(grant.Client, scope)
			})
			if len(missing) == 0 {
				continue
			}
			subject := "client " + grant.Client + " does not have among its scopes"
			if grant.Client == policy.Any {
				subject = "no client has among its scopes"
			}
			r.reportAt(Note, "role-scope-unknown", []any{"roles", role, "get", i, "scopes"},
				fmt.Sprintf("role %s allows scopes that %s: %s", role, subject, list(missing)),
				"Correct a misspelt scope. Else --mint tries whether the IdP grants it to a client that the grant names.")
		}
	}
}

// hasScope reports whether a client, or any if the grant is for all, has a default scope.
func (r *result) hasScope(client, scope string) bool {
	for name, c := range r.config.Clients {
		if (client == policy.Any || client == name) && slices.Contains(c.Scopes, scope) {
			return true
		}
	}
	return false
}

// scopesOfRoles returns the scopes that roles allow for a client by its name.
func (d *doctor) scopesOfRoles(client string) (scopes []string) {
	for _, role := range d.config.Roles {
		for _, grant := range role.Get {
			if grant.Client == client {
				scopes = append(scopes, grant.Scopes...)
			}
		}
	}
	slices.Sort(scopes)
	return slices.DeleteFunc(slices.Compact(scopes), func(s string) bool { return s == policy.Any })
}

// list names up to eight items.
func list(items []string) string {
	const most = 8
	if len(items) <= most {
		return strings.Join(items, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(items[:most], ", "), len(items)-most)
}
