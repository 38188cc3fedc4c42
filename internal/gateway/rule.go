package gateway

import (
	"strings"
	"unicode/utf8"

	"golang.org/x/text/cases"

	"github.com/cezzis/tokenbroker/internal/verify"
)

// Rule sets the requirements on the tokens of matching requests.
type Rule struct {
	// Host matches requests to a host, without port and regardless of case.
	// "*.example.com" matches all hosts below example.com, and "" any host.
	Host string
	// Path matches requests with a decoded path. A final "/" matches the path without the
	// slash and all paths below it, and "" any path.
	Path string
	// IgnoreCase matches Path regardless of case.
	IgnoreCase bool
	// Needs are the requirements on the token.
	Needs verify.Request
	// Upstream is the name of the upstream token. Empty: the service gets the token of the
	// request. A rule with an upstream token names an exact host.
	Upstream string
	// Resource are the metadata of the protected resource that the requests use; it may be
	// nil.
	Resource *Metadata
}

// Valid reports whether any request can match the host, and the path, of the rule.
func (r *Rule) Valid() (host, path bool) {
	name := strings.TrimPrefix(r.Host, "*.")
	normal, plain := plainHost(name)
	host = r.Host == "" || plain && normal == strings.ToLower(name)
	rest, rooted := strings.CutPrefix(r.Path, "/")
	path = rooted || r.Path == ""
	for segment := range strings.SplitSeq(strings.TrimSuffix(rest, "/"), "/") {
		path = path && (rest == "" || plainSegment(segment))
	}
	return host, path
}

// PrepareRules returns the rules with hosts and paths in the case in which MatchRule compares
// them.
func PrepareRules(rules []Rule) []Rule {
	result := make([]Rule, len(rules))
	for i, rule := range rules {
		rule.Host = strings.ToLower(rule.Host)
		if rule.IgnoreCase {
			rule.Path = foldCase(rule.Path)
		}
		result[i] = rule
	}
	return result
}

// subject is the part of a request that rules match.
type subject struct {
	host, path           string
	hostPlain, pathPlain bool
}

// match is the result of comparing a request with a rule.
type match int

const (
	differs match = iota
	matches
	// unclear: other software could read the request as one that the rule matches.
	unclear
)

// MatchRule returns the first normalized rule that matches, or nil if the request must be
// denied. target is the raw path with its query. If the match of a rule is unclear, the
// request is denied, because a later rule may have weaker requirements.
func MatchRule(rules []Rule, host, target string) *Rule {
	var s subject
	s.host, s.hostPlain = plainHost(host)
	s.path, s.pathPlain = plainPath(target)
	for i := range rules {
		result := rules[i].matchHost(&s)
		if result == matches {
			result = rules[i].matchPath(&s)
		}
		switch result {
		case matches:
			return &rules[i]
		case unclear:
			return nil
		case differs:
		}
	}
	return nil
}

func (r *Rule) matchHost(s *subject) match {
	below, wildcard := strings.CutPrefix(r.Host, "*")
	switch {
	case r.Host == "":
		return matches
	case !s.hostPlain:
		return unclear
	case s.host == r.Host, wildcard && strings.HasSuffix(s.host, below):
		return matches
	default:
		return differs
	}
}

func (r *Rule) matchPath(s *subject) match {
	switch {
	case r.Path == "":
		return matches
	case !s.pathPlain:
		return unclear
	}
	path := s.path
	if r.IgnoreCase {
		path = foldCase(path)
	}
	below, prefix := strings.CutSuffix(r.Path, "/")
	switch {
	case path == r.Path, prefix && (path == below || strings.HasPrefix(path, r.Path)):
		return matches
	case path == r.Path+"/":
		return unclear // most routers ignore a final slash
	default:
		return differs
	}
}

// foldCase returns the same result for paths that differ in case only.
func foldCase(path string) string {
	for i := range len(path) {
		if path[i] >= utf8.RuneSelf {
			return cases.Fold().String(path)
		}
	}
	return strings.ToLower(path)
}
