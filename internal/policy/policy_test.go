package policy_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/policy"
)

// config has two clients and two issuers, and one caller for each role.
func config(roles map[string]policy.Role) policy.Config {
	cfg := policy.Config{
		Roles: roles,
		Clients: map[string]policy.Defaults{
			"orders":  {Audience: "orders-api", Resources: []string{"r1", "r2"}, Scopes: []string{"write", "read"}},
			"billing": {Scopes: []string{"read"}},
		},
		Issuers: map[string][]string{"https://a": {"x", "y"}, "https://b": {"z"}},
	}
	for name := range roles {
		cfg.Callers = append(cfg.Callers, policy.CallerConfig{Name: name, Roles: []string{name}})
	}
	return cfg
}

// granted is a caller with these grants.
func granted(role policy.Role) *policy.Caller {
	return policy.New(config(map[string]policy.Role{"caller": role})).Named("caller")
}

func get(grants ...policy.GetGrant) *policy.Caller { return granted(policy.Role{Get: grants}) }

func TestResolve(t *testing.T) {
	own := policy.Request{Client: "orders", Audience: "orders-api", Resources: []string{"r1", "r2"}, Scopes: []string{"read", "write"}}
	with := func(change func(*policy.Request)) policy.Request {
		req := own
		change(&req)
		return req
	}
	readOnly := policy.GetGrant{Client: "orders", Scopes: []string{"read"}}
	for name, test := range map[string]struct {
		caller *policy.Caller
		req    policy.Request
		want   bool
	}{
		"nobody":                          {nil, own, false},
		"a stranger":                      {policy.New(config(nil)).Named("caller"), own, false},
		"no grant":                        {get(), own, false},
		"the client's own":                {get(policy.GetGrant{Client: "orders"}), own, true},
		"any client":                      {get(policy.GetGrant{Client: "*"}), own, true},
		"another client":                  {get(policy.GetGrant{Client: "billing"}), own, false},
		"a client that is not there":      {get(policy.GetGrant{Client: "*"}), policy.Request{Client: "zebra"}, false},
		"a pattern of clients is none":    {get(policy.GetGrant{Client: "ord*"}), own, false},
		"fewer scopes":                    {get(policy.GetGrant{Client: "orders"}), with(func(a *policy.Request) { a.Scopes = []string{"read"} }), true},
		"no scopes, without defaults":     {get(readOnly), with(func(a *policy.Request) { a.Scopes, a.Narrow = nil, true }), true},
		"defaults, some of them granted":  {get(readOnly), with(func(a *policy.Request) { a.Narrow = true }), true},
		"defaults, none of them granted":  {get(policy.GetGrant{Client: "orders", Scopes: []string{"admin"}}), with(func(a *policy.Request) { a.Narrow = true }), false},
		"a scope that is not granted":     {get(readOnly), own, false},
		"a granted scope":                 {get(readOnly), with(func(a *policy.Request) { a.Scopes = []string{"read"} }), true},
		"a scope that is not its own":     {get(policy.GetGrant{Client: "orders"}), with(func(a *policy.Request) { a.Scopes = []string{"admin"} }), false},
		"any scope":                       {get(policy.GetGrant{Client: "orders", Scopes: []string{"*"}}), with(func(a *policy.Request) { a.Scopes = []string{"admin"} }), true},
		"the scope * where it is granted": {get(readOnly), with(func(a *policy.Request) { a.Scopes = []string{"*"} }), false},
		"another audience":                {get(policy.GetGrant{Client: "orders"}), with(func(a *policy.Request) { a.Audience = "other" }), false},
		"another audience that is named":  {get(policy.GetGrant{Client: "orders", Audiences: []string{"other"}}), with(func(a *policy.Request) { a.Audience = "other" }), true},
		"its own, where another is named": {get(policy.GetGrant{Client: "orders", Audiences: []string{"other"}}), own, false},
		"any audience":                    {get(policy.GetGrant{Client: "orders", Audiences: []string{"*"}}), with(func(a *policy.Request) { a.Audience = "other" }), true},
		"another resource":                {get(policy.GetGrant{Client: "orders"}), with(func(a *policy.Request) { a.Resources = []string{"r1", "r3"} }), false},
		"any resource":                    {get(policy.GetGrant{Client: "orders", Resources: []string{"*"}}), with(func(a *policy.Request) { a.Resources = []string{"r3"} }), true},
		"grants are not mixed": {
			get(policy.GetGrant{Client: "orders", Audiences: []string{"other"}, Scopes: []string{"read"}}, policy.GetGrant{Client: "orders", Scopes: []string{"write"}}),
			with(func(a *policy.Request) { a.Audience, a.Scopes = "other", []string{"write"} }), false,
		},
		"one of two grants": {
			get(policy.GetGrant{Client: "orders", Scopes: []string{"read"}}, policy.GetGrant{Client: "orders"}), own, true,
		},
		"the broker itself": {policy.Self(), policy.Request{Client: "zebra", Scopes: []string{"any"}}, true},
	} {
		if _, got := test.caller.Resolve(test.req); got != test.want {
			t.Errorf("%s: Resolve allows it: %v", name, got)
		}
	}
}

