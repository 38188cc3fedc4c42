package policy_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/policy"
)

func TestDefaultScopesAreNarrowedToOneGrant(t *testing.T) {
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
			req := policy.Request{Client: "orders", Audience: "orders-api", Resources: []string{"r1"}, Scopes: defaults, Narrow: true}
			got, ok := test.caller.Resolve(req)
			if ok != (test.want != nil) || !slices.Equal(got, test.want) {
				t.Errorf("got %q, %v, want %q", got, ok, test.want)
			}
		})
	}
}

// The defaults of a client may change after the policy was built.
func TestDefaultScopesMayChange(t *testing.T) {
	caller := get(policy.GetGrant{Client: "orders", Scopes: []string{"read", "admin"}})
	req := policy.Request{Client: "orders", Scopes: []string{"admin", "list"}, Narrow: true}
	if got, ok := caller.Resolve(req); !ok || !slices.Equal(got, []string{"admin"}) {
		t.Errorf("%q, %v", got, ok)
	}
}

// "*" means all values in a grant only. In the defaults of a client it is literal.
func TestDefaultsAreNotPatterns(t *testing.T) {
	cfg := config(map[string]policy.Role{"caller": {Get: []policy.GetGrant{{Client: "odd"}}}})
	cfg.Clients["odd"] = policy.Defaults{Audience: "*", Resources: []string{"*"}, Scopes: []string{"*"}}
	caller := policy.New(cfg).Named("caller")
	for _, req := range []policy.Request{
		{Client: "odd", Audience: "other"}, {Client: "odd", Resources: []string{"other"}}, {Client: "odd", Scopes: []string{"other"}},
	} {
		if _, ok := caller.Resolve(req); ok {
			t.Errorf("%+v is allowed", req)
		}
	}
	if _, ok := caller.Resolve(policy.Request{Client: "odd", Audience: "*", Scopes: []string{"*"}}); !ok {
		t.Error("the client's own values are not allowed")
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
		own := policy.Defaults{Audience: rapid.SampledFrom([]string{"", "a"}).Draw(t, "own audience"), Scopes: plain.Draw(t, "defaults")}
		caller := policy.New(policy.Config{
			Callers: []policy.CallerConfig{{Name: "caller", Roles: []string{"role"}}},
			Roles:   map[string]policy.Role{"role": {Get: all}}, Clients: map[string]policy.Defaults{"c": own},
		}).Named("caller")
		req := policy.Request{
			Client: "c", Audience: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "audience"),
			Resources: words(1, "a", "b").Draw(t, "resources"), Scopes: plain.Draw(t, "scopes"),
		}
		if req.Narrow = rapid.Bool().Draw(t, "narrow"); req.Narrow {
			req.Scopes = own.Scopes
		}
		got, ok := caller.Resolve(req)
		best := -1 // how many of the scopes the best grant allows
		for _, grant := range all {
			if allowsTarget(grant, own, req) {
				best = max(best, len(allowedBy(grant, own, req.Scopes)))
			}
		}
		switch {
		case best < 0 || best == 0 && len(req.Scopes) > 0 || !req.Narrow && best < len(req.Scopes):
			if ok {
				t.Fatalf("%+v is allowed with %q by %+v", req, got, all)
			}
		case !ok || len(got) != best:
			t.Fatalf("%+v: %q, %v, want %d scopes by %+v", req, got, ok, best, all)
		}
		within := func(grant policy.GetGrant, scopes []string) bool {
			return allowsTarget(grant, own, req) && len(allowedBy(grant, own, scopes)) == len(scopes)
		}
		if ok && !slices.ContainsFunc(all, func(grant policy.GetGrant) bool { return within(grant, got) }) {
			t.Fatalf("%+v: %q are of no one grant of %+v", req, got, all)
		}
		if ok && slices.ContainsFunc(got, func(scope string) bool { return !slices.Contains(req.Scopes, scope) }) {
			t.Fatalf("%+v: %q are more than requested", req, got)
		}
		resolved := req
		resolved.Scopes, resolved.Narrow = got, false
		granted := plain.Draw(t, "granted")
		if !ok || !caller.MayReceive(resolved, granted) {
			return
		}
		if !slices.ContainsFunc(all, func(grant policy.GetGrant) bool {
			unknown := len(granted) == 0 && len(grant.Scopes) > 0 && !slices.Contains(grant.Scopes, policy.Any)
			return within(grant, granted) && !unknown
		}) {
			t.Fatalf("%+v: a token with %q is handed out by %+v", req, granted, all)
		}
	})
}

