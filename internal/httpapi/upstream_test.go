package httpapi_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/httpapi"
)

func serveUpstream(t *testing.T, caller string, more ...func(*httpapi.Config)) *api {
	t.Helper()
	fixture := apitest.NewExchanging(t)
	return serveFixture(t, fixture, caller, func(cfg *httpapi.Config) {
		cfg.Judge = gateway.New(gateway.Config{Broker: fixture.Broker, Upstreams: []gateway.Upstream{
			{Name: "user", Client: apitest.OnBehalf, OnBehalfOf: true},
			{Name: "apart", Client: apitest.OnBehalf, OnBehalfOf: true, Header: "X-Upstream-Token"},
			{Name: "both", Client: apitest.OnBehalf, OnBehalfOf: true, Header: "X-Upstream-Token", KeepInbound: true},
			{Name: "egress", Client: "orders", Unverified: true},
		}})
		for _, change := range more {
			change(cfg)
		}
	})
}

const forBFF = "audience=" + apitest.BFF

func TestVerify_returnsTheUpstreamToken(t *testing.T) {
	gate, egress := serveUpstream(t, apitest.Gate), serveUpstream(t, apitest.Egress)
	for _, tt := range []struct {
		by            *api
		query         string
		authorization string // new: a new token; none: an empty header; "": no header
		another       bool
		identified    bool
	}{
		{gate, forBFF, "", false, true},
		{gate, "upstream=user&" + forBFF, "new", false, true},
		{gate, forBFF + "&upstream=apart", "none", true, true},
		{gate, forBFF + "&upstream=both&scope=read", "", true, true},
		{egress, "upstream=egress", "new", false, false},
	} {
		inbound := tt.by.Token(map[string]any{"aud": apitest.BFF})
		for range 2 {
			got := tt.by.do(t, http.MethodGet, "/verify?"+tt.query, bearer(inbound), "")
			isNew := func(value string) bool {
				return strings.HasPrefix(value, "Bearer ey") && !strings.Contains(value, inbound)
			}
			values := got.header["Authorization"]
			authorization := ""
			switch {
			case len(values) == 1 && values[0] == "":
				authorization = "none"
			case len(values) == 1 && isNew(values[0]):
				authorization = "new"
			case len(values) > 0:
				authorization = "odd"
			}
			if got.status != http.StatusOK || authorization != tt.authorization || isNew(got.header.Get("X-Upstream-Token")) != tt.another {
				t.Errorf("%s: %d, %v", tt.query, got.status, got.header)
			}
			if cached := got.header.Get("Cache-Control") != "no-store"; cached != (tt.query == forBFF) {
				t.Errorf("%s: Cache-Control %q", tt.query, got.header["Cache-Control"])
			}
			if (got.header.Get("X-Auth-Subject") == "user-1") != tt.identified || len(got.header["X-Auth-Subject"]) != 1 {
				t.Errorf("%s: subject %q", tt.query, got.header["X-Auth-Subject"])
			}
		}
	}
	if gate.Log.Contains("eyJ") || egress.Log.Contains("eyJ") {
		t.Error("a log has a token")
	}
}

func TestVerify_refusesTheUpstreamToken(t *testing.T) {
	gate, egress := serveUpstream(t, apitest.Gate), serveUpstream(t, apitest.Egress)
	inHeaders := serveUpstream(t, apitest.Gate, func(cfg *httpapi.Config) { cfg.NeedsInHeaders = true })
	user := gate.Token(map[string]any{"aud": apitest.BFF})
	for name, tt := range map[string]struct {
		by     *api
		query  string
		header http.Header
		status int
		log    string
	}{
		"an entry that does not exist":       {gate, "upstream=other&" + forBFF, bearer(user), 503, "names an upstream entry that gateways.upstream does not have"},
		"an empty name":                      {gate, "upstream=&" + forBFF, bearer(user), 503, "names an upstream entry that gateways.upstream does not have"},
		"no requirements":                    {gate, "upstream=user", bearer(user), 503, "must have audience, scope or issuer"},
		"two entries":                        {gate, "upstream=user&upstream=apart&" + forBFF, bearer(user), 503, "a parameter more than once"},
		"the client of the token":            {gate, "upstream=user&client=orders&" + forBFF, bearer(user), 503, "a parameter other than"},
		"a gateway with verify grants":       {gate, "upstream=egress", nil, 503, "give the gateway of outgoing requests a caller of its own"},
		"requirements that nothing verifies": {egress, "upstream=egress&" + forBFF, nil, 503, "does not verify requests"},
		"a caller without grants":            {egress, "upstream=user&" + forBFF, bearer(user), 503, ""},
		"no token":                           {gate, "upstream=user&" + forBFF, nil, 401, ""},
		"not admitted":                       {gate, "upstream=user&" + forBFF, bearer(gate.Token(map[string]any{"aud": apitest.BFF, "scope": "write"})), 403, "no grant of this caller admits"},
		"another spelling of its header":     {gate, "upstream=apart&" + forBFF, http.Header{"Authorization": {"Bearer " + user}, "X_upstream_token": {"x"}}, 401, ""},
		"an identity, without verification":  {egress, "upstream=egress", http.Header{"X_auth_subject": {"root"}}, 401, ""},
	} {
		got := tt.by.do(t, http.MethodGet, "/verify?"+tt.query, tt.header, "")
		if got.status != tt.status || got.header.Get("X-Upstream-Token") != "" || len(got.header["Authorization"]) > 0 || got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d, %v", name, got.status, got.header)
		}
		if tt.log != "" && !tt.by.Log.Contains(tt.log) {
			t.Errorf("%s: the log does not say %q", name, tt.log)
		}
	}
	got := inHeaders.do(t, http.MethodGet, "/verify?upstream=user", http.Header{"Authorization": {"Bearer " + inHeaders.Token(map[string]any{"aud": apitest.BFF})}, "X-Verify-Audience": {apitest.BFF}}, "")
	if got.status != http.StatusOK || len(got.header["Authorization"]) > 0 {
		t.Errorf("the sender of a request chose an entry: %d, %v", got.status, got.header)
	}
}
