package policyreview

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/gatewayconf"
)

// File is a configuration file under review.
type File struct {
	Name   string
	config *config.Config
	side   *side
}

// Load reads a configuration file. The error is a [*config.Error].
func Load(name string) (*File, error) {
	cfg, err := config.Load(name)
	if err != nil {
		return nil, err
	}
	return NewFile(name, cfg), nil
}

// NewFile returns a File with a configuration.
func NewFile(name string, cfg *config.Config) *File {
	return &File{Name: name, config: cfg, side: newSide(cfg.PolicyConfig())}
}

// place returns the file and the line of a grant.
func (f *File) place(g Grant) string {
	return f.line("roles", g.Role, string(g.Kind), g.Index)
}

// line returns the file and the line of a key.
func (f *File) line(keys ...any) string {
	return fmt.Sprintf("%s:%d", f.Name, f.config.Line(keys...))
}

// Setting is a difference outside the roles that changes which requests are allowed, or
// the caller that makes them.
type Setting struct {
	Key    string `json:"key"`
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}

// Comparison has the differences between two files.
type Comparison struct {
	Identities  []Identity
	Permissions []Difference
	Settings    []Setting

	old, updated *File
	pairs        []pair
}

// Compare compares the permissions in two files.
func Compare(old, updated *File) *Comparison {
	c := &Comparison{old: old, updated: updated, pairs: pairs(old.side, updated.side)}
	c.Identities = compareIdentities(old.side, updated.side, c.pairs)
	c.Permissions = compare(old.side, updated.side, c.pairs)
	for i := range c.Permissions {
		d := &c.Permissions[i]
		from := old
		if d.Effect == Gain {
			from = updated
		}
		for _, g := range d.Grants {
			d.Lines = appendNew(d.Lines, from.place(g))
		}
	}
	c.Settings = slices.Concat(compareBound(old.config, updated.config), compareRules(old.config, updated.config), compareUpstreams(old.config, updated.config))
	return c
}

// Equal reports whether no difference was found.
func (c *Comparison) Equal() bool {
	return len(c.Identities)+len(c.Permissions)+len(c.Settings) == 0
}

func compareBound(old, updated *config.Config) []Setting {
	var found []Setting
	before, after := old.Bound(), updated.Bound()
	for _, key := range union(before, after) {
		if before[key] != after[key] {
			found = append(found, Setting{key, before[key], after[key]})
		}
	}
	return found
}

// compareRules compares the requirements of Envoy's requests.
func compareRules(old, updated *config.Config) []Setting {
	before, after := old.Gateways.ExtAuthz, updated.Gateways.ExtAuthz
	switch {
	case before == nil && after == nil:
		return nil
	case before == nil || after == nil:
		return []Setting{{"gateways.ext_authz", served(before), served(after)}}
	case reflect.DeepEqual(before.Rules, after.Rules):
		return nil
	}
	const key = "gateways.ext_authz.rules"
	if len(before.Rules) == 0 || len(after.Rules) == 0 {
		return []Setting{{key, counted(before.Rules), counted(after.Rules)}}
	}
	found := changedRules(&old.Gateways, &updated.Gateways)
	if a, b := commonOrder(before.Rules, after.Rules), commonOrder(after.Rules, before.Rules); !slices.Equal(a, b) {
		found = append(found, Setting{key + ", the order", strings.Join(a, "; "), strings.Join(b, "; ")})
	}
	return found
}

func served(c *gatewayconf.ExtAuthz) string {
	if c == nil {
		return "not served"
	}
	return counted(c.Rules)
}

func counted(rules []gatewayconf.GatewayRule) string {
	if len(rules) == 0 {
		return "no rules: each token must be for an audience of its issuer"
	}
	return count(len(rules), "rule", "rules") + ": a request without a matching rule is denied"
}

// changedRules compares the rules for the same requests.
func changedRules(before, after *gatewayconf.Gateways) []Setting {
	needs := func(g *gatewayconf.Gateways) map[string]string {
		byRequests, rules := map[string]string{}, g.ExtAuthz.Rules
		for i := range rules {
			if name := requests(&rules[i]); byRequests[name] == "" { // the first rule counts
				byRequests[name] = needed(&rules[i], g.Upstream[rules[i].Upstream])
			}
		}
		return byRequests
	}
	a, b := needs(before), needs(after)
	var found []Setting
	for _, name := range union(a, b) {
		if a[name] != b[name] {
			found = append(found, Setting{"gateway rule for " + name, a[name], b[name]})
		}
	}
	return found
}

// requests describes the requests that a rule matches.
func requests(r *gatewayconf.GatewayRule) string {
	host, path := strings.ToLower(r.Host), r.Path
	if host == "" {
		host = "any host"
	}
	if path == "" {
		path = ", any path"
	}
	if r.IgnoreCase {
		path = strings.ToLower(path) + " in any case"
	}
	return host + path
}

// needed describes the requirements of a rule and its upstream entry, which is zero if there
// is none.
func needed(r *gatewayconf.GatewayRule, upstream gatewayconf.Upstream) string {
	if upstream.Unverified() {
		return "no token; upstream token " + r.Upstream
	}
	text := "audiences " + strings.Join(sorted(r.Audiences), ", ")
	if len(r.Audiences) == 0 {
		text = "the issuer's audiences"
	}
	if len(r.Scopes) > 0 {
		text += "; scopes " + strings.Join(sorted(r.Scopes), ", ")
	}
	if r.Issuer != "" {
		text += "; issuer " + r.Issuer
	}
	if r.Upstream != "" {
		text += "; upstream token " + r.Upstream
	}
	return text
}

// commonOrder returns what those rules match that both lists have, in the order of the
// first list.
func commonOrder(rules, others []gatewayconf.GatewayRule) []string {
	var names []string
	for i := range rules {
		name := requests(&rules[i])
		if slices.ContainsFunc(others, func(r gatewayconf.GatewayRule) bool { return requests(&r) == name }) {
			names = appendNew(names, name)
		}
	}
	return names
}
