package extauthz_test

import (
	"context"
	"maps"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/codes"

	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/extauthz"
	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// serveUpstream serves rules for hosts that have the names of upstream entries.
func serveUpstream(t *testing.T, caller string) *api {
	t.Helper()
	f := apitest.NewExchanging(t)
	entries := []gateway.Upstream{
		{Name: "user", Client: apitest.OnBehalf, OnBehalfOf: true},
		{Name: "apart", Client: apitest.OnBehalf, OnBehalfOf: true, Header: "X-Upstream-Token"},
		{Name: "both", Client: apitest.OnBehalf, OnBehalfOf: true, Header: "X-Upstream-Token", KeepInbound: true},
		{Name: "egress", Client: "orders", Unverified: true},
		{Name: "egress-apart", Client: "orders", Unverified: true, Header: "X-Upstream-Token"},
	}
	cfg := extauthz.Config{Judge: gateway.New(gateway.Config{Broker: f.Broker, Upstreams: entries})}
	for _, entry := range entries {
		rule := gateway.Rule{Host: entry.Name + ".example.com", Upstream: entry.Name}
		if !entry.Unverified {
			rule.Needs = verify.Request{Audience: []string{apitest.BFF}}
		}
		cfg.Rules = append(cfg.Rules, rule)
	}
	cfg.Rules = append(cfg.Rules, gateway.Rule{Host: "missing.example.com", Upstream: "missing", Needs: verify.Request{Audience: []string{apitest.BFF}}})
	return serve(t, f, caller, cfg)
}

// askHost sends the request of a host to the service.
func (f *api) askHost(t *testing.T, host string, headers ...string) (*authv3.CheckResponse, error) {
	t.Helper()
	req := checkRequest("/", nil, headers...)
	req.Attributes.Request.Http.Host = host + ".example.com"
	return f.envoy.Check(t.Context(), req)
}

// asEnvoy applies a response to the headers of a request as Envoy does: it sets headers, and
// then removes others.
func asEnvoy(request map[string]string, ok *authv3.OkHttpResponse) map[string]string {
	sent := maps.Clone(request)
	for _, option := range ok.GetHeaders() {
		if option.GetAppendAction() == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			sent[option.GetHeader().GetKey()] = option.GetHeader().GetValue()
		}
	}
	for _, name := range ok.GetHeadersToRemove() {
		delete(sent, name)
	}
	return sent
}

func TestCheck_setsTheUpstreamToken(t *testing.T) {
	gate, egress := serveUpstream(t, apitest.Gate), serveUpstream(t, apitest.Egress)
	for _, tt := range []struct {
		by                     *api
		host                   string
		authorization, another bool // whether the service gets a new token in Authorization, and in X-Upstream-Token
		kept                   bool
	}{
		{gate, "user", true, false, false},
		{gate, "apart", false, true, false},
		{gate, "both", false, true, true},
		{egress, "egress", true, false, false},
		{egress, "egress-apart", false, true, false},
	} {
		inbound := "Bearer " + tt.by.Token(map[string]any{"aud": apitest.BFF})
		request := map[string]string{"authorization": inbound, "x-upstream-token": "Bearer forged", "x_upstream_token": "forged", "x-auth-subject": "root"}
		var pairs []string
		for name, value := range request {
			pairs = append(pairs, name, value)
		}
		for range 2 {
			resp, err := tt.by.askHost(t, tt.host, pairs...)
			if err != nil || codes.Code(resp.GetStatus().GetCode()) != codes.OK {
				t.Fatalf("%s: %v, %v", tt.host, resp, err)
			}
			sent := asEnvoy(request, resp.GetOkResponse())
			isNew := func(value string) bool { return strings.HasPrefix(value, "Bearer ey") && value != inbound }
			if got := sent["authorization"]; isNew(got) != tt.authorization || (got == inbound) != tt.kept || !tt.authorization && !tt.kept && got != "" {
				t.Errorf("%s: authorization %q", tt.host, got)
			}
			// If the token is in Authorization, the other header is one like any other.
			if got := sent["x-upstream-token"]; isNew(got) != tt.another {
				t.Errorf("%s: x-upstream-token %q", tt.host, got)
			}
			if _, ok := sent["x_upstream_token"]; ok == tt.another {
				t.Errorf("%s: another spelling of the header: %t", tt.host, ok)
			}
			if subject := sent["x-auth-subject"]; subject == "root" || (subject == "") != (tt.by == egress) {
				t.Errorf("%s: subject %q", tt.host, subject)
			}
			for _, removed := range resp.GetOkResponse().GetHeadersToRemove() {
				if _, set := headersOf(resp.GetOkResponse().GetHeaders())[removed]; set {
					t.Errorf("%s: %s is set and removed", tt.host, removed)
				}
			}
		}
	}
	if n := gate.IdP.Requests(devidp.TokenPath); n != 3 {
		t.Errorf("%d exchanges for three tokens", n)
	}
}

// Envoy gets no permission without a token.
func TestCheck_withoutAnUpstreamToken(t *testing.T) {
	gate := serveUpstream(t, apitest.Gate)
	user := "Bearer " + gate.Token(map[string]any{"aud": apitest.BFF})
	for _, host := range []string{"egress", "missing"} { // the gateway has verify grants; the entry does not exist
		if resp, err := gate.askHost(t, host, "authorization", user); err == nil {
			t.Errorf("%s: %v", host, resp)
		}
	}
	if resp, err := gate.envoy.Check(context.Background(), checkRequest("/", map[string]string{"upstream": "user", "audience": apitest.BFF}, "authorization", user)); err == nil || !strings.Contains(err.Error(), "name the upstream entry in a rule") {
		t.Errorf("by a context extension: %v, %v", resp, err)
	}
	if resp, err := gate.askHost(t, "user", "authorization", "Bearer "+gate.Token(map[string]any{"aud": apitest.BFF, "scope": "write"})); err != nil || resp.GetDeniedResponse().GetStatus().GetCode() != 403 {
		t.Errorf("not admitted: %v, %v", resp, err)
	}
	gate.IdP.SetDown(true)
	if resp, err := gate.askHost(t, "user", "authorization", user); err == nil {
		t.Errorf("the IdP is down: %v", resp)
	}
	if gate.Log.Contains(strings.TrimPrefix(user, "Bearer ")) {
		t.Error("the log has the token")
	}
}