func TestMayReceive(t *testing.T) {
	req := policy.Request{Client: "orders", Audience: "orders-api", Scopes: []string{"read"}}
	readOnly := policy.GetGrant{Client: "orders", Scopes: []string{"read"}}
	for name, test := range map[string]struct {
		caller  *policy.Caller
		granted []string
		want    bool
	}{
		"what was asked for":                     {get(readOnly), []string{"read"}, true},
		"less":                                   {get(policy.GetGrant{Client: "orders"}), []string{"read"}, true},
		"unknown":                                {get(readOnly), nil, false},
		"unknown, by a grant that lists nothing": {get(policy.GetGrant{Client: "orders"}), nil, true},
		"unknown, by an any":                     {get(readOnly, policy.GetGrant{Client: "orders", Scopes: []string{"*"}}), nil, true},
		"more":                                   {get(readOnly), []string{"read", "write"}, false},
		"more, of the client's own":              {get(policy.GetGrant{Client: "orders"}), []string{"read", "write"}, true},
		"what nobody knows":                      {get(policy.GetGrant{Client: "orders"}), []string{"read", "profile"}, false},
		"what nobody knows, by an any":           {get(policy.GetGrant{Client: "orders", Scopes: []string{"*"}}), []string{"profile"}, true},
		"what nobody knows, by its name":         {get(policy.GetGrant{Client: "orders", Scopes: []string{"read", "profile"}}), []string{"read", "profile"}, true},
		"by a grant for another audience":        {get(readOnly, policy.GetGrant{Client: "orders", Audiences: []string{"other"}, Scopes: []string{"*"}}), []string{"write"}, false},
		"nobody":                                 {nil, nil, false},
		"the broker itself":                      {policy.Self(), []string{"any"}, true},
	} {
		if got := test.caller.MayReceive(req, test.granted); got != test.want {
			t.Errorf("%s: MayReceive = %v", name, got)
		}
	}
}

func TestHasGrant(t *testing.T) {
	for name, test := range map[string]struct {
		caller *policy.Caller
		client string
		want   bool
	}{
		"its client":                     {get(policy.GetGrant{Client: "orders"}), "orders", true},
		"its client, another audience":   {get(policy.GetGrant{Client: "orders", Audiences: []string{"x"}}), "orders", true},
		"another client":                 {get(policy.GetGrant{Client: "orders"}), "billing", false},
		"a client that does not exist":   {get(policy.GetGrant{Client: "*"}), "zebra", false},
		"a caller that may only operate": {granted(policy.Role{Admin: []policy.AdminGrant{{Actions: []policy.Action{policy.AnyAction}}}}), "orders", false},
		"no caller":                      {nil, "orders", false},
		"the broker itself":              {policy.Self(), "orders", true},
	} {
		if got := test.caller.HasGrant(test.client); got != test.want {
			t.Errorf("%s: HasGrant = %v", name, got)
		}
	}
}

func TestLimits(t *testing.T) {
	limits := &policy.Limits{Concurrent: 3}
	cfg := policy.Config{Callers: []policy.CallerConfig{{Name: "limited", Limits: limits}, {Name: "common"}}}
	p := policy.New(cfg)
	if p.Named("limited").Limits() != limits || p.Named("common").Limits() != nil || (*policy.Caller)(nil).Limits() != nil {
		t.Error("a caller has the limits of another one")
	}
}

func TestMayVerify(t *testing.T) {
	for name, test := range map[string]struct {
		grants []policy.VerifyGrant
		want   map[string][]string
	}{
		"nothing":                     {nil, nil},
		"an issuer that is not there": {[]policy.VerifyGrant{{Issuer: "https://c"}}, nil},
		"an issuer":                   {[]policy.VerifyGrant{{Issuer: "https://a"}}, map[string][]string{"https://a": {"x", "y"}}},
		"some audiences":              {[]policy.VerifyGrant{{Issuer: "https://a", Audiences: []string{"q"}}}, map[string][]string{"https://a": {"q"}}},
		"any audience":                {[]policy.VerifyGrant{{Issuer: "https://a", Audiences: []string{"*"}}}, map[string][]string{"https://a": nil}},
		"each issuer":                 {[]policy.VerifyGrant{{Issuer: "*"}}, map[string][]string{"https://a": {"x", "y"}, "https://b": {"z"}}},
		"two grants": {
			[]policy.VerifyGrant{{Issuer: "https://a", Audiences: []string{"q"}}, {Issuer: "*"}},
			map[string][]string{"https://a": {"q", "x", "y"}, "https://b": {"z"}},
		},
		"any and some": {
			[]policy.VerifyGrant{{Issuer: "https://a", Audiences: []string{"*"}}, {Issuer: "https://a"}}, map[string][]string{"https://a": nil},
		},
		"some and any": {
			[]policy.VerifyGrant{{Issuer: "https://a"}, {Issuer: "https://a", Audiences: []string{"*"}}}, map[string][]string{"https://a": nil},
		},
	} {
		got, may := granted(policy.Role{Verify: test.grants}).MayVerify()
		if may != (len(test.want) > 0) || len(got) != len(test.want) {
			t.Errorf("%s: %v, %v", name, got, may)
		}
		for issuer, audiences := range test.want {
			if found, ok := got[issuer]; !ok || !slices.Equal(found, audiences) || (found == nil) != (audiences == nil) {
				t.Errorf("%s: %s: %v, want %v", name, issuer, found, audiences)
			}
		}
	}
	if _, may := (*policy.Caller)(nil).MayVerify(); may {
		t.Error("nobody may verify")
	}
	if issuers, may := policy.Self().MayVerify(); !may || issuers != nil {
		t.Error("the broker itself may not verify everything")
	}
}

