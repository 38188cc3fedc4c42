package policyreview_test

import (
	"strings"
	"testing"

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
