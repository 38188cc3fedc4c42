package gateway

import "github.com/cezzis/tokenbroker/internal/verify"

// StatusWithoutToken returns the status of a request whose upstream token was not obtained,
// for a gateway without grants.
func StatusWithoutToken(onBehalf bool, err error) int {
	d := New(Config{}).withoutToken(nil, &Upstream{OnBehalfOf: onBehalf}, &verify.Facts{}, err)
	return d.Status
}

// RuleFor returns the index of the rule that a request matches, and -1 if it is denied.
func RuleFor(rules []Rule, host, target string) int {
	normal := PrepareRules(rules)
	rule := MatchRule(normal, host, target)
	for i := range normal {
		if rule == &normal[i] {
			return i
		}
	}
	return -1
}
