package policyreview

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/cezzis/tokenbroker/internal/policy"
)

// pair is the same caller in two configurations. A name is empty if that side does not
// have the caller.
type pair struct{ old, updated string }

// pairs returns all callers of two sides. Callers are the same if they have the same name,
// or if one was renamed, which its unchanged identity shows.
func pairs(old, updated *side) []pair {
	var all []pair
	renamed := map[string]bool{}
	for _, before := range old.cfg.Callers {
		if _, ok := updated.callers[before.Name]; ok {
			all = append(all, pair{before.Name, before.Name})
			continue
		}
		after := slices.IndexFunc(updated.cfg.Callers, func(c policy.CallerConfig) bool {
			_, known := old.callers[c.Name]
			return !known && identified(c.Match) && sameMatch(c.Match, before.Match)
		})
		if after < 0 {
			all = append(all, pair{old: before.Name})
			continue
		}
		name := updated.cfg.Callers[after].Name
		renamed[name] = true
		all = append(all, pair{before.Name, name})
	}
	for _, after := range updated.cfg.Callers {
		if _, known := old.callers[after.Name]; !known && !renamed[after.Name] {
			all = append(all, pair{updated: after.Name})
		}
	}
	return all
}

// identified reports whether a match identifies its caller without a listener.
func identified(m policy.Match) bool { return !reflect.DeepEqual(m, policy.Match{}) }

// sameMatch compares matches; the order of the claims has no meaning.
func sameMatch(a, b policy.Match) bool {
	a.DNSSAN, b.DNSSAN = strings.ToLower(a.DNSSAN), strings.ToLower(b.DNSSAN)
	a.Claims, b.Claims = sortedClaims(a.Claims), sortedClaims(b.Claims)
	return reflect.DeepEqual(a, b)
}

func sortedClaims(claims []policy.Claim) []policy.Claim {
	return slices.SortedFunc(slices.Values(claims), func(a, b policy.Claim) int {
		return strings.Compare(fmt.Sprintf("%q", a), fmt.Sprintf("%q", b))
	})
}

// Identity is a difference in how callers are identified. One of the names is empty if a
// side has no such caller.
type Identity struct {
	// Who is the identity that decides, or empty if the difference is that of the caller
	// itself.
	Who    string `json:"identity,omitempty"`
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
	// Caller is set if the caller has another identity: Before and After describe it.
	// Otherwise Before and After are names of callers.
	Caller string `json:"caller,omitempty"`
}

// compareIdentities returns the callers that were added, removed, renamed or that have
// another identity, and the identities that identify another caller.
func compareIdentities(old, updated *side, pairs []pair) []Identity {
	var found []Identity
	expected := map[pair]bool{}
	for _, p := range pairs {
		expected[p] = true
		before, after := old.callers[p.old], updated.callers[p.updated]
		switch {
		case p.old != p.updated:
			found = append(found, Identity{Before: p.old, After: p.updated})
		case !sameMatch(before.Match, after.Match):
			found = append(found, Identity{Caller: p.old, Before: before.Match.String(), After: after.Match.String()})
		}
	}
	seen := map[string]bool{}
	for _, caller := range slices.Concat(old.cfg.Callers, updated.cfg.Callers) {
		if !identified(caller.Match) {
			continue
		}
		id, who := example(caller.Match)
		before, after := nameOf(old.policy.Caller(id)), nameOf(updated.policy.Caller(id))
		// The caller itself was reported above.
		unsurprising := before == after || expected[pair{before, after}] || before == caller.Name && after == "" || before == "" && after == caller.Name
		if unsurprising || seen[who] {
			continue
		}
		seen[who] = true
		found = append(found, Identity{Who: who, Before: before, After: after})
	}
	return found
}

func nameOf(caller *policy.Caller) string {
	if caller == nil {
		return ""
	}
	return caller.Name()
}

// example returns an identity that a match identifies, and describes it. A pattern is
// completed by a segment that no configuration names.
func example(m policy.Match) (policy.Identity, string) {
	complete := func(text string) string {
		if prefix, ok := strings.CutSuffix(text, policy.Any); ok {
			return prefix + "any-other-name"
		}
		return text
	}
	who := strings.TrimPrefix(m.String(), "identified by ")
	switch {
	case m.SPIFFEID != "":
		return policy.Identity{URIs: []string{complete(m.SPIFFEID)}}, who
	case m.URISAN != "":
		return policy.Identity{URIs: []string{complete(m.URISAN)}}, who
	case m.DNSSAN != "":
		return policy.Identity{DNSNames: []string{m.DNSSAN}}, who
	case m.UID != nil:
		return policy.Identity{UID: m.UID}, who
	}
	id := policy.Identity{Issuer: m.Issuer, Subject: complete(m.Subject)}
	if id.Subject == "" {
		id.Subject = "any-other-name"
	}
	claims := map[string]any{}
	for _, claim := range m.Claims {
		inner := claims
		for _, name := range claim.Path[:len(claim.Path)-1] {
			next, ok := inner[name].(map[string]any)
			if !ok {
				next = map[string]any{}
				inner[name] = next
			}
			inner = next
		}
		last := claim.Path[len(claim.Path)-1]
		values, _ := inner[last].([]any)
		inner[last] = append(values, complete(claim.Value))
	}
	id.Claims, _ = json.Marshal(claims) // maps, lists and texts
	return id, who
}
