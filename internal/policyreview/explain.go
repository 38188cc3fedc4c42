package policyreview

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// Explain lists the permissions of a caller and the roles that grant them, one per line.
// ok is false if there is no such caller.
func Explain(c *config.Config, caller string) (lines []string, ok bool) {
	lines, ok = policy.Explain(c.PolicyConfig(), caller, c.Line)
	bound := c.Bound()
	for _, key := range slices.Sorted(maps.Keys(bound)) {
		if bound[key] == caller {
			path := []any{}
			for name := range strings.SplitSeq(key, ".") {
				path = append(path, name)
			}
			lines = slices.Insert(lines, 1, fmt.Sprintf("every connection without another identity is this caller: %s (line %d)", key, c.Line(path...)))
		}
	}
	return append(lines, explainUpstreams(c, caller)...), ok
}
