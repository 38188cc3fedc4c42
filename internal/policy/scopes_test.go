package policy_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/policy"
)

func TestRequestWithoutScopesIsNarrowedToOneGrant(t *testing.T) {
	defaults := []string{"read", "write"}
	grant := func(scopes ...string) policy.GetGrant { return policy.GetGrant{Client: "orders", Scopes: scopes} }
	elsewhere := policy.GetGrant{Client: "orders", Audiences: []string{"other"}}
	for name, test := range map[string]struct {
		caller *policy.Caller
		want   []string // nil: denied
	}{
		"no grant":                               {get(), nil},
		"a grant that lists no scopes":           {get(grant()), defaults},
		"any scope":                              {get(grant("*")), defaults},
		"one of the defaults":                    {get(grant("read")), []string{"read"}},
		"one of the defaults, and others":        {get(grant("read", "admin")), []string{"read"}},
		"none of the defaults":                   {get(grant("admin")), nil},
		"the grant that keeps more, if last":     {get(grant("read"), grant("read", "write")), defaults},
		"the grant that keeps more, if first":    {get(grant("read", "write"), grant("read")), defaults},
		"grants are not mixed, the first counts": {get(grant("write"), grant("read")), []string{"write"}},
		"the first counts, in the other order":   {get(grant("read"), grant("write")), []string{"read"}},
		"by a grant for another audience":        {get(elsewhere), nil},
		"more by a grant for another audience":   {get(elsewhere, grant("read")), []string{"read"}},
		"the broker itself":                      {policy.Self(), defaults},
		"nobody":                                 {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			ask := policy.Ask{Client: "orders", Audience: "orders-api", Resources: []string{"r1"}, Scopes: defaults, Narrow: true}
			got, may := test.caller.Resolve(ask)
			if may != (test.want != nil) || !slices.Equal(got, test.want) {
				t.Errorf("got %q, %v, want %q", got, may, test.want)
			}
		})
	}
}

// A policy answers for the defaults that a client has now, which may be others than
// those that the policy was made with.
func TestRequestWithoutScopesIsNarrowedByTheDefaultsOfNow(t *testing.T) {
	caller := get(policy.GetGrant{Client: "orders", Scopes: []string{"read", "admin"}})
	ask := policy.Ask{Client: "orders", Scopes: []string{"admin", "list"}, Narrow: true}
	if got, may := caller.Resolve(ask); !may || !slices.Equal(got, []string{"admin"}) {
		t.Errorf("%q, %v", got, may)
	}
}

// What a client is configured with is taken literally: only a grant can mean
// everything.
func TestValuesOfAClientAreNoPatterns(t *testing.T) {
	cfg := config(map[string]policy.Role{"caller": {Get: []policy.GetGrant{{Client: "odd"}}}})
	cfg.Clients["odd"] = policy.Own{Audience: "*", Resources: []string{"*"}, Scopes: []string{"*"}}
	caller := policy.New(cfg).Named("caller")
	for _, ask := range []policy.Ask{
		{Client: "odd", Audience: "other"}, {Client: "odd", Resources: []string{"other"}}, {Client: "odd", Scopes: []string{"other"}},
	} {
		if _, may := caller.Resolve(ask); may {
			t.Errorf("%+v is admitted", ask)
		}
	}
	if _, may := caller.Resolve(policy.Ask{Client: "odd", Audience: "*", Scopes: []string{"*"}}); !may {
		t.Error("the client's own values are not admitted")
	}
}

