package policy_test

import (
	"testing"

	"github.com/cezzis/tokenbroker/internal/policy"
)

func TestClaimsIdentifyCallers(t *testing.T) {
	claim := func(value string, path ...string) policy.Claim { return policy.Claim{Path: path, Value: value} }
	p := callers(map[string]policy.Match{
		"by id":      {Issuer: "https://ci", Claims: []policy.Claim{claim("74", "repository_id"), claim("refs/heads/*", "ref")}},
		"by subject": {Issuer: "https://ci", Subject: "repo:octo/orders:ref:refs/heads/main"},
		"by both":    {Issuer: "https://ci", Subject: "repo:octo/*", Claims: []policy.Claim{claim("production", "environment")}},
		"by pattern": {Issuer: "https://ci", Subject: "repo:octo/*"},
		"strict":     {Issuer: "https://ci", Subject: "repo:octo/pay:ref:refs/heads/main", Claims: []policy.Claim{claim("production", "environment")}},
		"nested":     {Issuer: "https://k8s", Claims: []policy.Claim{claim("shop", "kubernetes.io", "namespace")}},
		"shop":       {Issuer: "https://teams", Subject: "team:shop:*", Claims: []policy.Claim{claim("production", "environment")}},
		"pay":        {Issuer: "https://teams", Subject: "team:pay:*", Claims: []policy.Claim{claim("production", "environment")}},
		"group":      {Issuer: "https://groups", Claims: []policy.Claim{claim("deployers", "groups")}},
		"groups":     {Issuer: "https://groups", Claims: []policy.Claim{claim("team:*", "groups")}},
	})
	for name, test := range map[string]struct{ issuer, subject, claims, want string }{
		"all claims":                       {"https://ci", "x", `{"repository_id":"74","ref":"refs/heads/main"}`, "by id"},
		"no subject at all":                {"https://ci", "", `{"repository_id":"74","ref":"refs/heads/main"}`, "by id"},
		"one claim of two":                 {"https://ci", "x", `{"repository_id":"74"}`, "nobody"},
		"another value":                    {"https://ci", "x", `{"repository_id":"75","ref":"refs/heads/main"}`, "nobody"},
		"a longer value":                   {"https://ci", "x", `{"repository_id":"740","ref":"refs/heads/main"}`, "nobody"},
		"a number":                         {"https://ci", "x", `{"repository_id":74,"ref":"refs/heads/main"}`, "nobody"},
		"null":                             {"https://ci", "x", `{"repository_id":null,"ref":"refs/heads/main"}`, "nobody"},
		"an object":                        {"https://ci", "x", `{"repository_id":{"74":"74"},"ref":"refs/heads/main"}`, "nobody"},
		"a name in another case":           {"https://ci", "x", `{"Repository_id":"74","ref":"refs/heads/main"}`, "nobody"},
		"a wildcard for nothing":           {"https://ci", "x", `{"repository_id":"74","ref":"refs/heads/"}`, "nobody"},
		"a way out of a wildcard":          {"https://ci", "x", `{"repository_id":"74","ref":"refs/heads/../tags/v1"}`, "nobody"},
		"another issuer":                   {"https://k8s", "x", `{"repository_id":"74","ref":"refs/heads/main"}`, "nobody"},
		"an exact subject wins":            {"https://ci", "repo:octo/orders:ref:refs/heads/main", `{"repository_id":"74","ref":"refs/heads/main","environment":"production"}`, "by subject"},
		"an exact subject with its claim":  {"https://ci", "repo:octo/pay:ref:refs/heads/main", `{"environment":"production"}`, "strict"},
		"an exact subject without it":      {"https://ci", "repo:octo/pay:ref:refs/heads/main", `{"environment":"test"}`, "by pattern"},
		"a pattern alone":                  {"https://ci", "repo:octo/web", `{}`, "by pattern"},
		"a pattern, and one with a claim":  {"https://ci", "repo:octo/web", `{"environment":"production"}`, "nobody"},
		"a pattern, and another by claims": {"https://ci", "repo:octo/web", `{"repository_id":"74","ref":"refs/heads/main"}`, "nobody"},
		"a nested claim":                   {"https://k8s", "x", `{"kubernetes.io":{"namespace":"shop"}}`, "nested"},
		"a nested claim, not nested":       {"https://k8s", "x", `{"kubernetes.io.namespace":"shop"}`, "nobody"},
		"a nested claim in a list":         {"https://k8s", "x", `{"kubernetes.io":[{"namespace":"shop"}]}`, "nobody"},
		"an item of a list":                {"https://groups", "x", `{"groups":["a","deployers",5]}`, "group"},
		"an item by a wildcard":            {"https://groups", "x", `{"groups":["a","team:b","team:c"]}`, "groups"},
		"items of two callers":             {"https://groups", "x", `{"groups":["team:b","deployers"]}`, "nobody"},
		"a list in a list":                 {"https://groups", "x", `{"groups":[["deployers"]]}`, "nobody"},
		"a claim and one pattern of two":   {"https://teams", "team:shop:x", `{"environment":"production"}`, "shop"},
		"a claim and the other pattern":    {"https://teams", "team:pay:x", `{"environment":"production"}`, "pay"},
		"no claims":                        {"https://groups", "x", ``, "nobody"},
	} {
		t.Run(name, func(t *testing.T) {
			id := policy.Identity{Issuer: test.issuer, Subject: test.subject, Claims: []byte(test.claims)}
			if got := p.Caller(id).Name(); got != test.want {
				t.Errorf("it is %s, want %s", got, test.want)
			}
		})
	}
	if id := (policy.Identity{Issuer: "https://groups", Subject: "x", Claims: []byte(`{"groups":["team:b","deployers"]}`)}); !p.Ambiguous(id) {
		t.Error("two callers are not ambiguous")
	}
	if id := (policy.Identity{Issuer: "https://groups", Subject: "x", Claims: []byte(`{"groups":["deployers"]}`)}); p.Ambiguous(id) {
		t.Error("one caller is ambiguous")
	}
}
