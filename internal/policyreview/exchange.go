package policyreview

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cezzis/tokenbroker/internal/policy"
)

// Exchange is the kind of the grants for tokens on behalf of users.
const Exchange Kind = "exchange"

// userToken is a token of a user, as far as exchange grants distinguish such tokens. A grant
// that admits a token for several audiences admits it for one of them, and a grant that
// admits a token also admits it with only the scopes that the grant requires. So the
// tokens that single grants describe show all differences.
type userToken struct {
	issuer, audience string
	scopes           []string
}

func (t *userToken) String() string {
	text := fmt.Sprintf("issuer %s for %s", t.issuer, t.audience)
	if len(t.scopes) > 0 {
		text += " with scopes " + strings.Join(t.scopes, ", ")
	}
	return text
}

func (t *userToken) admittedBy(g *policy.ExchangeGrant) bool {
	return slices.Contains(g.From.Issuers, t.issuer) && slices.Contains(g.From.Audiences, t.audience) &&
		!slices.ContainsFunc(g.From.Scopes, func(scope string) bool { return !slices.Contains(t.scopes, scope) })
}

// userTokens returns the tokens that the grants of a caller describe, by their texts.
func (s *side) userTokens(caller string, into map[string]userToken) {
	for _, role := range s.callers[caller].Roles {
		for _, g := range s.cfg.Roles[role].Exchange {
			for _, issuer := range g.From.Issuers {
				for _, audience := range g.From.Audiences {
					t := userToken{issuer, audience, sorted(g.From.Scopes)}
					into[t.String()] = t
				}
			}
		}
	}
}

// admitting returns a side in which the exchange grants that admit a token of a user are
// get grants, so that their targets can be compared like those of get grants.
func (s *side) admitting(t *userToken) *side {
	cfg := policy.Config{Callers: s.cfg.Callers, Roles: map[string]policy.Role{}, Clients: map[string]policy.Defaults{}}
	for name, defaults := range s.cfg.Clients {
		if defaults.Exchanges {
			defaults.Exchanges = false
			cfg.Clients[name] = defaults
		}
	}
	places := map[Grant]int{} // of the exchange grants in the file
	for name, role := range s.cfg.Roles {
		var targets policy.Role
		for i, g := range role.Exchange {
			if t.admittedBy(&g) {
				places[Grant{name, Get, len(targets.Get)}] = i
				targets.Get = append(targets.Get, policy.GetGrant{Client: g.Client, Audiences: g.Audiences, Resources: g.Resources, Scopes: g.Scopes})
			}
		}
		cfg.Roles[name] = targets
	}
	admitting := newSide(cfg)
	for role, grants := range admitting.roles {
		for i := range grants {
			grants[i].Grant = Grant{role, Exchange, places[grants[i].Grant]}
		}
	}
	return admitting
}

// exchanges compares the tokens on behalf of users that a caller may get. Equal differences
// for several tokens of users become one.
func (c *comparison) exchanges(p pair, name string) {
	tokens := map[string]userToken{}
	c.old.userTokens(p.old, tokens)
	c.updated.userTokens(p.updated, tokens)
	begin := len(c.found)
	for _, text := range union(tokens) {
		t := tokens[text]
		old, updated := c.old.admitting(&t), c.updated.admitting(&t)
		for _, client := range union(old.cfg.Clients, updated.cfg.Clients) {
			for _, d := range compareTokens(name, client, newHalf(old, p.old, client), newHalf(updated, p.updated, client)) {
				d.Kind = Exchange
				c.addExchange(begin, d, text)
			}
		}
	}
}

func (c *comparison) addExchange(begin int, d Difference, token string) {
	for i := begin; i < len(c.found); i++ {
		known := &c.found[i]
		if known.Effect == d.Effect && known.withoutTokens() == d.String() {
			known.UserTokens, known.Grants = append(known.UserTokens, token), appendNew(known.Grants, d.Grants...)
			return
		}
	}
	d.UserTokens = []string{token}
	c.found = append(c.found, d)
}

func (d *Difference) withoutTokens() string {
	other := *d
	other.UserTokens = nil
	return other.String()
}

// exchangeUsage returns the exchange grants of a role. Whether requests needed them is
// unknown: the log does not have the audiences of the tokens of users.
func (f *File) exchangeUsage(role string) (list []GrantUsage) {
	for i, g := range f.side.cfg.Roles[role].Exchange {
		words := []string{"exchange client " + g.Client, "from issuers " + strings.Join(g.From.Issuers, ", "), "for audiences " + strings.Join(g.From.Audiences, ", ")}
		list = append(list, GrantUsage{Role: role, Kind: Exchange, Line: f.place(Grant{role, Exchange, i}), Grant: strings.Join(words, "; "), Unknown: true})
	}
	return list
}