// The property that the cache of tokens relies on: a request is sent with scopes of
// one grant, and a token goes only to callers that have a grant for all its scopes.
func TestResolvedScopesAreThoseOfOneGrant(t *testing.T) {
	words := func(most int, of ...string) *rapid.Generator[[]string] {
		return rapid.SliceOfNDistinct(rapid.SampledFrom(of), 0, most, rapid.ID[string])
	}
	targets := words(2, "a", "b", "*")
	scopes := words(3, "p", "q", "r", "s", "*")
	grants := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) policy.GetGrant {
		return policy.GetGrant{
			Client: rapid.SampledFrom([]string{"c", "*"}).Draw(t, "client"), Audiences: targets.Draw(t, "audiences"),
			Resources: targets.Draw(t, "resources"), Scopes: scopes.Draw(t, "scopes"),
		}
	}), 0, 4)
	plain := words(4, "p", "q", "r", "s")
	rapid.Check(t, func(t *rapid.T) {
		all := grants.Draw(t, "grants")
		own := policy.Own{Audience: rapid.SampledFrom([]string{"", "a"}).Draw(t, "own audience"), Scopes: plain.Draw(t, "defaults")}
		caller := policy.New(policy.Config{
			Callers: []policy.CallerConfig{{Name: "caller", Roles: []string{"role"}}},
			Roles:   map[string]policy.Role{"role": {Get: all}}, Clients: map[string]policy.Own{"c": own},
		}).Named("caller")
		ask := policy.Ask{
			Client: "c", Audience: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "audience"),
			Resources: words(1, "a", "b").Draw(t, "resources"), Scopes: plain.Draw(t, "scopes"),
		}
		if ask.Narrow = rapid.Bool().Draw(t, "narrow"); ask.Narrow {
			ask.Scopes = own.Scopes
		}
		got, may := caller.Resolve(ask)
		best := -1 // how many of the scopes the best grant admits
		for _, grant := range all {
			if admitsTarget(grant, own, ask) {
				best = max(best, len(admittedBy(grant, own, ask.Scopes)))
			}
		}
		switch {
		case best < 0 || best == 0 && len(ask.Scopes) > 0 || !ask.Narrow && best < len(ask.Scopes):
			if may {
				t.Fatalf("%+v is admitted with %q by %+v", ask, got, all)
			}
		case !may || len(got) != best:
			t.Fatalf("%+v: %q, %v, want %d scopes by %+v", ask, got, may, best, all)
		}
		within := func(grant policy.GetGrant, scopes []string) bool {
			return admitsTarget(grant, own, ask) && len(admittedBy(grant, own, scopes)) == len(scopes)
		}
		if may && !slices.ContainsFunc(all, func(grant policy.GetGrant) bool { return within(grant, got) }) {
			t.Fatalf("%+v: %q are of no one grant of %+v", ask, got, all)
		}
		if may && slices.ContainsFunc(got, func(scope string) bool { return !slices.Contains(ask.Scopes, scope) }) {
			t.Fatalf("%+v: %q are more than were asked for", ask, got)
		}
		resolved := ask
		resolved.Scopes, resolved.Narrow = got, false
		granted := plain.Draw(t, "granted")
		if !may || !caller.MayHave(resolved, granted) {
			return
		}
		if !slices.ContainsFunc(all, func(grant policy.GetGrant) bool {
			unknown := len(granted) == 0 && len(grant.Scopes) > 0 && !slices.Contains(grant.Scopes, policy.Any)
			return within(grant, granted) && !unknown
		}) {
			t.Fatalf("%+v: a token with %q is handed out by %+v", ask, granted, all)
		}
	})
}

// admitsTarget and admittedBy say in the plainest way what a grant means.
func admitsTarget(grant policy.GetGrant, own policy.Own, ask policy.Ask) bool {
	audiences := grant.Audiences
	if len(audiences) == 0 {
		audiences = []string{own.Audience}
	}
	if ask.Audience != "" && !slices.Contains(audiences, ask.Audience) && !slices.Contains(grant.Audiences, policy.Any) {
		return false
	}
	return !slices.ContainsFunc(ask.Resources, func(resource string) bool {
		return !slices.Contains(grant.Resources, resource) && !slices.Contains(grant.Resources, policy.Any)
	})
}

func admittedBy(grant policy.GetGrant, own policy.Own, scopes []string) (admitted []string) {
	for _, scope := range scopes {
		list := grant.Scopes
		if len(list) == 0 {
			list = own.Scopes
		}
		if slices.Contains(list, scope) || slices.Contains(grant.Scopes, policy.Any) {
			admitted = append(admitted, scope)
		}
	}
	return admitted
}

func TestExplanationNamesTheScopesOfRequestsThatNameNone(t *testing.T) {
	cfg := config(nil)
	cfg.Clients["bare"] = policy.Own{}
	for name, test := range map[string]struct {
		grants []policy.GetGrant
		want   string
	}{
		"narrowed":       {[]policy.GetGrant{{Client: "orders", Scopes: []string{"write"}}, {Client: "orders", Scopes: []string{"read", "x"}}}, "gets the scopes write"},
		"denied":         {[]policy.GetGrant{{Client: "orders", Scopes: []string{"x"}}}, "is denied: no grant admits any of the client's default scopes, which are read, write"},
		"another target": {[]policy.GetGrant{{Client: "orders", Audiences: []string{"x"}}}, "is denied: no grant admits the client's own audience and resources"},
		"no defaults":    {[]policy.GetGrant{{Client: "bare", Scopes: []string{"x"}}}, "is sent without scopes, and denied unless the IdP says which scopes it granted"},
		"nothing named":  {[]policy.GetGrant{{Client: "bare"}}, "is sent without scopes"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Roles = map[string]policy.Role{"role": {Get: test.grants}}
			cfg.Callers = []policy.CallerConfig{{Name: "caller", Roles: []string{"role"}}}
			lines, _ := policy.Explain(cfg, "caller")
			want := "a request for a token of client " + test.grants[0].Client + " that names nothing else " + test.want
			if !slices.Contains(lines, want) {
				t.Errorf("%s\nwant: %s", strings.Join(lines, "\n"), want)
			}
		})
	}
}
