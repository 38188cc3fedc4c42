package policy_test

import (
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/policy"
)

func TestExplain(t *testing.T) {
	cfg := config(map[string]policy.Role{
		"shop": {
			Get:    []policy.GetGrant{{Client: "orders", Scopes: []string{"read"}}, {Client: "billing", Audiences: []string{"*"}}},
			Verify: []policy.VerifyGrant{{Issuer: "https://a", Audiences: []string{"x"}}},
			Admin:  []policy.AdminGrant{{Actions: []policy.Action{policy.PurgeTokens}, Clients: []string{"orders"}}},
		},
		"none": {Get: []policy.GetGrant{{Client: "zebra"}}},
		"all":  {Admin: []policy.AdminGrant{{Actions: []policy.Action{policy.AnyAction}}}},
	})
	cfg.Callers = []policy.CallerConfig{{Name: "checkout", Match: policy.Match{SPIFFEID: "spiffe://example.com/checkout"}, Roles: []string{"shop", "none", "all"}}}
	line := func(keys ...any) int { return len(keys) * 10 }
	lines, ok := policy.Explain(cfg, "checkout", line)
	want := `caller checkout (line 20), identified by the SPIFFE ID spiffe://example.com/checkout in its certificate
by role shop (line 20):
  may get tokens of client orders (line 40)
    audiences: orders-api (the client's own)
    resources: r1, r2 (the client's own)
    scopes:    read
    scopes of a request that names none: read
  may get tokens of client billing (line 40)
    audiences: any
    resources: none (the client's own)
    scopes:    read (the client's own)
    scopes of a request that names none: read
  may verify tokens of issuer https://a (line 40)
    audiences: x
  may perform admin actions: purge_tokens (line 40)
    clients: orders
by role none (line 20):
  nothing: its grants name no client and no issuer that exists
by role all (line 20):
  may perform admin actions: list_clients, get_client, get_status, rotate_secret, activate_secret, rollback_secret, retire_secret, export_secret, import_secret, rotate_key, list_keys, purge_tokens, revoke_tokens, list_revocations, delete_revocation, and every action that a later version adds (line 40)
    clients: any
a request for a token of client billing that names nothing else gets the scopes read
a request for a token of client orders that names nothing else gets the scopes read
and nothing else.`
	if got := strings.Join(lines, "\n"); !ok || got != want {
		t.Errorf("%v:\n%s\nwant:\n%s", ok, got, want)
	}
	if _, ok := policy.Explain(cfg, "zebra", line); ok {
		t.Error("a caller that does not exist is explained")
	}
}

func TestExplain_exchangeGrants(t *testing.T) {
	cfg := config(map[string]policy.Role{"shop": {Exchange: []policy.ExchangeGrant{
		{Client: "orders", From: policy.From{Issuers: []string{"https://a", "https://b"}, Audiences: []string{"shop"}, Scopes: []string{"openid"}}, Audiences: []string{"x"}},
		{Client: "billing", From: policy.From{Issuers: []string{"https://a"}, Audiences: []string{"shop"}}},
	}}})
	orders := cfg.Clients["orders"]
	orders.Exchanges = true
	cfg.Clients["orders"] = orders
	lines, _ := policy.Explain(cfg, "shop", func(keys ...any) int { return len(keys) * 10 })
	const want = `  may get tokens of client orders on behalf of users (line 40)
    for user tokens of issuer https://a or https://b, for audience shop, with all of the scopes openid
    audiences: x
    resources: r1, r2 (the client's own)
    scopes:    read, write (the client's own)
    scopes of a request that names none: read, write
and nothing else.`
	if text := strings.Join(lines, "\n"); !strings.HasSuffix(text, want) || strings.Contains(text, "billing") {
		t.Errorf("%s\nwant:\n%s", text, want)
	}
}

func TestExplain_withoutLines(t *testing.T) {
	cfg := config(map[string]policy.Role{"shop": {Get: []policy.GetGrant{{Client: "orders"}}}})
	lines, _ := policy.Explain(cfg, "shop", func(...any) int { return 0 })
	if text := strings.Join(lines, "\n"); strings.Contains(text, "(line") || !strings.Contains(text, "may get tokens of client orders\n") {
		t.Errorf("without lines of the file:\n%s", text)
	}
}

func TestExplain_eachIssuerOfAGrant(t *testing.T) {
	cfg := config(map[string]policy.Role{"shop": {Verify: []policy.VerifyGrant{{Issuer: "https://b"}}}})
	lines, _ := policy.Explain(cfg, "shop", func(...any) int { return 0 })
	if text := strings.Join(lines, "\n"); !strings.Contains(text, "may verify tokens of issuer https://b\n    audiences: z") || strings.Contains(text, "https://a") {
		t.Errorf("a grant for one of two issuers:\n%s", text)
	}
}

func TestMatch_text(t *testing.T) {
	for want, match := range map[string]policy.Match{
		"the SPIFFE ID spiffe://e/x in its certificate":                         {SPIFFEID: "spiffe://e/x"},
		"the URI urn:x in its certificate":                                      {URISAN: "urn:x"},
		"the DNS name x.example.com in its certificate":                         {DNSSAN: "x.example.com"},
		"a JWT of the issuer https://i with the subject s":                      {Issuer: "https://i", Subject: "s"},
		"a JWT of the issuer https://i with v in the claim a > b":               {Issuer: "https://i", Claims: []policy.Claim{{Path: []string{"a", "b"}, Value: "v"}}},
		"a JWT of the issuer https://i with the subject s and v in the claim a": {Issuer: "https://i", Subject: "s", Claims: []policy.Claim{{Path: []string{"a"}, Value: "v"}}},
		"the Unix user 7 of its process":                                        {UID: new(uint32(7))},
		"a listener that is bound to it":                                        {},
	} {
		if got := match.String(); got != "identified by "+want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
