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
	lines, ok := policy.Explain(cfg, "checkout")
	want := `caller checkout, identified by the SPIFFE ID spiffe://example.com/checkout in its certificate
by role shop:
  may get tokens of client orders
    audiences: orders-api
    resources: r1, r2
    scopes:    read
    scopes of a request that names none: read
  may get tokens of client billing
    audiences: any
    resources: none
    scopes:    read
    scopes of a request that names none: read
  may verify tokens of issuer https://a
    audiences: x
  may perform admin actions: purge_tokens
    clients: orders
by role none:
  nothing: its grants name no client and no issuer that exists
by role all:
  may perform admin actions: list_clients, get_client, get_status, rotate_secret, activate_secret, rollback_secret, retire_secret, export_secret, import_secret, purge_tokens, revoke_tokens, list_revocations, delete_revocation, and every action that a later version adds
    clients: any
a request for a token of client billing that names nothing else gets the scopes read
a request for a token of client orders that names nothing else gets the scopes read
and nothing else.`
	if got := strings.Join(lines, "\n"); !ok || got != want {
		t.Errorf("%v:\n%s\nwant:\n%s", ok, got, want)
	}
	if _, ok := policy.Explain(cfg, "zebra"); ok {
		t.Error("a caller that does not exist is explained")
	}
}
