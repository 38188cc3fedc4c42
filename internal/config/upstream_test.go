package config_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/gateway"
)

// upstreamFile is a file with the clients "obo", which exchanges, and "own". The entry "x" is
// in line 14, and the rule in line 17.
func upstreamFile(entry, rule string) string {
	return `clients:
  obo: {issuer: https://login.example.com, client_id: a, secret: "file:/s", audience: orders, exchange: {}}
  own: {issuer: https://login.example.com, client_id: b, secret: "file:/s", scopes: [read]}
  leg: {issuer: https://login.example.com, client_id: b, secret: "file:/s", exchange: {requested_token_type: id-jag}}
  two: {issuer: https://login.example.com, client_id: b, secret: "file:/s", exchange: {assertion_from: leg}}
issuers: [{issuer: https://login.example.com, audiences: [a]}]
callers: [{name: edge, uid: 1, roles: [edge]}, {name: egress, uid: 2, roles: [egress]}]
roles:
  edge: {verify: [{issuer: "*"}], get: [{client: own}], exchange: [{client: obo, from: {issuers: [https://login.example.com], audiences: [a]}}]}
  egress: {get: [{client: own}]}
listen: {http: "127.0.0.1:8444", unix: {path: /run/x}}
gateways:
  upstream:
    x: ` + entry + `
  ext_authz:
    rules:
      - ` + rule + "\n"
}

const (
	goodEntry = "{client: own}"
	goodRule  = "{host: orders.example.com, path: /orders/, upstream: x}"
)

func TestUpstream_isRead(t *testing.T) {
	for entry, want := range map[string]gateway.Upstream{
		"{client: obo, on_behalf_of: true}":                                      {Name: "x", Client: "obo", OnBehalfOf: true, Header: "Authorization"},
		"{client: own, audience: b, scopes: [read], header: x-token}":            {Name: "x", Client: "own", Audience: "b", Scopes: []string{"read"}, Header: "x-token"},
		"{client: own, header: X-Upstream-Token, keep_inbound: true}":            {Name: "x", Client: "own", Header: "X-Upstream-Token", KeepInbound: true},
		"{client: own, verify: none}":                                            {Name: "x", Client: "own", Header: "Authorization", Unverified: true},
		"{client: own, verify: token, keep_inbound: false, on_behalf_of: false}": {Name: "x", Client: "own", Header: "Authorization"},
	} {
		c, err := config.Parse("x", []byte(upstreamFile(entry, goodRule)))
		if err != nil {
			t.Errorf("%s: %v", entry, err)
			continue
		}
		if d := cmp.Diff([]gateway.Upstream{want}, c.Gateways.ForGateways()); d != "" || c.Gateways.ExtAuthz.Rules[0].Upstream != "x" {
			t.Errorf("%s: %s", entry, d)
		}
	}
}

