package policyreview

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/cezzis/tokenbroker/internal/policy"
)

// Effect tells what a difference means for the caller.
type Effect string

// The effects.
const (
	// Gain: some requests are allowed that were denied before.
	Gain Effect = "gain"
	// Loss: some requests are denied that were allowed before.
	Loss Effect = "loss"
	// Change: the requests are allowed, but with other values in place of omitted ones.
	Change Effect = "change"
)

// Difference is a difference between the permissions of a caller in two configurations.
// Other in a list stands for every value that neither configuration names, and "*" for
// all values.
type Difference struct {
	Effect Effect `json:"effect"`
	Caller string `json:"caller"`
	Kind   Kind   `json:"kind"`
	// Client is the client of a Get or an Exchange, and Issuer the issuer of a Verify.
	Client string `json:"client,omitempty"`
	Issuer string `json:"issuer,omitempty"`
	// UserTokens describe the tokens of users for which an Exchange differs.
	UserTokens []string `json:"user_tokens,omitempty"`
	// Whole: one side grants nothing for the client or issuer.
	Whole bool `json:"whole,omitempty"`
	// Audiences, Resources and Scopes are the values that make the difference, and the
	// values with which they make it. Empty: any value that the caller may request.
	Audiences []string `json:"audiences,omitempty"`
	Resources []string `json:"resources,omitempty"`
	Scopes    []string `json:"scopes,omitempty"`
	// Together: the values are allowed one by one, but not in one request.
	Together bool `json:"together,omitempty"`
	// Omits are the fields of a request that it leaves out, so that Before or After stands
	// for them.
	Omits  []string `json:"omits,omitempty"`
	Before string   `json:"before,omitempty"`
	After  string   `json:"after,omitempty"`
	// Actions and Clients describe an Admin. Empty Clients: all.
	Actions []string `json:"actions,omitempty"`
	Clients []string `json:"clients,omitempty"`
	// Grants are the grants that one side has, and Lines their lines in its file.
	Grants []Grant  `json:"-"`
	Lines  []string `json:"lines,omitempty"`

	kind string
}

// comparison compares the callers of two sides.
type comparison struct {
	old, updated *side
	// clients and issuers are the names of those that differ.
	clients, issuers map[string]bool
	roles            map[string]bool // by name: the role has the same grants
	// allClients and allIssuers are the names on either side, and adminClients those that
	// the clients of an admin grant may be.
	allClients, allIssuers, adminClients []string
	found                                []Difference
}

// compare returns the differences of permissions. pairs are the names of each caller in
// the two configurations.
func compare(old, updated *side, pairs []pair) []Difference {
	c := &comparison{
		old: old, updated: updated, clients: map[string]bool{}, issuers: map[string]bool{}, roles: map[string]bool{},
		allClients: union(old.cfg.Clients, updated.cfg.Clients), allIssuers: union(old.cfg.Issuers, updated.cfg.Issuers),
	}
	c.adminClients = c.clientsOfActions()
	for _, name := range c.allClients {
		a, inA := old.cfg.Clients[name]
		b, inB := updated.cfg.Clients[name]
		c.clients[name] = inA != inB || !reflect.DeepEqual(a, b)
	}
	for _, name := range c.allIssuers {
		a, inA := old.cfg.Issuers[name]
		b, inB := updated.cfg.Issuers[name]
		c.issuers[name] = inA != inB || !slices.Equal(sorted(a), sorted(b))
	}
	for _, name := range union(old.cfg.Roles, updated.cfg.Roles) {
		c.roles[name] = reflect.DeepEqual(old.cfg.Roles[name], updated.cfg.Roles[name])
	}
	for _, p := range pairs {
		c.caller(p)
	}
	return c.found
}

func (c *comparison) caller(p pair) {
	name := p.updated
	if name == "" {
		name = p.old
	}
	before, after := c.old.callers[p.old], c.updated.callers[p.updated]
	same := slices.Equal(before.Roles, after.Roles) && !slices.ContainsFunc(after.Roles, func(role string) bool { return !c.roles[role] })
	for _, client := range c.clientsOf(p) {
		if !same || c.clients[client] {
			c.found = append(c.found, compareTokens(name, client, newHalf(c.old, p.old, client), newHalf(c.updated, p.updated, client))...)
		}
	}
	if !same || slices.ContainsFunc(c.allClients, func(client string) bool { return c.clients[client] }) {
		c.exchanges(p, name)
	}
	for _, issuer := range c.allIssuers {
		if !same || c.issuers[issuer] {
			c.verify(p, name, issuer)
		}
	}
	if !same {
		c.admin(p, name)
	}
}

