package extauthz_test

import (
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/codes"

	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/extauthz"
	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/verify"
)

const wellKnown = "/.well-known/oauth-protected-resource"

// resources are at the host of checkRequest, and at another one.
func resources() *gateway.Resources {
	servers := []string{"https://login.example.com"}
	return gateway.NewResources([]gateway.Resource{
		{Name: "orders", URL: "https://api.example.com/orders", AuthorizationServers: servers},
		{Name: "shop", URL: "https://shop.example.com/mcp", AuthorizationServers: servers},
	})
}

// A request for metadata gets them without a token, before any rule.
func TestCheckServesResourceMetadata(t *testing.T) {
	f := serve(t, apitest.New(t), apitest.Gate, extauthz.Config{Resources: resources(), Rules: []gateway.Rule{{Host: "api.example.com", Path: "/orders/"}}})
	method := func(name string) *authv3.CheckRequest {
		req := checkRequest(wellKnown+"/orders?x=y", nil)
		req.Attributes.Request.Http.Method = name
		return req
	}
	for name, req := range map[string]*authv3.CheckRequest{"GET": method("GET"), "HEAD": method("HEAD"), "with an extension": checkRequest(wellKnown+"/orders", map[string]string{"scope": "read"})} {
		got, err := f.envoy.Check(t.Context(), req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		response := got.GetDeniedResponse()
		headers := headersOf(response.GetHeaders())
		if codes.Code(got.GetStatus().GetCode()) == codes.OK || response.GetStatus().GetCode() != 200 || headers["content-type"] != "application/json" || headers["access-control-allow-origin"] != "*" ||
			response.GetBody() != `{"resource":"https://api.example.com/orders","authorization_servers":["https://login.example.com"],"bearer_methods_supported":["header"]}`+"\n" {
			t.Errorf("%s: %v", name, got)
		}
	}
	// Everything else is a request as any other; nothing is forwarded.
	for name, req := range map[string]*authv3.CheckRequest{
		"POST": method("POST"), "of another host": checkRequest(wellKnown+"/mcp", nil), "below": checkRequest(wellKnown+"/orders/x", nil),
		"escaped": checkRequest(wellKnown+"/%6frders", nil), "the root": checkRequest(wellKnown, nil),
	} {
		got, err := f.envoy.Check(t.Context(), req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got.GetDeniedResponse().GetStatus().GetCode() != 403 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestCheckChallengesWithResourceMetadata(t *testing.T) {
	named := resources()
	f := serve(t, apitest.New(t), apitest.Gate, extauthz.Config{Resources: named, Rules: []gateway.Rule{
		{Path: "/orders/", Needs: verify.Request{Scopes: []string{"admin"}}, Resource: named.Named("orders")}, {Path: "/plain"},
	}})
	const orders, shop = `resource_metadata="https://api.example.com` + wellKnown + `/orders"`, `resource_metadata="https://shop.example.com` + wellKnown + `/mcp"`
	good := "Bearer " + f.Token(nil)
	for name, tt := range map[string]struct {
		req  *authv3.CheckRequest
		http int32
		want string
	}{
		"no token":                  {checkRequest("/orders/1", nil), 401, orders},
		"invalid token":             {checkRequest("/orders/1", nil, "authorization", "Bearer a.b.c"), 401, orders},
		"without a scope":           {checkRequest("/orders/1", nil, "authorization", good), 403, orders},
		"extension beside the rule": {checkRequest("/orders/1", map[string]string{"resource": "shop"}), 401, shop},
		"extension decides nothing": {checkRequest("/orders/1", map[string]string{"resource": "shop"}, "authorization", good), 403, shop},
		"only extensions":           {checkRequest("/other", map[string]string{"resource": "shop", "scope": "admin"}), 401, shop},
		"rule without a resource":   {checkRequest("/plain", nil), 401, ""},
		"no rule":                   {checkRequest("/other", map[string]string{"resource": "shop"}), 403, ""},
	} {
		got, err := f.envoy.Check(t.Context(), tt.req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		challenge := headersOf(got.GetDeniedResponse().GetHeaders())["www-authenticate"]
		if int32(got.GetDeniedResponse().GetStatus().GetCode()) != tt.http || !strings.HasSuffix(challenge, tt.want) || tt.want == "" && strings.Contains(challenge, "resource_metadata") {
			t.Errorf("%s: %d %s, want %d %s", name, got.GetDeniedResponse().GetStatus().GetCode(), challenge, tt.http, tt.want)
		}
	}
	if got, err := f.envoy.Check(t.Context(), checkRequest("/orders/1", map[string]string{"resource": "other"}, "authorization", good)); err == nil {
		t.Errorf("an unknown resource: %v", got)
	}
}