func TestUpstream_refusesMistakes(t *testing.T) {
	const entry, rule = "gateways.upstream.x", "gateways.ext_authz.rules[0].upstream"
	const meaning = ": a token cannot be sent in this header, because it has a meaning of its own for servers or proxies: use Authorization, or a header such as X-Upstream-Token"
	const name = ": expected the name of a header, of letters, digits and hyphens: some servers read an underscore as a hyphen, and a name with a colon is no header of its own"
	const host = ": a rule with upstream names one exact host, because the token would otherwise reach any host that a request names: give host"
	headers := map[string]string{
		"X-Auth-Subject": ": begins with gateways.header_prefix, so gateways remove it with the identity headers: give another name",
		"x-auth-other":   ": begins with gateways.header_prefix, so gateways remove it with the identity headers: give another name",
		"X_Token":        name, "':authority'": name, "'A B'": name, "X.Token": name, "'1x'": name, "'X-Token:'": name,
	}
	for _, header := range []string{
		"Host", "host", "Content-Length", "Transfer-Encoding", "TE", "Connection", "Upgrade", "Trailer", "Expect", "Cookie", "Set-Cookie", "X-Forwarded-For", "X-Forwarded-Host", "Forwarded",
		"X-Real-IP", "Proxy-Authorization", "X-Envoy-Original-Path", "X-Original-URL", "X-Verify-Audience", "Cache-Control", "WWW-Authenticate", "Vary", "Content-Type", "Keep-Alive", "HTTP2-Settings",
	} {
		headers[header] = meaning
	}
	type bad struct{ entry, rule, want string }
	all := []bad{
		{"{client: ows}", goodRule, "14: " + entry + ".client: no such client: add it to clients; did you mean own?"},
		{"{}", goodRule, "14: " + entry + ": client is missing"},
		{"{client: obo}", goodRule, "14: " + entry + ".client: this client has exchange, and its tokens belong to users: add on_behalf_of: true, or name a client without exchange"},
		{"{client: own, on_behalf_of: true}", goodRule, "14: " + entry + ".on_behalf_of: the client requests its own tokens: remove on_behalf_of, or name a client that has exchange"},
		{"{client: leg, on_behalf_of: true}", goodRule, "14: " + entry + ".client: this client issues assertions for another IdP, which are never handed out: name the client with assertion_from"},
		{"{client: obo, on_behalf_of: true, verify: none}", goodRule, "14: " + entry + ".on_behalf_of: verify: none leaves the token of the request unverified, so it cannot be exchanged: remove one of the two"},
		{"{client: own, keep_inbound: true}", goodRule, "14: " + entry + ".keep_inbound: the token replaces that of the request in Authorization, so the service cannot have both: give another header, or remove keep_inbound"},
		{"{client: own, keep_inbound: true, header: authorization}", goodRule, "14: " + entry + ".keep_inbound: the token replaces that of the request in Authorization, so the service cannot have both: give another header, or remove keep_inbound"},
		{"{client: own, scopes: ['a b']}", goodRule, "14: " + entry + ".scopes[0]: not a scope: printable ASCII without spaces, quotes and backslashes; several scopes are several items"},
		{"{client: own, verify: never}", goodRule, "14: " + entry + ".verify: expected token or none"},
		{goodEntry, "{host: a.example.com, upstream: orders}", "17: " + rule + ": no such entry: add it to gateways.upstream"},
		{goodEntry, "{path: /a, upstream: x}", "17: " + rule + host},
		{goodEntry, "{host: '*.example.com', upstream: x}", "17: " + rule + host},
		{"{client: own, verify: none}", "{host: a.example.com, scopes: [a], upstream: x}", "17: " + rule + ": the entry has verify: none, so nothing checks audiences, scopes and issuer of this rule: remove them, or verify: none"},
		{"{client: own}\n    y: {client: own}\n  needs: headers", goodRule, "15: gateways.upstream.y: nothing can use the entry: with gateways.needs: headers, /verify takes no upstream, because the sender of a request could choose it; name the entry in a rule of ext_authz, or remove it"},
	}
	for header, want := range headers {
		all = append(all, bad{"{client: own, header: " + header + "}", goodRule, "14: " + entry + ".header" + want})
	}
	for _, tt := range all {
		_, err := config.Parse("broker.yaml", []byte(upstreamFile(tt.entry, tt.rule)))
		if err == nil || err.Error() != "broker.yaml:"+tt.want {
			t.Errorf("%s, %s:\n got %v\nwant broker.yaml:%s", tt.entry, tt.rule, err, tt.want)
		}
	}
}

// An entry that no gateway may use would refuse every request.
func TestUpstream_warnsIfNoCallerMayUseIt(t *testing.T) {
	for _, tt := range []struct{ entry, before, after, users, needs string }{
		{"{client: own}", "", "", "edge", ""},
		{"{client: own, verify: none}", "", "", "egress", ""},
		{"{client: obo, on_behalf_of: true}", "", "", "edge", ""},
		{"{client: obo, on_behalf_of: true, audience: orders}", "", "", "edge", ""},
		{"{client: own}", "get: [{client: own}], exchange", "exchange", "", "a get grant for its client, audience and scopes, and a verify grant"},
		{"{client: own, scopes: [write]}", "", "", "", "a get grant for its client, audience and scopes, and a verify grant"},
		{"{client: own, verify: none}", "egress: {get", "egress: {verify: [{issuer: '*'}], get", "", "a get grant for its client, audience and scopes, and no verify grant"},
		{"{client: obo, on_behalf_of: true, audience: other}", "", "", "", "an exchange grant for its client, audience and scopes, and a verify grant"},
		{"{client: two, on_behalf_of: true}", "", "", "", "an exchange grant for its client, audience and scopes, and a verify grant"},
	} {
		text := strings.Replace(upstreamFile(tt.entry, goodRule), tt.before, tt.after, 1)
		c, err := config.Parse("x", []byte(text))
		if err != nil {
			t.Errorf("%s: %v", tt.entry, err)
			continue
		}
		want := ""
		if tt.needs != "" {
			want = "x:14: gateways.upstream.x: no caller may use the entry, so every request for it would be refused: its gateway needs " + tt.needs
		}
		got := ""
		for _, warning := range c.Warnings {
			got += warning.String()
		}
		if users := strings.Join(c.UpstreamUsers()["x"], " "); users != tt.users || got != want {
			t.Errorf("%s: users %q, warnings %q", tt.entry, users, got)
		}
	}
}
