package policyreview_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/policyreview"
)

func TestExplain_boundListener(t *testing.T) {
	cfg, err := config.Parse("f", []byte(`listen: {unix: {path: /run/broker, caller: gate}}
issuers: [{issuer: "https://a", audiences: [api]}]
callers: [{name: gate, roles: [check]}]
roles: {check: {verify: [{issuer: "https://a"}]}}
`))
	if err != nil {
		t.Fatal(err)
	}
	lines, ok := policyreview.Explain(cfg, "gate")
	const want = "caller gate (line 3), identified by a listener that is bound to it\nevery connection without another identity is this caller: listen.unix.caller (line 1)\nby role check"
	if !ok || !strings.HasPrefix(strings.Join(lines, "\n"), want) {
		t.Errorf("%q", lines)
	}
	if _, ok := policyreview.Explain(cfg, "nobody"); ok {
		t.Error("it explains a caller that does not exist")
	}
}

func upstreamConfig(t *testing.T, gateways string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("f", []byte(`clients:
  orders: {issuer: "https://a", client_id: a, secret: "file:/s"}
  user: {issuer: "https://a", client_id: a, secret: "file:/s", audience: api, exchange: {}}
`+gateways+`
issuers: [{issuer: "https://a", audiences: [api]}]
callers: [{name: gate, spiffe_id: "spiffe://a/gate", roles: [check]}, {name: egress, spiffe_id: "spiffe://a/egress", roles: [out]}]
roles:
  check: {verify: [{issuer: "https://a"}], exchange: [{client: user, from: {issuers: ["https://a"], audiences: [api]}}]}
  out: {get: [{client: orders}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestExplain_upstreamTokens(t *testing.T) {
	cfg := upstreamConfig(t, `gateways: {upstream: {a: {client: user, on_behalf_of: true, scopes: [x], header: X-Token, keep_inbound: true}, b: {client: orders, verify: none}, c: {client: orders}}}`)
	for caller, want := range map[string]string{
		"gate":   `as a gateway it may send the upstream token "b" (line 4): client orders; header Authorization; requests need no token`,
		"egress": `as a gateway it may send the upstream token "b" (line 4): client orders; header Authorization; requests need no token`,
	} {
		lines, ok := policyreview.Explain(cfg, caller)
		text := strings.Join(lines, "\n")
		if !ok || strings.Contains(text, want) != (caller == "egress") || strings.Contains(text, `token "a"`) || strings.Contains(text, `token "c"`) {
			t.Errorf("%s: %s", caller, text)
		}
	}
	cfg = upstreamConfig(t, `gateways: {upstream: {a: {client: user, on_behalf_of: true, audience: api, header: X-Token, keep_inbound: true}}}`)
	lines, _ := policyreview.Explain(cfg, "gate")
	const want = `as a gateway it may send the upstream token "a" (line 4): client user; on behalf of the user; audience api; header X-Token; the service also gets the token of the request`
	if text := strings.Join(lines, "\n"); !strings.HasSuffix(text, want) {
		t.Error(text)
	}
}

func TestCompare_upstreamTokens(t *testing.T) {
	before := upstreamConfig(t, `gateways: {ext_authz: {rules: [{host: a.example.com}]}, upstream: {a: {client: orders}, b: {client: orders}}}`)
	after := upstreamConfig(t, `gateways: {ext_authz: {rules: [{host: a.example.com, upstream: a}]}, upstream: {a: {client: orders, verify: none}}}`)
	got := policyreview.Compare(policyreview.NewFile("old", before), policyreview.NewFile("new", after)).Settings
	want := []policyreview.Setting{
		{Key: "gateway rule for a.example.com, any path", Before: "the issuer's audiences", After: "no token; upstream token a"},
		{Key: "gateways.upstream.a", Before: "client orders; header Authorization", After: "client orders; header Authorization; requests need no token"},
		{Key: "gateways.upstream.b", Before: "client orders; header Authorization"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	after = upstreamConfig(t, `gateways: {ext_authz: {rules: [{host: a.example.com, upstream: a}]}, upstream: {a: {client: orders}, b: {client: orders}}}`)
	got = policyreview.Compare(policyreview.NewFile("old", before), policyreview.NewFile("new", after)).Settings
	if want := "the issuer's audiences; upstream token a"; len(got) != 1 || got[0].After != want {
		t.Errorf("%+v, want %q", got, want)
	}
}