func TestMayDo(t *testing.T) {
	some := granted(policy.Role{Admin: []policy.AdminGrant{
		{Actions: []policy.Action{policy.PurgeTokens, policy.GetClient}, Clients: []string{"orders"}},
		{Actions: []policy.Action{policy.PurgeTokens}, Clients: []string{"billing"}},
		{Actions: []policy.Action{policy.RevokeTokens}},
	}})
	all := granted(policy.Role{Admin: []policy.AdminGrant{{Actions: []policy.Action{policy.AnyAction}}}})
	for name, test := range map[string]struct {
		caller *policy.Caller
		action policy.Action
		client string
		want   bool
	}{
		"on its client":               {some, policy.PurgeTokens, "orders", true},
		"on its other client":         {some, policy.PurgeTokens, "billing", true},
		"on another client":           {some, policy.GetClient, "billing", false},
		"on no client in particular":  {some, policy.PurgeTokens, "", false},
		"what is about no client":     {some, policy.RevokeTokens, "", true},
		"what is not granted":         {some, policy.RotateSecret, "orders", false},
		"everything":                  {all, policy.RotateSecret, "orders", true},
		"everything, about no client": {all, policy.DeleteRevocation, "", true},
		"nobody":                      {nil, policy.PurgeTokens, "orders", false},
		"who may only get":            {get(policy.GetGrant{Client: "*"}), policy.PurgeTokens, "orders", false},
		"the broker itself":           {policy.Self(), policy.PurgeTokens, "orders", true},
	} {
		if got := test.caller.MayDo(test.action, test.client); got != test.want {
			t.Errorf("%s: MayDo = %v", name, got)
		}
	}
}

// A grant is an upper bound: it allows every request for a part of the same scopes, and
// an additional grant never denies a request that was allowed before.
func TestMoreGrantsNeverDenyMore(t *testing.T) {
	word := rapid.SampledFrom([]string{"a", "b", "c", "*"})
	words := rapid.SliceOfNDistinct(word, 0, 3, rapid.ID[string])
	grants := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) policy.GetGrant {
		return policy.GetGrant{
			Client:    rapid.SampledFrom([]string{"orders", "billing", "*"}).Draw(t, "client"),
			Audiences: words.Draw(t, "audiences"), Resources: words.Draw(t, "resources"), Scopes: words.Draw(t, "scopes"),
		}
	}), 0, 4)
	rapid.Check(t, func(t *rapid.T) {
		few := grants.Draw(t, "grants")
		more := append(slices.Clone(few), grants.Draw(t, "more")...)
		req := policy.Request{
			Client:   rapid.SampledFrom([]string{"orders", "billing"}).Draw(t, "client"),
			Audience: rapid.SampledFrom([]string{"", "a", "orders-api"}).Draw(t, "audience"),
			Scopes:   rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "read", "write"}), 0, 3, rapid.ID[string]).Draw(t, "scopes"),
		}
		before, after := get(few...), get(more...)
		may := func(caller *policy.Caller, req policy.Request) bool {
			_, may := caller.Resolve(req)
			return may
		}
		if may(before, req) && !may(after, req) {
			t.Fatalf("%+v is denied because of more grants", req)
		}
		less := req
		less.Scopes = req.Scopes[:len(req.Scopes)/2]
		if may(before, req) && !may(before, less) {
			t.Fatalf("%+v is allowed and %+v is not", req, less)
		}
		if len(req.Scopes) > 0 && before.MayReceive(req, req.Scopes) != may(before, req) {
			t.Fatalf("%+v: the requested scopes are judged in two ways", req)
		}
		defaults := req
		defaults.Narrow = true
		had, _ := before.Resolve(defaults)
		has, _ := after.Resolve(defaults)
		if len(has) < len(had) {
			t.Fatalf("%+v: %q was taken away by more grants, which leave %q", req, had, has)
		}
	})
}
