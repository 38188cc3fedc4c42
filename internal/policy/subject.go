package policy

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
)

// Claim is a requirement on a claim of a JWT.
type Claim struct {
	// Path are the names of the members that lead to the claim, the outermost first.
	Path []string
	// Value is what the claim must be, if it is a string, or what one of its items must
	// be, if it is a list. At the end, "*" after ':' or '/' stands for any rest.
	Value string
}

// subjects are the callers whose JWTs are of one issuer.
type subjects struct {
	exact    map[string]*Caller
	patterns []pattern // the longest first
	// claiming are the callers that are recognised by claims, by their exact subject;
	// those with a pattern or without a subject are under "".
	claiming map[string][]claiming
}

// claiming is a caller that is recognised by claims.
type claiming struct {
	subject pattern // of all subjects if its prefix is empty
	claims  []Claim
	caller  *Caller
}

// matches are the callers that an identity fits equally well. Usually it is one.
type matches struct {
	one    *Caller
	others []*Caller
}

func (m *matches) add(c *Caller) {
	switch {
	case c == nil || c == m.one || slices.Contains(m.others, c):
	case m.one == nil:
		m.one = c
	default:
		m.others = append(m.others, c)
	}
}

// the returns the caller; nil: there is none, or more than one.
func (m *matches) the() *Caller {
	if len(m.others) > 0 {
		return nil
	}
	return m.one
}

func (p *Policy) admitSubject(m Match, c *Caller) {
	known := p.subjects[m.Issuer]
	if known == nil {
		known = &subjects{exact: map[string]*Caller{}, claiming: map[string][]claiming{}}
		p.subjects[m.Issuer] = known
	}
	prefix, wild := strings.CutSuffix(m.Subject, Any)
	rest := pattern{prefix, strings.Contains(prefix, "://"), c}
	switch {
	case len(m.Claims) > 0 && !wild:
		known.claiming[m.Subject] = append(known.claiming[m.Subject], claiming{claims: m.Claims, caller: c})
	case len(m.Claims) > 0:
		known.claiming[""] = append(known.claiming[""], claiming{rest, m.Claims, c})
	case !wild:
		known.exact[m.Subject] = c
	default:
		known.patterns = append(known.patterns, rest)
		slices.SortFunc(known.patterns, func(a, b pattern) int { return cmp.Compare(len(b.prefix), len(a.prefix)) })
	}
}

// subject returns the callers that a JWT fits. An exact subject counts more than
// everything else.
func (p *Policy) subject(id Identity) (found matches) {
	known := p.subjects[id.Issuer]
	if known == nil {
		return found
	}
	if id.Subject != "" {
		found.add(known.exact[id.Subject])
		found.addClaiming(known.claiming[id.Subject], id)
	}
	if found.one != nil {
		return found
	}
	for _, one := range known.patterns {
		if one.admits(id.Subject) {
			found.add(one.caller)
			break
		}
	}
	found.addClaiming(known.claiming[""], id)
	return found
}

func (m *matches) addClaiming(all []claiming, id Identity) {
	if len(all) == 0 {
		return
	}
	var claims map[string]json.RawMessage
	if json.Unmarshal(id.Claims, &claims) != nil {
		return
	}
	for _, one := range all {
		if one.subject.prefix != "" && !one.subject.admits(id.Subject) {
			continue
		}
		if !slices.ContainsFunc(one.claims, func(c Claim) bool { return !c.holds(claims) }) {
			m.add(one.caller)
		}
	}
}

// holds reports whether claims fulfil the requirement.
func (c *Claim) holds(claims map[string]json.RawMessage) bool {
	last := len(c.Path) - 1
	for _, name := range c.Path[:last] {
		var inner map[string]json.RawMessage
		if json.Unmarshal(claims[name], &inner) != nil {
			return false
		}
		claims = inner
	}
	var value any
	if json.Unmarshal(claims[c.Path[last]], &value) != nil {
		return false
	}
	items, isList := value.([]any)
	if !isList {
		items = []any{value}
	}
	return slices.ContainsFunc(items, c.is)
}

func (c *Claim) is(value any) bool {
	text, isText := value.(string)
	prefix, wild := strings.CutSuffix(c.Value, Any)
	if !isText || !wild {
		return isText && text == c.Value
	}
	rest := pattern{prefix: prefix, uri: strings.Contains(prefix, "://")}
	return rest.admits(text)
}