// allowsTarget and allowedBy are an independent implementation of a grant.
func allowsTarget(grant policy.GetGrant, own policy.Defaults, req policy.Request) bool {
	audiences := grant.Audiences
	if len(audiences) == 0 {
		audiences = []string{own.Audience}
	}
	if req.Audience != "" && !slices.Contains(audiences, req.Audience) && !slices.Contains(grant.Audiences, policy.Any) {
		return false
	}
	return !slices.ContainsFunc(req.Resources, func(resource string) bool {
		return !slices.Contains(grant.Resources, resource) && !slices.Contains(grant.Resources, policy.Any)
	})
}

func allowedBy(grant policy.GetGrant, own policy.Defaults, scopes []string) (allowed []string) {
	for _, scope := range scopes {
		list := grant.Scopes
		if len(list) == 0 {
			list = own.Scopes
		}
		if slices.Contains(list, scope) || slices.Contains(grant.Scopes, policy.Any) {
			allowed = append(allowed, scope)
		}
	}
	return allowed
}

func TestExplain_defaultScopes(t *testing.T) {
	cfg := config(nil)
	cfg.Clients["bare"] = policy.Defaults{}
	for name, test := range map[string]struct {
		grants []policy.GetGrant
		want   string
	}{
		"narrowed":       {[]policy.GetGrant{{Client: "orders", Scopes: []string{"write"}}, {Client: "orders", Scopes: []string{"read", "x"}}}, "gets the scopes write"},
		"denied":         {[]policy.GetGrant{{Client: "orders", Scopes: []string{"x"}}}, "is denied: no grant allows any of the client's default scopes, which are read, write"},
		"another target": {[]policy.GetGrant{{Client: "orders", Audiences: []string{"x"}}}, "is denied: no grant allows the client's default audience and resources"},
		"no defaults":    {[]policy.GetGrant{{Client: "bare", Scopes: []string{"x"}}}, "is sent without scopes, and denied unless the IdP names the scopes that it granted"},
		"nothing named":  {[]policy.GetGrant{{Client: "bare"}}, "is sent without scopes"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Roles = map[string]policy.Role{"role": {Get: test.grants}}
			cfg.Callers = []policy.CallerConfig{{Name: "caller", Roles: []string{"role"}}}
			lines, _ := policy.Explain(cfg, "caller", func(...any) int { return 0 })
			want := "a request for a token of client " + test.grants[0].Client + " that names nothing else " + test.want
			if !slices.Contains(lines, want) {
				t.Errorf("%s\nwant: %s", strings.Join(lines, "\n"), want)
			}
		})
	}
}

func TestExplain_scopesOfARequestWithoutScopes(t *testing.T) {
	cfg := config(nil)
	cfg.Clients["bare"] = policy.Defaults{}
	for name, test := range map[string]struct {
		grant policy.GetGrant
		want  string
	}{
		"some of the defaults": {policy.GetGrant{Client: "orders", Scopes: []string{"read", "x"}}, "read"},
		"none of the defaults": {policy.GetGrant{Client: "orders", Scopes: []string{"x"}}, "denied, because the grant includes none of the client's default scopes"},
		"no defaults":          {policy.GetGrant{Client: "bare", Scopes: []string{"x"}}, "those that the IdP names in its response, if the grant includes them"},
		"no defaults, all":     {policy.GetGrant{Client: "bare", Scopes: []string{"*"}}, "none"},
		"no scopes at all":     {policy.GetGrant{Client: "bare"}, "none"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Roles = map[string]policy.Role{"role": {Get: []policy.GetGrant{test.grant}}}
			cfg.Callers = []policy.CallerConfig{{Name: "caller", Roles: []string{"role"}}}
			lines, _ := policy.Explain(cfg, "caller", func(...any) int { return 0 })
			if want := "    scopes of a request that names none: " + test.want; !slices.Contains(lines, want) {
				t.Errorf("%s\nwant: %s", strings.Join(lines, "\n"), want)
			}
		})
	}
}
