package policyreview_test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/policyreview"
)

func parse(t *testing.T, name, text string) *policyreview.File {
	t.Helper()
	cfg, err := config.Parse(name, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return policyreview.NewFile(name, cfg)
}

func textOf(t *testing.T, c *policyreview.Comparison) string {
	t.Helper()
	var out strings.Builder
	if err := c.Text(&out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestCompare_files(t *testing.T) {
	load := func(name string) *policyreview.File {
		text, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return parse(t, name, string(text))
	}
	const want = `old.yaml -> new.yaml: 4 callers lose permissions, 3 gain, 2 get other defaults, 2 differences of identities, 1 difference of listeners and gateway rules

caller checkout
  ~ identified by the SPIFFE ID spiffe://example.com/ns/shop/sa/checkout in its certificate -> identified by the SPIFFE ID spiffe://example.com/ns/shop/sa/* in its certificate
  - tokens of client orders: scopes write  (old.yaml:20)
  + tokens of client orders: scopes list  (new.yaml:21)
  ~ tokens of client orders, if the request names no scopes: scopes read, write -> scopes read

caller reports
  - tokens of client billing: audiences https://ledger.example.com  (old.yaml:23)
  + tokens of client billing: scopes list  (new.yaml:24)
  ~ tokens of client billing: audiences https://billing.example.com, if the request names no scopes: scopes read -> scopes list, read
  - tokens of client orders: scopes write  (old.yaml:20)
  + tokens of client orders: scopes list  (new.yaml:21)
  ~ tokens of client orders, if the request names no scopes: scopes read, write -> scopes read

caller gateway
  - verification of tokens of issuer https://login.example.com: audiences https://admin.example.com  (old.yaml:27)

caller ops
  - admin get_status, rotate_secret, activate_secret, rollback_secret, retire_secret, export_secret, import_secret, rotate_key, list_keys on any client  (old.yaml:30)
  - admin revoke_tokens, delete_revocation  (old.yaml:30)

caller batch (new)
  + tokens of client billing: audiences https://billing.example.com; scopes read  (new.yaml:33)
  + tokens of client orders: audiences https://orders.example.com; scopes read  (new.yaml:33)

identities, listeners and gateway rules
  ~ gateway rule for api.example.com/orders/: the issuer's audiences; scopes read -> the issuer's audiences; scopes list, read
`
	if got := textOf(t, policyreview.Compare(load("old.yaml"), load("new.yaml"))); got != want {
		t.Errorf("%s\nwant:\n%s", got, want)
	}
	if got := textOf(t, policyreview.Compare(load("old.yaml"), load("old.yaml"))); got != "no difference: old.yaml allows the same requests as old.yaml\n" {
		t.Error(got)
	}
}

// base is the configuration that the tests change.
const base = `listen: {http: {address: "127.0.0.1:8080", plaintext: true, caller: local}}
clients:
  orders: {issuer: "https://idp", client_id: abc, secret: "env:A", audience: "https://orders", resources: ["https://r1"], scopes: [read, write]}
  plain: {issuer: "https://idp", client_id: def, secret: "env:A"}
issuers: [{issuer: "https://idp", audiences: ["https://orders"]}]
callers:
  - {name: shop, spiffe_id: "spiffe://example.com/shop", roles: [shop]}
  - {name: all, spiffe_id: "spiffe://example.com/*", roles: [none]}
  - {name: robot, issuer: "https://idp", claims: [{path: [a, b], value: "x/*"}], roles: [none]}
  - {name: local, roles: [none]}
roles:
  shop: {get: [{client: orders}]}
  none: {admin: [{actions: [get_client], clients: [plain]}]}
`

func TestCompare_changes(t *testing.T) {
	const grant, caller = "shop: {get: [{client: orders}]}", `  - {name: shop, spiffe_id: "spiffe://example.com/shop", roles: [shop]}` + "\n"
	for name, test := range map[string]struct {
		from, to string
		want     []string // lines of the text that begin with a mark
		title    string
	}{
		"the same in other words": {grant, `shop: {get: [{client: orders, audiences: ["https://orders"], scopes: [write, read]}]}`, nil, ""},
		"a grant within another":  {grant, `shop: {get: [{client: orders}, {client: orders, scopes: [read]}]}`, nil, ""},
		"another order of roles":  {"roles: [shop]", "roles: [none, shop]", []string{"+ admin get_client on clients plain  (new:13)"}, "caller shop"},
		"two grants for one": {grant, `shop: {get: [{client: orders, scopes: [read]}, {client: orders, scopes: [write]}]}`, []string{
			"- tokens of client orders: scopes read, write in one request  (old:12)",
			"~ tokens of client orders, if the request names no scopes: scopes read, write -> scopes read",
		}, "caller shop"},
		"resources": {grant, `shop: {get: [{client: orders, resources: ["https://r1", "https://r2"]}]}`, []string{"+ tokens of client orders: resources https://r2  (new:12)"}, "caller shop"},
		"any audience": {grant, `shop: {get: [{client: orders, audiences: ["*"]}]}`, []string{
			"+ tokens of client orders: audiences any other  (new:12)",
		}, "caller shop"},
		"no default scope": {grant, `shop: {get: [{client: orders, scopes: [list]}]}`, []string{
			"- tokens of client orders: scopes read, write  (old:12)", "+ tokens of client orders: scopes list  (new:12)",
		}, "caller shop"},
		"another default audience": {`audience: "https://orders", resources`, `audience: "https://new", resources`, []string{
			"- tokens of client orders: audiences https://orders  (old:12)", "+ tokens of client orders: audiences https://new  (new:12)",
			"~ tokens of client orders, if the request names no audience: audience https://orders -> audience https://new",
		}, "caller shop"},
		"a wildcard": {grant, `shop: {get: [{client: "*"}]}`, []string{"+ tokens of client plain  (new:12)"}, "caller shop"},
		"a scope of a client without scopes": {grant, `shop: {get: [{client: orders}, {client: plain, scopes: [x]}]}`, []string{
			"+ tokens of client plain: scopes x  (new:12)",
		}, "caller shop"},
		"verify": {grant, `shop: {get: [{client: orders}], verify: [{issuer: "https://idp"}]}`, []string{
			"+ verification of tokens of issuer https://idp: audiences https://orders  (new:12)",
		}, "caller shop"},
		"admin":                      {"actions: [get_client], clients: [plain]", "actions: [get_client]", slices.Repeat([]string{"+ admin get_client on clients any other, orders  (new:13)"}, 3), "caller all"},
		"an action without a client": {"actions: [get_client], clients: [plain]", "actions: [get_client, revoke_tokens], clients: [plain]", nil, ""},
		"a removed caller": {caller, "", []string{
			"- tokens of client orders: audiences https://orders; resources https://r1; scopes read, write  (old:12)",
			"~ the SPIFFE ID spiffe://example.com/shop in its certificate: caller shop -> caller all",
		}, "caller shop (removed)"},
		"a renamed caller": {"name: shop", "name: store", nil, "caller store (renamed from shop)"},
		"an identity": {"spiffe://example.com/shop", "spiffe://example.com/store", []string{
			"~ identified by the SPIFFE ID spiffe://example.com/shop in its certificate -> identified by the SPIFFE ID spiffe://example.com/store in its certificate",
			"~ the SPIFFE ID spiffe://example.com/shop in its certificate: caller shop -> caller all",
			"~ the SPIFFE ID spiffe://example.com/store in its certificate: caller all -> caller shop",
		}, "caller shop"},
		"claims": {"value: \"x/*\"", "value: \"x/y\"", []string{
			"~ identified by a JWT of the issuer https://idp with x/* in the claim a > b -> identified by a JWT of the issuer https://idp with x/y in the claim a > b",
		}, "caller robot"},
		"a caller within a pattern": {"  - {name: local,", "  - {name: one, spiffe_id: \"spiffe://example.com/one\", roles: [shop]}\n  - {name: local,", []string{
			"+ tokens of client orders: audiences https://orders; resources https://r1; scopes read, write  (new:13)",
			"~ the SPIFFE ID spiffe://example.com/one in its certificate: caller all -> caller one",
		}, "caller one (new)"},
		"a listener": {"caller: local}", "caller: shop}", []string{"~ listen.http.caller: local -> shop"}, "identities, listeners and gateway rules"},
		"ext_authz":  {"issuers:", "gateways: {ext_authz: {rules: [{path: /a}]}}\nissuers:", []string{"~ gateways.ext_authz: not served -> 1 rule: a request without a matching rule is denied"}, "identities, listeners and gateway rules"},
		"limits":     {"roles: [shop]", "roles: [shop], limits: {per_second: 1}", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(base, test.from, test.to, 1)
			if text == base {
				t.Fatal("the change changes nothing")
			}
			if name == "a listener" { // its callers are bound by turns
				text = strings.Replace(text, "  - {name: local, roles: [none]}\n", "  - {name: local, uid: 1, roles: [none]}\n", 1)
				test.want = append([]string{"~ identified by a listener that is bound to it -> identified by the Unix user 1 of its process"}, test.want...)
			}
			comparison := policyreview.Compare(parse(t, "old", base), parse(t, "new", text))
			got := textOf(t, comparison)
			var marked []string
			for line := range strings.Lines(got) {
				if line = strings.TrimSpace(line); strings.ContainsAny(line[:min(1, len(line))], "+-~") {
					marked = append(marked, line)
				}
			}
			if !slices.Equal(marked, test.want) || test.title != "" && !strings.Contains(got, test.title+"\n") || comparison.Equal() != (test.title == "") {
				t.Errorf("%s\nwant %q: %q", got, test.title, test.want)
			}
		})
	}
}

func TestCompare_gatewayRules(t *testing.T) {
	with := func(rules string) string {
		return strings.Replace(base, "issuers:", "gateways: {ext_authz: {rules: ["+rules+"]}}\nissuers:", 1)
	}
	const before = `{host: A.example.com, path: /a, scopes: [read]}, {host: b.example.com}`
	for name, test := range map[string]struct {
		rules string
		want  []string
	}{
		"the same":      {`{host: a.example.com, path: /a, scopes: [read]}, {host: b.example.com}, {host: b.example.com, scopes: [never]}`, nil},
		"scopes":        {`{host: a.example.com, path: /a, scopes: [read, write], issuer: "https://idp"}, {host: b.example.com}`, []string{"~ gateway rule for a.example.com/a: the issuer's audiences; scopes read -> the issuer's audiences; scopes read, write; issuer https://idp"}},
		"a rule less":   {`{host: a.example.com, path: /a, scopes: [read]}`, []string{"- gateway rule for b.example.com, any path: the issuer's audiences"}},
		"another order": {`{host: b.example.com}, {host: a.example.com, path: /a, scopes: [read]}`, []string{"~ gateways.ext_authz.rules, the order: a.example.com/a; b.example.com, any path -> b.example.com, any path; a.example.com/a"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := textOf(t, policyreview.Compare(parse(t, "old", with(before)), parse(t, "new", with(test.rules))))
			for _, want := range test.want {
				if !strings.Contains(got, "  "+want+"\n") {
					t.Errorf("%s\nwant: %s", got, want)
				}
			}
			if len(test.want) == 0 && !strings.HasPrefix(got, "no difference") {
				t.Error(got)
			}
		})
	}
}

// logOf returns a log with a line for each event.
func logOf(t *testing.T, events ...audit.Event) *policyreview.Log {
	t.Helper()
	var text bytes.Buffer
	for i := range events {
		text.WriteString(lineOf(t, &events[i]))
	}
	log := policyreview.NewLog()
	if err := log.Read("audit.jsonl", &text); err != nil || log.Bad > 0 {
		t.Fatalf("%v, %q", err, log.BadLines)
	}
	return log
}

// lineOf has the real log write an event.
func lineOf(t *testing.T, e *audit.Event) string {
	t.Helper()
	file := t.TempDir() + "/audit.jsonl"
	log, err := audit.Open(audit.Config{File: file})
	if err != nil {
		t.Fatal(err)
	}
	log.Record(e)
	_ = log.Close()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestLogCountsWhatItDoesNotJudge(t *testing.T) {
	log := logOf(t,
		audit.Event{Event: audit.Start, ConfigSHA256: [32]byte{1}}, audit.Event{Event: audit.Rotation, Outcome: audit.OK, Client: "orders"},
		audit.Event{Event: audit.Lost, Count: 5},
		audit.Event{Event: audit.Token, Outcome: audit.Denied, Caller: "shop", Count: 7},
		audit.Event{Event: audit.Verification, Outcome: audit.Rejected, Caller: "shop", Count: 2},
		audit.Event{Event: audit.Admin, Outcome: audit.OK, Action: "get_client"},
		audit.Event{Event: audit.Admin, Outcome: audit.OK, Caller: "shop", Action: "launch_rocket"},
		audit.Event{Event: "exchange", Outcome: audit.OK, Caller: "shop"},
		audit.Event{Event: audit.Token, Outcome: audit.OK, Caller: "shop", Client: "orders", Count: 9},
	)
	const older = `{"v":1,"replica":"r","time":"2026-11-25T21:49:05.123456Z","event":"token","outcome":"ok","caller":"shop","client":"orders","audience":["a"]}`
	if err := log.Read("older", strings.NewReader(older)); err != nil {
		t.Fatal(err)
	}
	summary := log.Summary(parse(t, "old", base), 3)
	want := map[string]uint64{
		"lines that the broker could not write": 5, "of another format of the audit log": 1,
		"denials and rejections that the log only counts": 9, "without a caller": 1,
		"of an event, an outcome or an action that this version does not know": 2, "requests about which the log has too little": 3,
	}
	if fmt.Sprint(summary.NotJudged) != fmt.Sprint(want) || fmt.Sprint(summary.OtherEvents) != "map[rotation:1 start:1]" || summary.Requests != 9 || summary.Lines != 10 || !summary.OtherConfig {
		t.Errorf("%+v\nwant %v", summary, want)
	}
}

func TestReplay_reasons(t *testing.T) {
	token := audit.Event{Event: audit.Token, Outcome: audit.OK, Caller: "shop", Client: "orders", Audiences: []string{"https://orders"}, Resources: []string{"https://r1"}, Scopes: []string{"read", "write"}, GrantedScopes: []string{"read", "write"}}
	explicit := token
	explicit.Scopes, explicit.GrantedScopes = []string{"write"}, []string{"write"}
	tooMuch := token
	tooMuch.GrantedScopes = []string{"read", "write", "more"}
	denied := audit.Event{Event: audit.Token, Outcome: audit.Denied, Reason: "NOT_ENTITLED", Caller: "shop", Client: "plain"}
	active := audit.Event{Event: audit.Verification, Outcome: audit.Active, Caller: "shop", Issuer: "https://idp"}
	const grant = "shop: {get: [{client: orders}]}"
	for name, test := range map[string]struct {
		event    audit.Event
		from, to string
		after    policyreview.Verdict
		why      string
	}{
		"no caller":           {token, "name: shop, spiffe_id: \"spiffe://example.com/shop", "name: store, spiffe_id: \"spiffe://example.com/store", policyreview.Denied, "no such caller"},
		"renamed":             {token, "name: shop", "name: store", "", ""},
		"no grant":            {token, "client: orders}", "client: plain}", policyreview.Denied, "no grant for client orders"},
		"audience":            {token, grant, `shop: {get: [{client: orders, audiences: ["https://x"]}]}`, policyreview.Denied, "no grant allows the audience https://orders"},
		"resource":            {token, grant, `shop: {get: [{client: orders, resources: ["https://x"]}]}`, policyreview.Denied, "no grant allows the resources https://r1"},
		"default or named":    {token, grant, `shop: {get: [{client: orders, scopes: [read]}]}`, policyreview.Depends, "no grant allows the scopes write; the log does not tell whether"},
		"named":               {explicit, grant, `shop: {get: [{client: orders, scopes: [read]}]}`, policyreview.Denied, "no grant allows the scopes write"},
		"two grants":          {token, grant, `shop: {get: [{client: orders, resources: ["*"], scopes: [x]}, {client: orders, audiences: ["https://orders"], resources: ["https://r2"]}]}`, policyreview.Denied, "no grant allows the scopes read, write"},
		"granted scopes":      {tooMuch, "roles:\n", "roles:\n", policyreview.Denied, "the scopes that the IdP granted, which are more, read, write"},
		"now allowed":         {denied, grant, `shop: {get: [{client: "*"}]}`, policyreview.Allowed, ""},
		"verification":        {active, "roles:\n", "roles:\n", policyreview.Denied, "no grant to verify tokens"},
		"own audiences fewer": {active, `audiences: ["https://orders"]}]`, `audiences: ["https://x"]}]`, policyreview.Denied, "no grant to verify tokens"},
	} {
		t.Run(name, func(t *testing.T) {
			old := parse(t, "old", base)
			requests, _ := policyreview.Compare(old, parse(t, "new", strings.Replace(base, test.from, test.to, 1))).Replay(logOf(t, test.event))
			switch {
			case test.after == "" && len(requests) == 0:
			case test.after == "" || len(requests) != 1:
				t.Errorf("%+v", requests)
			case requests[0].After != test.after || !strings.Contains(requests[0].Why, test.why) || (test.why == "") != (requests[0].Why == ""):
				t.Errorf("%+v", requests[0])
			}
		})
	}
}

func TestUsage(t *testing.T) {
	text := strings.NewReplacer(
		"shop: {get: [{client: orders}]}", `shop: {get: [{client: orders, scopes: [read, write]}, {client: plain}], verify: [{issuer: "https://idp"}]}`,
		"[get_client], clients: [plain]", "[get_client, list_clients], clients: [plain, orders]",
	).Replace(base)
	at := time.Date(2026, 11, 25, 21, 49, 5, 0, time.UTC)
	log := logOf(t,
		audit.Event{Event: audit.Token, Outcome: audit.OK, Caller: "shop", Client: "orders", Audiences: []string{"https://orders"}, Resources: []string{"https://r1"}, Scopes: []string{"read"}, GrantedScopes: []string{"read"}, Count: 6, Time: at},
		audit.Event{Event: audit.Admin, Outcome: audit.Refused, Caller: "all", Action: "get_client", Client: "plain", Time: at},
		audit.Event{Event: audit.Token, Outcome: audit.Denied, Reason: "NOT_ENTITLED", Caller: "robot", Client: "orders", Time: at},
	)
	var out strings.Builder
	if err := parse(t, "f", text).Usage(log).Text(&out); err != nil {
		t.Fatal(err)
	}
	const want = `f: 1 of 4 grants were never needed

never needed
  f:12  role shop: get client plain

unknown: the log has no accepted verifications (set audit.verifications: all)
  f:12  role shop: verify issuer https://idp

needed
  f:12  role shop: get client orders; scopes read, write
      6 requests, last 2026-11-25 21:49:05Z, by shop
      never needed: scope write
  f:13  role none: admin get_client, list_clients; clients plain, orders
      1 request, last 2026-11-25 21:49:05Z, by all
      never needed: action list_clients, client orders

callers that never needed a role
  f:9  caller robot: role none
  f:10  caller local: role none  (no request of this caller in the log)
`
	if out.String() != want {
		t.Errorf("%s\nwant:\n%s", out.String(), want)
	}
}

// Two grants keep one default scope each, and the first one counts for the resource that
// both allow.
func TestCompare_orderOfGrants(t *testing.T) {
	const first, second = `{client: orders, resources: ["https://r2", "https://r3"], scopes: [read]}`, `{client: orders, resources: ["https://r2", "https://r4"], scopes: [write]}`
	with := func(grants string) string {
		return strings.Replace(base, "shop: {get: [{client: orders}]}", "shop: {get: ["+grants+"]}", 1)
	}
	got := textOf(t, policyreview.Compare(parse(t, "old", with(first+", "+second)), parse(t, "new", with(second+", "+first))))
	if !strings.Contains(got, "~ tokens of client orders, if the request names no scopes: scopes read -> scopes write\n") {
		t.Error(got)
	}
}

func TestUsageCountsTheGrantThatDecides(t *testing.T) {
	text := strings.Replace(base, "{client: orders}", "{client: orders, scopes: [read]}, {client: orders}, {client: orders, scopes: [read, write]}", 1)
	usage := parse(t, "f", text).Usage(logOf(t, audit.Event{
		Event: audit.Token, Outcome: audit.OK, Caller: "shop", Client: "orders", Audiences: []string{"https://orders"}, Resources: []string{"https://r1"},
		Scopes: []string{"read", "write"}, GrantedScopes: []string{"read", "write"},
	}))
	for i, want := range []uint64{0, 1, 0} {
		if got := usage.Grants[i]; got.Count != want {
			t.Errorf("grant %d: %+v, want count %d", i, got, want)
		}
	}
}
