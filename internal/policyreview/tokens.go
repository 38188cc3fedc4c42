package policyreview

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cezzis/tokenbroker/internal/policy"
)

// Other stands for every value that neither configuration names.
const Other = "any other"

// box is what one grant allows: one of the audiences, with some of the resources and
// some of the scopes.
type box struct {
	grant                        Grant
	audiences, resources, scopes set
}

// half is one side of a comparison of one caller's tokens of one client.
type half struct {
	side     *side
	caller   *policy.Caller
	defaults policy.Defaults
	boxes    []box
}

func newHalf(s *side, caller, client string) *half {
	h := &half{side: s, caller: s.policy.Named(caller), defaults: s.cfg.Clients[client]}
	if _, ok := s.cfg.Clients[client]; !ok || h.defaults.Exchanges {
		return h // get grants give no tokens of a client that exchanges
	}
	audience := []string{h.defaults.Audience}
	if h.defaults.Audience == "" {
		audience = nil
	}
	for _, g := range s.grantsOf(caller) {
		if g.get != nil && (g.get.Client == client || g.get.Client == policy.Any) {
			h.boxes = append(h.boxes, box{
				g.Grant, newSet(g.get.Audiences, audience), newSet(g.get.Resources, h.defaults.Resources), newSet(g.get.Scopes, h.defaults.Scopes),
			})
		}
	}
	return h
}

// admits reports whether one grant allows an explicit request. Without scopes, it reports
// whether one grant allows the audience and the resources.
func (h *half) admits(client, audience string, resources, scopes []string) bool {
	_, ok := h.caller.Resolve(policy.Request{Client: client, Audience: audience, Resources: resources, Scopes: scopes})
	return ok
}

// tokenComparison compares the tokens of one client that a caller may get.
//
// There are infinitely many requests, but few need a decision. A grant allows every
// part of the largest request that it allows, so a grant of one configuration allows
// nothing that the other one denies if the other one allows these largest requests,
// one for each audience. A value that no configuration names stands for all such values.
// A request without scopes gets those of the best grant that allows its target; if two
// configurations differ in the best grant for a target, they also differ for the largest
// target that both of these grants allow.
type tokenComparison struct {
	caller, client               string
	old, updated                 *half
	audiences, resources, scopes []string // all that are named, and Other
}

func compareTokens(caller, client string, old, updated *half) []Difference {
	c := &tokenComparison{caller: caller, client: client, old: old, updated: updated}
	c.collect()
	found := slices.Concat(c.explicit(old, updated, Loss), c.explicit(updated, old, Gain))
	return append(found, c.omitted()...)
}

func (c *tokenComparison) collect() {
	for _, h := range []*half{c.old, c.updated} {
		for _, b := range h.boxes {
			c.audiences, c.resources, c.scopes = append(c.audiences, b.audiences.values...), append(c.resources, b.resources.values...), append(c.scopes, b.scopes.values...)
		}
		c.resources, c.scopes = append(c.resources, h.defaults.Resources...), append(c.scopes, h.defaults.Scopes...)
		if h.defaults.Audience != "" {
			c.audiences = append(c.audiences, h.defaults.Audience)
		}
	}
	c.audiences, c.resources, c.scopes = sorted(append(c.audiences, Other)), sorted(append(c.resources, Other)), sorted(append(c.scopes, Other))
}

// expand returns the values of a set, or all values of the comparison.
func expand(s set, all []string) []string {
	if s.all {
		return all
	}
	return s.values
}

// part is the smallest part of a request that one side allows and the other one does not.
type part struct {
	kind              string // audience, resources or scopes
	audience          string
	resources, scopes []string
	// together: the values are allowed one by one, but not in one request.
	together bool
	grant    Grant
}

// explicit returns what requests without omissions lose on the way from one half to the
// other.
func (c *tokenComparison) explicit(from, to *half, effect Effect) []Difference {
	if !to.caller.HasGrant(c.client) {
		return c.everything(from, effect)
	}
	var parts []part
	for _, b := range from.boxes {
		resources, scopes := expand(b.resources, c.resources), expand(b.scopes, c.scopes)
		audiences := expand(b.audiences, c.audiences)
		if len(audiences) == 0 {
			audiences = []string{""}
		}
		for _, audience := range audiences {
			if !to.admits(c.client, audience, resources, scopes) {
				parts = append(parts, c.minimize(to, part{audience: audience, resources: resources, scopes: scopes, grant: b.grant})...)
			}
		}
	}
	return c.group(parts, from, effect)
}

// everything describes the loss of each grant.
func (c *tokenComparison) everything(from *half, effect Effect) []Difference {
	var all []Difference
	for _, b := range from.boxes {
		all = append(all, Difference{
			Effect: effect, Caller: c.caller, Kind: Get, Client: c.client, Whole: true, Grants: []Grant{b.grant},
			Audiences: b.audiences.list(), Resources: b.resources.list(), Scopes: b.scopes.list(),
		})
	}
	return all
}

// list returns the values for people: "*" for all.
func (s set) list() []string {
	if s.all {
		return []string{policy.Any}
	}
	return s.values
}

