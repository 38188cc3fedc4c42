package policy_test

import (
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/policy"
)

func callers(matches map[string]policy.Match) *policy.Policy {
	cfg := policy.Config{}
	for name, match := range matches {
		cfg.Callers = append(cfg.Callers, policy.CallerConfig{Name: name, Match: match})
	}
	return policy.New(cfg)
}

func TestCallersAreIdentified(t *testing.T) {
	p := callers(map[string]policy.Match{
		"checkout":  {SPIFFEID: "spiffe://example.com/ns/shop/sa/checkout"},
		"shop":      {SPIFFEID: "spiffe://example.com/ns/shop/*"},
		"admins":    {SPIFFEID: "spiffe://example.com/ns/shop/sa/admin/*"},
		"batch":     {URISAN: "urn:example:batch"},
		"web":       {URISAN: "https://example.com/apps/*"},
		"gateway":   {DNSSAN: "Gateway.example.com"},
		"other":     {DNSSAN: "other.example.com"},
		"pod":       {Issuer: "https://k8s", Subject: "system:serviceaccount:shop:checkout"},
		"svids":     {Issuer: "https://spire", Subject: "spiffe://example.com/ns/shop/*"},
		"urls":      {Issuer: "https://spire", Subject: "https://example.com/apps/*"},
		"repos":     {Issuer: "https://ci", Subject: "repo:org/*"},
		"team":      {Issuer: "https://ci", Subject: "repo:org/team/*"},
		"urns":      {URISAN: "urn:example:apps/*"},
		"pods":      {Issuer: "https://k8s", Subject: "system:serviceaccount:shop:*"},
		"root":      {UID: new(uint32(0))},
		"by a port": {},
	})
	uris := func(uris ...string) policy.Identity { return policy.Identity{URIs: uris} }
	dns := func(names ...string) policy.Identity { return policy.Identity{DNSNames: names} }
	jwt := func(issuer, subject string) policy.Identity {
		return policy.Identity{Issuer: issuer, Subject: subject}
	}
	for name, test := range map[string]struct {
		id   policy.Identity
		want string
	}{
		"nothing":                             {policy.Identity{}, "nobody"},
		"a SPIFFE ID":                         {uris("spiffe://example.com/ns/shop/sa/checkout"), "checkout"},
		"one that a pattern stands for":       {uris("spiffe://example.com/ns/shop/sa/cart"), "shop"},
		"the longest pattern":                 {uris("spiffe://example.com/ns/shop/sa/admin/x"), "admins"},
		"the place itself of a pattern":       {uris("spiffe://example.com/ns/shop/"), "nobody"},
		"an empty segment of a URL":           {uris("https://example.com/apps//x"), "nobody"},
		"an empty last segment":               {uris("https://example.com/apps/x/"), "nobody"},
		"a name beside an unknown one":        {uris("urn:example:batch", "urn:example:unknown"), "batch"},
		"a name after an unknown one":         {uris("urn:example:unknown", "urn:example:batch"), "batch"},
		"two names of one caller":             {uris("https://example.com/apps/a", "https://example.com/apps/b"), "web"},
		"a DNS name beside an unknown one":    {dns("gateway.example.com", "unknown.example.com"), "gateway"},
		"the longest pattern of a subject":    {jwt("https://ci", "repo:org/team/x"), "team"},
		"a segment that stays":                {uris("https://example.com/apps/./x"), "nobody"},
		"a segment that leaves":               {uris("https://example.com/apps/../x"), "nobody"},
		"beside a pattern":                    {uris("spiffe://example.com/ns/shopping/sa/x"), "nobody"},
		"another trust domain":                {uris("spiffe://example.com.evil.org/ns/shop/sa/checkout"), "nobody"},
		"a trust domain in capitals":          {uris("spiffe://EXAMPLE.com/ns/shop/sa/checkout"), "nobody"},
		"a longer path":                       {uris("spiffe://example.com/ns/shop/sa/checkout2"), "shop"},
		"a way out of a pattern":              {uris("spiffe://example.com/ns/shop/../bank/sa/x"), "nobody"},
		"an empty segment":                    {uris("spiffe://example.com/ns/shop//x"), "nobody"},
		"two URIs, one of them a SPIFFE ID":   {uris("spiffe://example.com/ns/shop/sa/checkout", "https://elsewhere"), "nobody"},
		"two SPIFFE IDs":                      {uris("spiffe://example.com/ns/shop/sa/checkout", "spiffe://example.com/ns/shop/sa/cart"), "nobody"},
		"a URI":                               {uris("urn:example:batch"), "batch"},
		"a URI that a pattern stands for":     {uris("https://example.com/apps/a"), "web"},
		"a URI among others":                  {uris("urn:other", "urn:example:batch"), "batch"},
		"URIs of two callers":                 {uris("https://example.com/apps/a", "urn:example:batch"), "batch"}, // a whole name counts more
		"a DNS name":                          {dns("gateway.EXAMPLE.com"), "gateway"},
		"a DNS name among others":             {dns("x.example.com", "gateway.example.com"), "gateway"},
		"DNS names of two callers":            {dns("gateway.example.com", "other.example.com"), "nobody"},
		"a look-alike":                        {dns("gateway.example.com.evil.org", "gateway.example.com "), "nobody"},
		"a wildcard certificate":              {dns("*.example.com"), "nobody"},
		"a URI counts more than a DNS name":   {policy.Identity{URIs: []string{"urn:example:batch"}, DNSNames: []string{"gateway.example.com"}}, "batch"},
		"a DNS name beside a strange URI":     {policy.Identity{URIs: []string{"urn:other"}, DNSNames: []string{"gateway.example.com"}}, "gateway"},
		"a DNS name as a URI":                 {uris("gateway.example.com"), "nobody"},
		"a subject":                           {jwt("https://k8s", "system:serviceaccount:shop:checkout"), "pod"},
		"one that a pattern stands for, too":  {jwt("https://k8s", "system:serviceaccount:shop:cart"), "pods"},
		"a subject of another issuer":         {jwt("https://k8s/", "system:serviceaccount:shop:checkout"), "nobody"},
		"a subject of another namespace":      {jwt("https://k8s", "system:serviceaccount:shopping:checkout"), "nobody"},
		"a subject that is a SPIFFE ID":       {jwt("https://k8s", "spiffe://example.com/ns/shop/sa/checkout"), "nobody"},
		"a user of this host":                 {policy.Identity{UID: new(uint32(0))}, "root"},
		"another user":                        {policy.Identity{UID: new(uint32(1))}, "nobody"},
		"a name that proves nothing":          {dns("by a port"), "nobody"},
		"a pattern presented as a name":       {uris("spiffe://example.com/ns/shop/*"), "nobody"},
		"a SPIFFE ID in capitals of a scheme": {uris("SPIFFE://example.com/ns/shop/sa/checkout"), "nobody"},

		"a SPIFFE ID in capitals beside another": {uris("SPIFFE://example.com/ns/shop/sa/x", "spiffe://example.com/ns/shop/sa/checkout"), "nobody"},
		"a SPIFFE ID beside no more than DNS":    {policy.Identity{URIs: []string{"spiffe://example.com/ns/shop/%2e"}, DNSNames: []string{"gateway.example.com"}}, "gateway"},
		"an empty query":                         {uris("spiffe://example.com/ns/shop/sa/checkout?"), "nobody"},
		"an empty fragment":                      {uris("spiffe://example.com/ns/shop/sa/checkout#"), "nobody"},
		"a port":                                 {uris("spiffe://example.com:443/ns/shop/sa/checkout"), "nobody"},
		"a user":                                 {uris("spiffe://root@example.com/ns/shop/sa/checkout"), "nobody"},
		"a slash at the end":                     {uris("spiffe://example.com/ns/shop/sa/checkout/"), "nobody"},
		"a query in a URL":                       {uris("https://example.com/apps/a?x=/../b"), "nobody"},
		"a fragment in a URL":                    {uris("https://example.com/apps/a#x"), "nobody"},
		"percent-encoding in a URL":              {uris("https://example.com/apps/%2e%2e/admin"), "nobody"},
		"a backslash in a URL":                   {uris(`https://example.com/apps/..\admin`), "nobody"},
		"a URN below a pattern":                  {uris("urn:example:apps/a"), "urns"},
		"a query in a URN":                       {uris("urn:example:apps/a?+x"), "nobody"},
		"a JWT-SVID":                             {jwt("https://spire", "spiffe://example.com/ns/shop/sa/cart"), "svids"},
		"a JWT-SVID that is encoded":             {jwt("https://spire", "spiffe://example.com/ns/shop/%2e%2e/x"), "nobody"},
		"a JWT-SVID that is not valid":           {jwt("https://spire", "spiffe://example.com/ns/shop/a;b"), "nobody"},
		"a JWT-SVID with a query":                {jwt("https://spire", "spiffe://example.com/ns/shop/x?y"), "nobody"},
		"a JWT-SVID with a fragment":             {jwt("https://spire", "spiffe://example.com/ns/shop/x#y"), "nobody"},
		"a URL as a subject":                     {jwt("https://spire", "https://example.com/apps/a"), "urls"},
		"a URL as a subject, encoded":            {jwt("https://spire", "https://example.com/apps/%2e%2e"), "nobody"},
		"a subject that is no URI":               {jwt("https://ci", "repo:org/name:environment:a%3Ab"), "repos"},
	} {
		if got := p.Caller(test.id); got.Name() != test.want {
			t.Errorf("%s: %q, want %q", name, got.Name(), test.want)
		}
	}
}

func FuzzPatternsAreNotLeft(f *testing.F) {
	for _, seed := range []string{"x", "../y", "a/../../b", "", "//", "a//b", "a/./b", "%2e%2e/b", "a/..", "a?x", "a#", "a;b", "a b", "\\..\\b", "é"} {
		f.Add(seed)
	}
	p := callers(map[string]policy.Match{"shop": {SPIFFEID: "spiffe://example.com/ns/shop/*"}})
	f.Fuzz(func(t *testing.T, rest string) {
		id := "spiffe://example.com/ns/shop/" + rest
		if p.Caller(policy.Identity{URIs: []string{id}}) == nil {
			return
		}
		if strings.Trim(rest, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._/") != "" {
			t.Fatalf("%q is not a SPIFFE ID", id)
		}
		depth := 0
		for segment := range strings.SplitSeq(rest, "/") {
			switch segment {
			case "", ".":
				t.Fatalf("%q was recognised", id)
			case "..":
				depth--
			default:
				depth++
			}
			if depth < 1 {
				t.Fatalf("%q leaves the pattern", id)
			}
		}
	})
}
