package extauthz

import (
	"net/url"
	"strings"

	"github.com/cezzis/tokenbroker/internal/verify"
)

// Rule says what the tokens of some requests must be good for.
type Rule struct {
	// Host is that of the requests, without a port; "*.example.com" is every host
	// below. Empty: any.
	Host string
	// Path is that of the requests. One that ends in "/" is every path below, and the
	// path without the slash. Empty: any.
	Path string
	// Needs are what a token must be good for.
	Needs verify.Request
}

// ruleFor returns the first rule that fits; nil: none does. The path is as it came,
// with its query. One that is not plain is never passed on to a later rule: it may be
// what the earlier one is about.
func ruleFor(rules []Rule, host, target string) *Rule {
	path, plain := pathOf(target)
	host = hostOf(host)
	for i := range rules {
		rule := &rules[i]
		switch {
		case !rule.fitsHost(host):
		case rule.Path == "":
			return rule
		case !plain:
			return nil
		case rule.fitsPath(path):
			return rule
		}
	}
	return nil
}

func (r *Rule) fitsHost(host string) bool {
	if below, ok := strings.CutPrefix(r.Host, "*."); ok {
		return len(host) > len(below)+1 && strings.EqualFold(host[len(host)-len(below):], below) && host[len(host)-len(below)-1] == '.'
	}
	return r.Host == "" || strings.EqualFold(host, r.Host)
}

func (r *Rule) fitsPath(path string) bool {
	if below, ok := strings.CutSuffix(r.Path, "/"); ok {
		return path == below || strings.HasPrefix(path, r.Path)
	}
	return path == r.Path
}

// hostOf is a host without its port and a final dot.
func hostOf(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	return strings.TrimSuffix(host, ".")
}

// pathOf is the path of a target, and whether it is plain: read in but one way by
// all who come after. One that is not plain fits no path of a rule, because what
// serves the request could take it for another.
func pathOf(target string) (path string, plain bool) {
	path, _, _ = strings.Cut(target, "?")
	path, _, _ = strings.Cut(path, "#")
	decoded, err := url.PathUnescape(path)
	if err != nil || !strings.HasPrefix(decoded, "/") {
		return path, false
	}
	lower := strings.ToLower(path)
	if strings.Contains(lower, "%2f") || strings.Contains(lower, "%5c") || strings.ContainsAny(decoded, "\\%;\x00") || strings.Contains(decoded, "//") {
		return path, false
	}
	for segment := range strings.SplitSeq(decoded, "/") {
		if segment == "." || segment == ".." {
			return path, false
		}
	}
	return decoded, true
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