// minimize returns the parts of a denied request that are denied already.
func (c *tokenComparison) minimize(to *half, p part) []part {
	switch {
	case !to.admits(c.client, p.audience, nil, nil):
		p.kind, p.resources, p.scopes = "audience", nil, nil
		return []part{p}
	case !to.admits(c.client, p.audience, p.resources, nil):
		p.kind, p.scopes = "resources", nil
		return singles(p, p.resources, func(p *part, values []string) { p.resources = values },
			func(one []string) bool { return to.admits(c.client, p.audience, one, nil) })
	}
	p.kind = "scopes"
	denied := singles(p, p.scopes, func(p *part, values []string) { p.scopes = values },
		func(one []string) bool { return to.admits(c.client, p.audience, p.resources, one) })
	for i := range denied {
		if !to.admits(c.client, p.audience, nil, denied[i].scopes) {
			denied[i].resources = nil
		}
	}
	return denied
}

// singles returns a part for each denied value, or the part itself if all values are
// allowed alone.
func singles(p part, values []string, set func(*part, []string), allowed func(one []string) bool) []part {
	var denied []part
	for _, value := range values {
		if one := []string{value}; !allowed(one) {
			single := p
			set(&single, one)
			denied = append(denied, single)
		}
	}
	if len(denied) == 0 {
		p.together = true
		return []part{p}
	}
	return denied
}

// group merges parts that differ in the audience or in one value only.
func (c *tokenComparison) group(parts []part, from *half, effect Effect) []Difference {
	var all []string // audiences
	for _, b := range from.boxes {
		all = append(all, expand(b.audiences, c.audiences)...)
	}
	all = sorted(all)
	byValue := newOrdered[Difference]()
	for _, p := range parts {
		d := byValue.at(fmt.Sprintf("%s %t %q %q", p.kind, p.together, p.resources, p.scopes))
		d.Together, d.Resources, d.Scopes, d.kind = p.together, p.resources, p.scopes, p.kind
		if p.audience != "" {
			d.Audiences = appendNew(d.Audiences, p.audience)
		}
		d.Grants = appendNew(d.Grants, p.grant)
	}
	merged := newOrdered[Difference]()
	for _, one := range byValue.values() {
		if one.Audiences = sorted(one.Audiences); one.kind != "audience" && slices.Equal(one.Audiences, all) {
			one.Audiences = nil
		}
		key := fmt.Sprintf("%s %q", one.kind, one.Audiences)
		switch {
		case one.Together:
			key += fmt.Sprintf(" %q %q", one.Resources, one.Scopes)
		case one.kind == "scopes":
			key += fmt.Sprintf(" %q", one.Resources)
		}
		d := merged.at(key)
		resources, scopes, grants := appendNew(d.Resources, one.Resources...), appendNew(d.Scopes, one.Scopes...), appendNew(d.Grants, one.Grants...)
		*d = *one
		d.Effect, d.Caller, d.Kind, d.Client = effect, c.caller, Get, c.client
		d.Resources, d.Scopes, d.Grants = resources, scopes, grants
	}
	var found []Difference
	for _, d := range merged.values() {
		found = append(found, *d)
	}
	return found
}

// omitted compares requests that leave out the audience, the resources or the scopes, so
// that the client's defaults apply. Differences of explicit requests are not repeated.
func (c *tokenComparison) omitted() []Difference {
	groups := newOrdered[Difference]()
	tried := map[string]map[string]bool{} // audiences by key of group
	for _, a := range c.asks() {
		before, after := c.old.side.token(c.old.caller, a), c.updated.side.token(c.updated.caller, a)
		d, ok := c.compareOmitted(a, before, after)
		if !ok {
			continue
		}
		key := fmt.Sprintf("%v %q %q %q", d.Effect, d.Omits, d.Before, d.After)
		group := groups.at(key)
		if tried[key] == nil {
			tried[key] = map[string]bool{}
			*group = d
		}
		if a.audience != "" {
			tried[key][a.audience] = true
		}
	}
	var found []Difference
	for key, d := range groups.all() {
		if d.Audiences = slices.Sorted(maps.Keys(tried[key])); c.allAudiences(d.Audiences) {
			d.Audiences = nil
		}
		found = append(found, *d)
	}
	return found
}

// allAudiences reports whether a list has all audiences that the caller may request.
func (c *tokenComparison) allAudiences(list []string) bool {
	var all []string
	for _, h := range []*half{c.old, c.updated} {
		for _, b := range h.boxes {
			all = append(all, expand(b.audiences, c.audiences)...)
		}
	}
	return slices.Equal(sorted(all), list)
}

