package extauthz

import (
	"net/url"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/cases"

	"github.com/cezzis/tokenbroker/internal/verify"
)

// Rule says what the tokens of some requests must be good for.
type Rule struct {
	// Host is that of the requests, without a port; "*.example.com" is every host
	// below. Empty: any. Case does not matter.
	Host string
	// Path is that of the requests, decoded. One that ends in "/" is every path below,
	// and the path without the slash. Empty: any.
	Path string
	// IgnoreCase matches Path in any case.
	IgnoreCase bool
	// Needs are what a token must be good for.
	Needs verify.Request
}

// Valid reports whether requests can match the host and the path of the rule.
func (r *Rule) Valid() (host, path bool) {
	name := strings.TrimPrefix(r.Host, "*.")
	read, plain := plainHost(name)
	host = r.Host == "" || plain && read == strings.ToLower(name)
	rest, rooted := strings.CutPrefix(r.Path, "/")
	path = rooted || r.Path == ""
	for segment := range strings.SplitSeq(strings.TrimSuffix(rest, "/"), "/") {
		path = path && (rest == "" || plainSegment(segment))
	}
	return host, path
}

// prepared returns the rules in the form in which they are compared.
func prepared(rules []Rule) []Rule {
	made := make([]Rule, len(rules))
	for i, rule := range rules {
		rule.Host = strings.ToLower(rule.Host)
		if rule.IgnoreCase {
			rule.Path = foldCase(rule.Path)
		}
		made[i] = rule
	}
	return made
}

// subject is the part of a request that rules look at.
type subject struct {
	host, path           string
	hostPlain, pathPlain bool
}

// match is the result of comparing a request with a rule.
type match int

const (
	differs match = iota
	matches
	// unclear: some software might take the request for one that the rule matches.
	unclear
)

// ruleFor returns the first of the prepared rules that matches; nil: the request is
// denied. The target is the path as it came, with its query. A request that is unclear
// to a rule never reaches a later one, which may ask for less.
func ruleFor(rules []Rule, host, target string) *Rule {
	var asked subject
	asked.host, asked.hostPlain = plainHost(host)
	asked.path, asked.pathPlain = plainPath(target)
	for i := range rules {
		result := rules[i].matchHost(&asked)
		if result == matches {
			result = rules[i].matchPath(&asked)
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

func (r *Rule) matchHost(asked *subject) match {
	below, wildcard := strings.CutPrefix(r.Host, "*")
	switch {
	case r.Host == "":
		return matches
	case !asked.hostPlain:
		return unclear
	case asked.host == r.Host, wildcard && strings.HasSuffix(asked.host, below):
		return matches
	default:
		return differs
	}
}

func (r *Rule) matchPath(asked *subject) match {
	switch {
	case r.Path == "":
		return matches
	case !asked.pathPlain:
		return unclear
	}
	path := asked.path
	if r.IgnoreCase {
		path = foldCase(path)
	}
	below, prefix := strings.CutSuffix(r.Path, "/")
	switch {
	case path == r.Path, prefix && (path == below || strings.HasPrefix(path, r.Path)):
		return matches
	case path == r.Path+"/":
		return unclear // most routers take a final slash for nothing
	default:
		return differs
	}
}

// foldCase returns path without differences of case.
func foldCase(path string) string {
	for i := range len(path) {
		if path[i] >= utf8.RuneSelf {
			return cases.Fold().String(path)
		}
	}
	return strings.ToLower(path)
}

// tokenInQuery reports whether a target has an access token in its query, which is
// nowhere taken from there.
func tokenInQuery(target string) bool {
	_, raw, given := strings.Cut(target, "?")
	if !given || !strings.Contains(raw, "access_token") && !strings.Contains(raw, "%") {
		return false
	}
	values, _ := url.ParseQuery(raw) // what is well-formed of it
	_, has := values["access_token"]
	return has
}