// verify compares the audiences for which a caller may verify tokens of an issuer.
func (c *comparison) verify(p pair, name, issuer string) {
	before, beforeDefault, was := c.old.mayVerify(c.old.policy.Named(p.old), issuer)
	after, afterDefault, is := c.updated.mayVerify(c.updated.policy.Named(p.updated), issuer)
	add := func(d Difference, effect Effect, grants []Grant) {
		d.Effect, d.Caller, d.Kind, d.Issuer, d.Grants = effect, name, Verify, issuer, grants
		c.found = append(c.found, d)
	}
	switch {
	case was && !is:
		add(Difference{Whole: true, Audiences: before.list()}, Loss, c.old.verifyGrants(p.old, issuer))
		return
	case is && !was:
		add(Difference{Whole: true, Audiences: after.list()}, Gain, c.updated.verifyGrants(p.updated, issuer))
		return
	case !was:
		return
	}
	named := sorted(slices.Concat(before.values, after.values, beforeDefault, afterDefault, []string{Other}))
	omitted := Difference{Omits: []string{"audiences"}, Before: list(beforeDefault), After: list(afterDefault)}
	lost, gained := subtract(before.filter(named), after), subtract(after.filter(named), before)
	if len(lost) > 0 {
		add(Difference{Audiences: lost}, Loss, c.old.verifyGrants(p.old, issuer))
	}
	if len(gained) > 0 {
		add(Difference{Audiences: gained}, Gain, c.updated.verifyGrants(p.updated, issuer))
	}
	if len(subtract(beforeDefault, set{values: sorted(slices.Concat(afterDefault, lost))})) > 0 {
		add(omitted, Loss, nil)
	}
	if len(subtract(afterDefault, set{values: sorted(slices.Concat(beforeDefault, gained))})) > 0 {
		add(omitted, Gain, nil)
	}
}

// list joins audiences that a verification accepts.
func list(audiences []string) string {
	if len(audiences) == 0 {
		return "denied"
	}
	return strings.Join(audiences, ", ")
}

// subtract returns the values that are not in the set.
func subtract(values []string, s set) []string {
	return slices.DeleteFunc(slices.Clone(values), s.has)
}

func (s *side) verifyGrants(caller, issuer string) []Grant {
	var grants []Grant
	for _, g := range s.grantsOf(caller) {
		if g.verify != nil && (g.verify.Issuer == issuer || g.verify.Issuer == policy.Any) {
			grants = append(grants, g.Grant)
		}
	}
	return grants
}

// clientsOf returns the clients that the grants of a caller name on either side.
func (c *comparison) clientsOf(p pair) []string {
	named := map[string]bool{}
	for _, g := range slices.Concat(c.old.grantsOf(p.old), c.updated.grantsOf(p.updated)) {
		if g.get != nil {
			named[g.get.Client] = true
		}
	}
	if named[policy.Any] {
		return c.allClients
	}
	return union(named)
}

// clientsOfActions returns the clients for which admin actions have to be compared: those
// of any grant, Other, and "" for no particular client.
func (c *comparison) clientsOfActions() []string {
	clients := append([]string{"", Other}, c.allClients...)
	for _, s := range []*side{c.old, c.updated} {
		for _, role := range s.cfg.Roles {
			for _, g := range role.Admin {
				clients = append(clients, g.Clients...)
			}
		}
	}
	return subtract(sorted(clients), set{values: []string{policy.Any}})
}

// admin compares the admin actions that a caller may perform. Actions with the same
// difference become one.
func (c *comparison) admin(p pair, name string) {
	c.adminWay(p.old, p.updated, c.old, c.updated, Loss, name)
	c.adminWay(p.updated, p.old, c.updated, c.old, Gain, name)
}

// adminWay finds the actions that are allowed on one side only.
func (c *comparison) adminWay(fromName, toName string, from, to *side, effect Effect, name string) {
	fromCaller, toCaller := from.policy.Named(fromName), to.policy.Named(toName)
	groups := newOrdered[Difference]()
	for _, action := range policy.Actions() {
		var only []string
		candidates := c.adminClients
		if clientless(action) {
			candidates = []string{""}
		}
		for _, client := range candidates {
			if fromCaller.MayDo(action, client) && !toCaller.MayDo(action, client) {
				only = append(only, client)
			}
		}
		if len(only) == 0 {
			continue
		}
		d := groups.at(fmt.Sprintf("%q", only))
		d.Effect, d.Caller, d.Kind = effect, name, Admin
		d.Actions = append(d.Actions, string(action))
		if d.Clients = nil; len(only) < len(candidates) {
			d.Clients = subtract(only, set{values: []string{""}})
		}
		for _, g := range from.grantsOf(fromName) {
			if g.admin != nil && slices.ContainsFunc(only, func(client string) bool { return g.alone.MayDo(action, client) }) {
				d.Grants = appendNew(d.Grants, g.Grant)
			}
		}
	}
	for _, d := range groups.values() {
		c.found = append(c.found, *d)
	}
}

// clientless reports whether an action concerns no particular client.
func clientless(action policy.Action) bool {
	return action == policy.RevokeTokens || action == policy.ListRevocations || action == policy.DeleteRevocation
}