// asks returns the requests with omissions that have to be compared.
func (c *tokenComparison) asks() []ask {
	audiences := slices.Clone(c.audiences)
	if c.old.defaults.Audience != c.updated.defaults.Audience || c.old.defaults.Audience == "" {
		audiences = append(audiences, "")
	}
	type pair struct{ resources, scopes []string }
	pairs := map[string]pair{}
	add := func(resources, scopes []string) {
		pairs[fmt.Sprintf("%q %q", resources, scopes)] = pair{resources, scopes}
	}
	for _, t := range c.tops() {
		add(t.resources, t.scopes)
		add(t.resources, nil)
		add(nil, t.scopes)
	}
	add(nil, nil)
	var asks []ask
	for _, audience := range audiences {
		for _, key := range slices.Sorted(maps.Keys(pairs)) {
			if p := pairs[key]; audience == "" || len(p.resources) == 0 || len(p.scopes) == 0 {
				asks = append(asks, ask{c.client, audience, p.resources, p.scopes})
			}
		}
	}
	return asks
}

// top is the largest target and the most scopes that a grant allows, or a grant of each
// configuration.
type top struct{ resources, scopes []string }

func (c *tokenComparison) tops() []top {
	of := func(h *half) (tops []top) {
		for _, b := range h.boxes {
			tops = append(tops, top{expand(b.resources, c.resources), expand(b.scopes, c.scopes)})
		}
		return tops
	}
	olds, updateds := of(c.old), of(c.updated)
	tops := slices.Concat(olds, updateds)
	for _, o := range olds {
		for _, u := range updateds {
			tops = append(tops, top{set{values: o.resources}.filter(u.resources), set{values: o.scopes}.filter(u.scopes)})
		}
	}
	return tops
}

// compareOmitted describes the difference between two outcomes of a request.
func (c *tokenComparison) compareOmitted(a ask, before, after outcome) (Difference, bool) {
	d := Difference{Effect: Change, Caller: c.caller, Kind: Get, Client: c.client, Omits: c.omits(a, before, after)}
	d.Before, d.After = before.describe(d.Omits), after.describe(d.Omits)
	was, is := before.allowed && before.received, after.allowed && after.received
	switch {
	case before.allowed && !after.allowed:
		d.Effect = Loss
		return d, c.updated.allowsExplicitly(before)
	case after.allowed && !before.allowed:
		d.Effect = Gain
		return d, c.old.allowsExplicitly(after)
	case was && !is:
		d.Effect = Loss
		return d, true
	case is && !was:
		d.Effect = Gain
		return d, true
	default:
		return d, d.Before != d.After
	}
}

// omits names the omitted fields that make a difference.
func (c *tokenComparison) omits(a ask, before, after outcome) (names []string) {
	old, updated := c.old.defaults, c.updated.defaults
	if a.audience == "" && old.Audience != updated.Audience {
		names = append(names, "audience")
	}
	if len(a.resources) == 0 && !slices.Equal(sorted(old.Resources), sorted(updated.Resources)) {
		names = append(names, "resources")
	}
	otherScopes := before.allowed && after.allowed && !slices.Equal(before.request.Scopes, after.request.Scopes)
	if len(a.scopes) == 0 && (otherScopes || len(names) == 0 || !slices.Equal(sorted(old.Scopes), sorted(updated.Scopes))) {
		names = append(names, "scopes")
	}
	return names
}

// allowsExplicitly reports whether a half allows the request of an outcome of the other
// half when nothing is omitted. Otherwise the difference was found among the explicit
// requests.
func (h *half) allowsExplicitly(o outcome) bool {
	return h.admits(o.request.Client, o.request.Audience, o.request.Resources, o.request.Scopes)
}

// describe describes the values that stand for the omitted fields.
func (o outcome) describe(omits []string) string {
	if !o.allowed {
		return "denied"
	}
	var words []string
	if slices.Contains(omits, "audience") {
		words = append(words, "audience "+orNone(o.request.Audience))
	}
	if slices.Contains(omits, "resources") {
		words = append(words, "resources "+orNone(strings.Join(sorted(o.request.Resources), ", ")))
	}
	if slices.Contains(omits, "scopes") {
		words = append(words, "scopes "+orNone(strings.Join(o.request.Scopes, ", ")))
	}
	if !o.received {
		words = append(words, "denied unless the IdP names the granted scopes")
	}
	return strings.Join(words, "; ")
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}

// ordered is a map that keeps the order of its keys.
type ordered[V any] struct {
	keys []string
	byID map[string]*V
}

func newOrdered[V any]() *ordered[V] { return &ordered[V]{byID: map[string]*V{}} }

// at returns the value of a key, which is zero at first.
func (o *ordered[V]) at(key string) *V {
	if o.byID[key] == nil {
		o.keys = append(o.keys, key)
		o.byID[key] = new(V)
	}
	return o.byID[key]
}

func (o *ordered[V]) values() []*V {
	values := make([]*V, len(o.keys))
	for i, key := range o.keys {
		values[i] = o.byID[key]
	}
	return values
}

func (o *ordered[V]) all() func(yield func(string, *V) bool) {
	return func(yield func(string, *V) bool) {
		for _, key := range o.keys {
			if !yield(key, o.byID[key]) {
				return
			}
		}
	}
}

// appendNew appends the values that the list does not have.
func appendNew[V comparable](list []V, values ...V) []V {
	for _, value := range values {
		if !slices.Contains(list, value) {
			list = append(list, value)
		}
	}
	return list
}
