package policy_test

import (
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/policy"
)

func TestExplanationSaysWhatMayBeAskedForAndWhy(t *testing.T) {
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
	lines, known := policy.Explain(cfg, "checkout")
	want := `caller checkout, recognised by the SPIFFE ID spiffe://example.com/checkout in its certificate
by role shop:
  may have tokens of client orders
    for audiences: orders-api
    for resources: r1, r2
    with scopes:   read
    with none named: read
  may have tokens of client billing
    for audiences: any
    for resources: none
    with scopes:   read
    with none named: read
  may have tokens of issuer https://a verified
    for audiences: x
  may act as an operator: purge_tokens
    on clients: orders
by role none:
  nothing: its grants are for what does not exist
by role all:
  may act as an operator: list_clients, get_client, rotate_secret, activate_secret, rollback_secret, retire_secret, export_secret, import_secret, purge_tokens, revoke_tokens, list_revocations, delete_revocation, and every action that a later version adds
    on clients: any
a request for a token of client billing that names nothing else gets the scopes read
a request for a token of client orders that names nothing else gets the scopes read
and nothing else.`
	if got := strings.Join(lines, "\n"); !known || got != want {
		t.Errorf("%v:\n%s\nwant:\n%s", known, got, want)
	}
	if _, known := policy.Explain(cfg, "zebra"); known {
		t.Error("a caller who is not there is explained")
	}
}
