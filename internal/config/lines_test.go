package config_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/config"
)

func TestLine(t *testing.T) {
	cfg, err := config.Parse("f", []byte(`listen: {http: {address: "127.0.0.1:1", plaintext: true, caller: gate}, unix: {path: /run/broker, caller: gate}}
issuers:
  - {issuer: "https://a/{tenant}", tenants: [x, y], audiences: [api]}
  - {issuer: "https://b", audiences: [api]}
callers: [{name: gate, roles: [gate.way]}]
roles:
  gate.way:
    verify:
      - {issuer: "https://a/{tenant}"}
      - {issuer: "https://b"}
    admin:
      - {actions: [get_client]}
`))
	if err != nil {
		t.Fatal(err)
	}
	grants := cfg.PolicyConfig().Roles["gate.way"].Verify
	for i, want := range []int{9, 9, 10} { // one grant for each tenant
		if got := cfg.Line("roles", "gate.way", "verify", i); got != want || len(grants) != 3 {
			t.Errorf("verify grant %d of %d: line %d, want %d", i, len(grants), got, want)
		}
	}
	if got := cfg.Line("roles", "gate.way", "admin", 0); got != 12 {
		t.Errorf("admin grant: line %d", got)
	}
	if got := cfg.Line("roles", "none"); got != 0 {
		t.Errorf("no role: line %d", got)
	}
	if bound := cfg.Bound(); !maps.Equal(bound, map[string]string{"listen.http.caller": "gate", "listen.unix.caller": "gate"}) {
		t.Errorf("%v", bound)
	}
	lines, ok := cfg.Explain("gate")
	const want = "caller gate (line 5), identified by a listener that is bound to it\nevery connection without another identity is this caller: listen.unix.caller (line 1)\nevery"
	if !ok || !strings.HasPrefix(strings.Join(lines, "\n"), want) {
		t.Errorf("%q", lines)
	}
}
