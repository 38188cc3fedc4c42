package httpapi_test

import (
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/httpapi"
)

const wellKnown = "/.well-known/oauth-protected-resource"

// withResources configures two resources that share a path, and one at the root.
func withResources(cfg *httpapi.Config) {
	servers := []string{"https://login.example.com"}
	cfg.Resources = gateway.NewResources([]gateway.Resource{
		{Name: "orders", URL: "https://api.example.com/mcp", AuthorizationServers: servers, Scopes: []string{"read", "write"}, Title: "Orders", Documentation: "https://docs.example.com/"},
		{Name: "shop", URL: "https://shop.example.com/mcp", AuthorizationServers: servers},
		{Name: "root", URL: "https://api.example.com", AuthorizationServers: servers},
	})
}

func TestResourceMetadataIsServed(t *testing.T) {
	f := serve(t, "", withResources)
	got := f.do(t, "GET", wellKnown+"/mcp?resource=orders", http.Header{"Origin": {"https://page.example.net"}}, "")
	want := `{"resource":"https://api.example.com/mcp","authorization_servers":["https://login.example.com"],"bearer_methods_supported":["header"],` +
		`"scopes_supported":["read","write"],"resource_name":"Orders","resource_documentation":"https://docs.example.com/"}` + "\n"
	if got.status != http.StatusOK || got.body != want {
		t.Errorf("%d %s, want %s", got.status, got.body, want)
	}
	for name, value := range map[string]string{
		"Content-Type": "application/json", "Cache-Control": "public, max-age=300", "Access-Control-Allow-Origin": "*", "X-Content-Type-Options": "nosniff",
	} {
		if got.header.Get(name) != value {
			t.Errorf("%s: %q, want %q", name, got.header.Get(name), value)
		}
	}
	for _, tt := range []struct {
		method, target string
		status         int
		resource       string
	}{
		{"GET", wellKnown, 200, "https://api.example.com"},
		{"HEAD", wellKnown, 200, ""},
		{"GET", wellKnown + "/mcp?resource=shop&other=%zz", 200, "https://shop.example.com/mcp"},
		{"GET", wellKnown + "/mcp", 404, ""},
		{"GET", wellKnown + "/mcp?resource=root", 404, ""},
		{"GET", wellKnown + "?resource=shop", 404, ""},
		{"GET", wellKnown + "/", 404, ""},
		{"GET", wellKnown + "/%6dcp?resource=shop", 404, ""},
		{"GET", wellKnown + "/other", 404, ""},
		{"POST", wellKnown, 405, ""},
	} {
		got := f.do(t, tt.method, tt.target, nil, "")
		if got.status != tt.status || tt.resource != "" && got.json(t)["resource"] != tt.resource {
			t.Errorf("%s %s: %d %s", tt.method, tt.target, got.status, got.body)
		}
	}
}

// No part of a response depends on the headers with which requesters name the host.
func TestResourceMetadataIgnoresTheHost(t *testing.T) {
	f := serve(t, apitest.Gate, withResources)
	spoofed := http.Header{
		"Forwarded": {"host=evil.example.net;proto=http"}, "X-Forwarded-Host": {"evil.example.net"}, "X-Forwarded-Proto": {"http"},
		"X-Original-Url": {"http://evil.example.net/"}, "X-Forwarded-Prefix": {"/evil"},
	}
	for _, target := range []string{wellKnown, wellKnown + "/mcp?resource=shop", "/verify?scope=read&resource=orders"} {
		plain := f.do(t, "GET", target, nil, "")
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+f.address+target, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		request.Host = "evil.example.net"
		maps.Copy(request.Header, spoofed)
		response, err := f.client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		for name, values := range response.Header {
			if strings.Contains(strings.Join(values, " "), "evil") {
				t.Errorf("%s: %s: %q", target, name, values)
			}
		}
		if response.StatusCode != plain.status || response.Header.Get("Content-Length") != plain.header.Get("Content-Length") ||
			response.Header.Get("WWW-Authenticate") != plain.header.Get("WWW-Authenticate") {
			t.Errorf("%s: %d %v, and without the headers %d %v", target, response.StatusCode, response.Header, plain.status, plain.header)
		}
	}
}

