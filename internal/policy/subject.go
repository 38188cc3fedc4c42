package policy

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
)

// Claim is a requirement on a claim of a JWT.
type Claim struct {
	// Path leads to the claim through nested objects, outermost first.
	Path []string
	// Value is the required value of a string claim, or of one item of a list. A final
	// "*" after ':' or '/' stands for any rest.
	Value string
}

// subjects are the callers that are identified by JWTs of one issuer.
type subjects struct {
	exact    map[string]*Caller
	patterns []pattern // longest first
	// byClaims are the callers with required claims, by their exact subject. Those
	// with a pattern or without a subject are under "".
	byClaims map[string][]claimsMatch
}

// claimsMatch is a caller with required claims.
type claimsMatch struct {
	subject pattern // matches any subject if its prefix is empty
	claims  []Claim
	caller  *Caller
}

// matches are the callers that match an identity with the same precedence. Usually
// there is one.
type matches struct {
	first  *Caller
	others []*Caller
}

func (m *matches) add(c *Caller) {
	switch {
	case c == nil || c == m.first || slices.Contains(m.others, c):
	case m.first == nil:
		m.first = c
	default:
		m.others = append(m.others, c)
	}
}

// single returns the caller, or nil if there is none or more than one.
func (m *matches) single() *Caller {
	if len(m.others) > 0 {
		return nil
	}
	return m.first
}

func (p *Policy) addSubject(m Match, c *Caller) {
	s := p.subjects[m.Issuer]
	if s == nil {
		s = &subjects{exact: map[string]*Caller{}, byClaims: map[string][]claimsMatch{}}
		p.subjects[m.Issuer] = s
	}
	prefix, isPattern := strings.CutSuffix(m.Subject, Any)
	subject := pattern{prefix, strings.Contains(prefix, "://"), c}
	switch {
	case len(m.Claims) > 0 && !isPattern:
		s.byClaims[m.Subject] = append(s.byClaims[m.Subject], claimsMatch{claims: m.Claims, caller: c})
	case len(m.Claims) > 0:
		s.byClaims[""] = append(s.byClaims[""], claimsMatch{subject, m.Claims, c})
	case !isPattern:
		s.exact[m.Subject] = c
	default:
		s.patterns = append(s.patterns, subject)
		slices.SortFunc(s.patterns, func(a, b pattern) int { return cmp.Compare(len(b.prefix), len(a.prefix)) })
	}
}

// matchJWT returns the callers that match a JWT. An exact subject takes precedence
// over patterns and over claims without an exact subject.
func (p *Policy) matchJWT(id Identity) (m matches) {
	s := p.subjects[id.Issuer]
	if s == nil {
		return m
	}
	if id.Subject != "" {
		m.add(s.exact[id.Subject])
		m.addByClaims(s.byClaims[id.Subject], id)
	}
	if m.first != nil {
		return m
	}
	for _, pattern := range s.patterns {
		if pattern.matches(id.Subject) {
			m.add(pattern.caller)
			break
		}
	}
	m.addByClaims(s.byClaims[""], id)
	return m
}

// addByClaims adds the candidates with matching subject and claims.
func (m *matches) addByClaims(candidates []claimsMatch, id Identity) {
	if len(candidates) == 0 {
		return
	}
	var claims map[string]json.RawMessage
	if json.Unmarshal(id.Claims, &claims) != nil {
		return
	}
	for _, candidate := range candidates {
		if candidate.subject.prefix != "" && !candidate.subject.matches(id.Subject) {
			continue
		}
		if !slices.ContainsFunc(candidate.claims, func(c Claim) bool { return !c.matches(claims) }) {
			m.add(candidate.caller)
		}
	}
}

// matches reports whether claims contain the required claim.
func (c *Claim) matches(claims map[string]json.RawMessage) bool {
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
	return slices.ContainsFunc(items, c.matchesValue)
}

func (c *Claim) matchesValue(value any) bool {
	text, isText := value.(string)
	prefix, isPattern := strings.CutSuffix(c.Value, Any)
	if !isText || !isPattern {
		return isText && text == c.Value
	}
	required := pattern{prefix: prefix, uri: strings.Contains(prefix, "://")}
	return required.matches(text)
}
