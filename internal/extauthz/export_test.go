package extauthz

// RuleFor returns the index of the rule that a request matches, and -1 if it is denied.
func RuleFor(rules []Rule, host, target string) int {
	made := prepared(rules)
	found := ruleFor(made, host, target)
	for i := range made {
		if found == &made[i] {
			return i
		}
	}
	return -1
}