// Each challenge refers to the metadata of the resource that the gateway names.
func TestVerifyChallengesWithResourceMetadata(t *testing.T) {
	const reference = `, resource_metadata="https://api.example.com/.well-known/oauth-protected-resource/mcp"`
	f := serve(t, apitest.Gate, withResources)
	good := f.Token(nil)
	for name, tt := range map[string]struct {
		target string
		header http.Header
		status int
	}{
		"no token":             {"/verify?scope=read&resource=orders", nil, 401},
		"not a bearer token":   {"/verify?scope=read&resource=orders", http.Header{"Authorization": {"Basic YTpi"}}, 401},
		"two tokens":           {"/verify?scope=read&resource=orders", http.Header{"Authorization": {"Bearer a", "Bearer b"}}, 401},
		"malformed":            {"/verify?scope=read&resource=orders", bearer("a,b"), 401},
		"invalid":              {"/verify?scope=read&resource=orders", bearer("a.b.c"), 401},
		"imitation":            {"/verify?scope=read&resource=orders", http.Header{"X_auth_subject": {"root"}}, 401},
		"a token in the query": {"/verify?scope=read&resource=orders&access_token=" + good, bearer(good), 401},
		"without a scope":      {"/verify?scope=admin&resource=orders", bearer(good), 403},
	} {
		for range 2 { // the second time by the parsed requirements
			got := f.do(t, "GET", tt.target, tt.header, "")
			challenge := got.header.Get("WWW-Authenticate")
			if got.status != tt.status || !strings.HasSuffix(challenge, reference) || strings.Count(challenge, "resource_metadata") != 1 {
				t.Errorf("%s: %d %s", name, got.status, challenge)
			}
		}
	}
	if got := f.do(t, "GET", "/verify?scope=read", nil, ""); strings.Contains(got.header.Get("WWW-Authenticate"), "resource_metadata") {
		t.Errorf("no resource is named: %s", got.header.Get("WWW-Authenticate"))
	}
	for _, target := range []string{"/verify?scope=read&resource=other", "/verify?scope=read&resource=", "/verify?resource=orders", "/verify?scope=read&resource=orders&resource=shop"} {
		if got := f.do(t, "GET", target, bearer(good), ""); got.status != http.StatusServiceUnavailable || got.header.Get("WWW-Authenticate") != "" {
			t.Errorf("%s: %d %v", target, got.status, got.header)
		}
	}
	if got := f.do(t, "GET", "/verify?scope=read&resource=orders", bearer(good), ""); got.status != http.StatusOK || got.header.Get("WWW-Authenticate") != "" {
		t.Errorf("a valid token: %d %v", got.status, got.header)
	}
}

func TestVerifyChallengesWithResourceMetadata_headers(t *testing.T) {
	f := serve(t, apitest.Gate, func(cfg *httpapi.Config) { withResources(cfg); cfg.NeedsInHeaders = true })
	needs := http.Header{"X-Verify-Audience": {apitest.Audience}, "X-Verify-Resource": {"shop"}}
	for _, target := range []string{"/verify", "/verify?resource=orders", "/verify?access_token=x"} {
		got := f.do(t, "GET", target, needs, "")
		if challenge := got.header.Get("WWW-Authenticate"); got.status != 401 || !strings.HasSuffix(challenge, `resource_metadata="https://shop.example.com/.well-known/oauth-protected-resource/mcp"`) {
			t.Errorf("%s: %d %s", target, got.status, challenge)
		}
	}
	for _, values := range [][]string{{"other"}, {""}, {"shop", "orders"}} {
		needs["X-Verify-Resource"] = values
		if got := f.do(t, "GET", "/verify", needs, ""); got.status != http.StatusServiceUnavailable {
			t.Errorf("%q: %d", values, got.status)
		}
	}
}
