// Package policyreview explains the permissions in a configuration, compares those of two,
// and judges the requests in an audit log by a configuration. All decisions come from package policy:
// this package chooses the requests that it submits, and describes the results.
package policyreview

import (
	"maps"
	"slices"

	"github.com/cezzis/tokenbroker/internal/policy"
)

// side is a configuration under review.
type side struct {
	cfg    policy.Config
	policy *policy.Policy
	// roles has the grants of each role.
	roles   map[string][]grant
	callers map[string]policy.CallerConfig
}

// Kind is the kind of a grant, named as in the configuration.
type Kind string

// The kinds.
const (
	Get    Kind = "get"
	Verify Kind = "verify"
	Admin  Kind = "admin"
)

// Grant identifies a grant of a role: the item with this index in the list of its kind.
type Grant struct {
	Role  string
	Kind  Kind
	Index int
}

// grant is a grant that can decide alone. Exactly one of the pointers is set.
type grant struct {
	Grant
	get    *policy.GetGrant
	verify *policy.VerifyGrant
	admin  *policy.AdminGrant
	// alone is a caller that has this grant only.
	alone *policy.Caller
}

func newSide(cfg policy.Config) *side {
	s := &side{cfg: cfg, policy: policy.New(cfg), roles: map[string][]grant{}, callers: map[string]policy.CallerConfig{}}
	for _, caller := range cfg.Callers {
		s.callers[caller.Name] = caller
	}
	for name, role := range cfg.Roles {
		for i := range role.Get {
			s.addGrant(grant{Grant: Grant{name, Get, i}, get: &role.Get[i]})
		}
		for i := range role.Verify {
			s.addGrant(grant{Grant: Grant{name, Verify, i}, verify: &role.Verify[i]})
		}
		for i := range role.Admin {
			s.addGrant(grant{Grant: Grant{name, Admin, i}, admin: &role.Admin[i]})
		}
	}
	return s
}

func (s *side) addGrant(g grant) {
	var role policy.Role
	switch {
	case g.get != nil:
		role.Get = []policy.GetGrant{*g.get}
	case g.verify != nil:
		role.Verify = []policy.VerifyGrant{*g.verify}
	default:
		role.Admin = []policy.AdminGrant{*g.admin}
	}
	g.alone = policy.New(policy.Config{
		Callers: []policy.CallerConfig{{Name: g.Role, Roles: []string{g.Role}}},
		Roles:   map[string]policy.Role{g.Role: role},
		Clients: s.cfg.Clients, Issuers: s.cfg.Issuers,
	}).Named(g.Role)
	s.roles[g.Role] = append(s.roles[g.Role], g)
}

// grantsOf returns the grants of a caller in the order in which the policy considers
// them.
func (s *side) grantsOf(caller string) []grant {
	var all []grant
	for _, role := range s.callers[caller].Roles {
		all = append(all, s.roles[role]...)
	}
	return all
}

// ask is a request for a token as a caller makes it: the client's defaults stand for
// empty fields.
type ask struct {
	client, audience  string
	resources, scopes []string
}

// outcome is the decision about an ask.
type outcome struct {
	allowed bool
	// request has the defaults filled in, with the scopes that the IdP is asked for.
	request policy.Request
	// received: the caller may have the token if the IdP grants those scopes.
	received bool
}

// token decides about a request for a token as the broker does.
func (s *side) token(caller *policy.Caller, a ask) outcome {
	defaults, ok := s.cfg.Clients[a.client]
	if !ok {
		return outcome{}
	}
	req := fill(a, defaults)
	scopes, ok := caller.Resolve(req)
	if !ok {
		return outcome{}
	}
	req.Scopes, req.Narrow = scopes, false
	return outcome{allowed: true, request: req, received: caller.MayReceive(req, scopes)}
}

func fill(a ask, defaults policy.Defaults) policy.Request {
	req := policy.Request{Client: a.client, Audience: a.audience, Resources: a.resources, Scopes: sorted(a.scopes)}
	if req.Audience == "" {
		req.Audience = defaults.Audience
	}
	if len(req.Resources) == 0 {
		req.Resources = defaults.Resources
	}
	if len(req.Scopes) == 0 {
		req.Scopes, req.Narrow = sorted(defaults.Scopes), true
	}
	return req
}

// mayVerify returns the audiences for which the caller may verify tokens of an issuer, as
// a set, and those that apply if a request names none.
func (s *side) mayVerify(caller *policy.Caller, issuer string) (permitted set, byDefault []string, ok bool) {
	issuers, ok := caller.MayVerify()
	audiences, has := issuers[issuer]
	if !ok || !has {
		return set{}, nil, false
	}
	permitted = set{all: audiences == nil, values: audiences}
	return permitted, permitted.filter(sorted(s.cfg.Issuers[issuer])), true
}

// mayDo decides about an admin action as the broker does. Whoever may list any client may
// list clients.
func (s *side) mayDo(caller *policy.Caller, action policy.Action, client string) bool {
	switch action {
	case policy.ListClients:
		for name := range s.cfg.Clients {
			if caller.MayDo(action, name) {
				return true
			}
		}
		return caller.MayDo(action, "")
	case policy.GetClient:
		if _, ok := s.cfg.Clients[client]; !ok {
			return false
		}
	default:
	}
	return caller.MayDo(action, client)
}

// set is a set of values, or the set of all values.
type set struct {
	all    bool
	values []string // sorted
}

// newSet returns the values that a grant lists, or the configured ones if it lists none.
func newSet(granted, configured []string) set {
	switch {
	case slices.Contains(granted, policy.Any):
		return set{all: true}
	case len(granted) == 0:
		return set{values: sorted(configured)}
	default:
		return set{values: sorted(granted)}
	}
}

func (s set) has(value string) bool {
	if s.all {
		return true
	}
	_, ok := slices.BinarySearch(s.values, value)
	return ok
}

// filter returns the values that are in the set.
func (s set) filter(values []string) []string {
	return slices.DeleteFunc(slices.Clone(values), func(v string) bool { return !s.has(v) })
}

// sorted returns the values sorted and without duplicates.
func sorted(values []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(values)))
}

// union returns the sorted keys of several maps.
func union[V any](maps_ ...map[string]V) []string {
	keys := map[string]bool{}
	for _, m := range maps_ {
		for key := range m {
			keys[key] = true
		}
	}
	return slices.Sorted(maps.Keys(keys))
}
