package policyreview

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/gatewayconf"
)

// explainUpstreams lists the upstream entries that a caller may use as a gateway.
func explainUpstreams(c *config.Config, caller string) (lines []string) {
	users := c.UpstreamUsers()
	for _, name := range slices.Sorted(maps.Keys(users)) {
		if slices.Contains(users[name], caller) {
			u := c.Gateways.Upstream[name]
			lines = append(lines, fmt.Sprintf("as a gateway it may send the upstream token %q (line %d): %s", name, c.Line("gateways", "upstream", name), described(&u)))
		}
	}
	return lines
}

// described describes an upstream entry.
func described(u *gatewayconf.Upstream) string {
	parts := []string{"client " + u.Client}
	if u.OnBehalfOf {
		parts = append(parts, "on behalf of the user")
	}
	if u.Audience != "" {
		parts = append(parts, "audience "+u.Audience)
	}
	if len(u.Scopes) > 0 {
		parts = append(parts, "scopes "+strings.Join(sorted(u.Scopes), ", "))
	}
	parts = append(parts, "header "+u.Header)
	if u.KeepInbound {
		parts = append(parts, "the service also gets the token of the request")
	}
	if u.Unverified() {
		parts = append(parts, "requests need no token")
	}
	return strings.Join(parts, "; ")
}

// compareUpstreams compares the upstream entries.
func compareUpstreams(old, updated *config.Config) []Setting {
	before, after := old.Gateways.Upstream, updated.Gateways.Upstream
	var found []Setting
	for _, name := range union(before, after) {
		setting := Setting{Key: "gateways.upstream." + name}
		if u, ok := before[name]; ok {
			setting.Before = described(&u)
		}
		if u, ok := after[name]; ok {
			setting.After = described(&u)
		}
		if setting.Before != setting.After {
			found = append(found, setting)
		}
	}
	return found
}
