package gateway

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
