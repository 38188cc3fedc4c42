package gateway_test

import (
	"testing"

	"github.com/cezzis/tokenbroker/internal/gateway"
)

// RFC 9728 section 3.1: the well-known path comes between the host and the path.
func TestMetadataURLOfResources(t *testing.T) {
	for resource, want := range map[string]string{
		"https://api.example.com":             "https://api.example.com/.well-known/oauth-protected-resource",
		"https://api.example.com/":            "https://api.example.com/.well-known/oauth-protected-resource",
		"https://api.example.com:8443/mcp":    "https://api.example.com:8443/.well-known/oauth-protected-resource/mcp",
		"https://api.example.com/a/b/":        "https://api.example.com/.well-known/oauth-protected-resource/a/b/",
		"http://[::1]:8080/orders":            "http://[::1]:8080/.well-known/oauth-protected-resource/orders",
		"https://api.example.com/.well-known": "https://api.example.com/.well-known/oauth-protected-resource/.well-known",
	} {
		if got := (&gateway.Resource{URL: resource}).MetadataURL(); got != want {
			t.Errorf("%s: %s, want %s", resource, got, want)
		}
	}
}

func TestResourcesAreFoundByHostAndPath(t *testing.T) {
	resources := gateway.NewResources([]gateway.Resource{
		{Name: "a", URL: "https://A.example.com:8443/mcp"}, {Name: "b", URL: "https://b.example.com/mcp"}, {Name: "root", URL: "https://b.example.com/"},
		{Name: "six", URL: "http://[::1]:8080/six"},
	})
	const at = gateway.ResourcePrefix
	for _, tt := range []struct{ host, target, want string }{
		{"a.example.com:8443", at + "/mcp", "https://A.example.com:8443" + at + "/mcp"},
		{"A.EXAMPLE.COM.:8443", at + "/mcp?x=y", "https://A.example.com:8443" + at + "/mcp"},
		{"a.example.com", at + "/mcp", ""},
		{"a.example.com:8444", at + "/mcp", ""},
		{"b.example.com:8443", at + "/mcp", ""},
		{"b.example.com", at + "/mcp", "https://b.example.com" + at + "/mcp"},
		{"[::1]:8080", at + "/six", "http://[::1]:8080" + at + "/six"},
		{"[::1]", at + "/six", ""},
		{"b.example.com:443", at + "/mcp", "https://b.example.com" + at + "/mcp"},
		{"b.example.com", at, "https://b.example.com" + at},
		{"b.example.com", at + "/", ""},
		{"b.example.com", at + "/mc%70", ""},
		{"b.example.com", at + "/mcp/", ""},
		{"b.example.com", at + "/../mcp", ""},
		{"b.example.com", at + "x", ""},
		{"b.example.com", "/mcp", ""},
		{"a.example.com", at, ""},
		{"c.example.com", at + "/mcp", ""},
		{"a.example.com,b.example.com", at + "/mcp", ""},
		{"", at + "/mcp", ""},
	} {
		got := ""
		if m := resources.AtHost(tt.host, tt.target); m != nil {
			got = m.URL
		}
		if got != tt.want {
			t.Errorf("%q %q: %q, want %q", tt.host, tt.target, got, tt.want)
		}
	}
	if resources.AtPath(at+"/mcp", "") != nil {
		t.Error("one of two resources at a path was chosen without a name")
	}
	if got := resources.AtPath(at+"/mcp", "b"); got == nil || got != resources.Named("b") {
		t.Errorf("by name: %v", got)
	}
	if resources.AtPath(at, "b") != nil {
		t.Error("a resource was found at a path that is not its own")
	}
	var none *gateway.Resources
	if none.Named("a") != nil || none.AtHost("b.example.com", at) != nil || none.AtPath(at, "") != nil || len(none.Paths()) > 0 {
		t.Error("no resources have metadata")
	}
}
