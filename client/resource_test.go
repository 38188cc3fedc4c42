package client_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/client/brokertest"
)

func TestWithResource_eachChallengeRefersToTheMetadata(t *testing.T) {
	b := brokertest.New(t)
	resource := client.Resource{URL: "https://api.example.com/mcp", AuthorizationServers: []string{"https://login.example.com"}, Scopes: []string{"read"}}
	protect := client.HTTPMiddleware(b.Client().Verifier(client.RequireScopes("read"), client.WithResource(resource)))
	mux := http.NewServeMux()
	mux.Handle(resource.MetadataPath(), resource.MetadataHandler())
	mux.Handle("/", protect(http.HandlerFunc(greet)))
	mux.Handle("/admin", protect(client.ScopesMiddleware("admin")(http.HandlerFunc(greet))))

	reader := "Bearer " + b.Mint(brokertest.Claims{Subject: "alice", Scopes: []string{"read"}})
	for name, c := range map[string]struct {
		path    string
		headers []string
		status  int
	}{
		"no token":                      {"/", nil, 401},
		"an invalid token":              {"/", []string{"Bearer a.b.c"}, 401},
		"two tokens":                    {"/", []string{reader, reader}, 401},
		"without a scope":               {"/", []string{"Bearer " + b.Mint(brokertest.Claims{})}, 403},
		"without the scope of the path": {"/admin", []string{reader}, 403},
	} {
		got := get(mux, c.path, c.headers...)
		const want = `, resource_metadata="https://api.example.com/.well-known/oauth-protected-resource/mcp"`
		if challenge := got.Header.Get("WWW-Authenticate"); got.StatusCode != c.status || !strings.HasSuffix(challenge, want) {
			t.Errorf("%s: %d %s", name, got.StatusCode, challenge)
		}
	}

	got := get(mux, "http://evil.example.net/.well-known/oauth-protected-resource/mcp")
	body, err := io.ReadAll(got.Body)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"resource":"https://api.example.com/mcp","authorization_servers":["https://login.example.com"],"bearer_methods_supported":["header"],"scopes_supported":["read"]}`
	if string(body) != want || got.StatusCode != http.StatusOK || got.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %v %s", got.StatusCode, got.Header, body)
	}
}

func TestResource_metadataURL(t *testing.T) {
	for url, want := range map[string]string{
		"https://api.example.com":       "https://api.example.com/.well-known/oauth-protected-resource",
		"https://api.example.com/":      "https://api.example.com/.well-known/oauth-protected-resource",
		"http://127.0.0.1:8080/a/b/":    "http://127.0.0.1:8080/.well-known/oauth-protected-resource/a/b/",
		"https://api.example.com:1/mcp": "https://api.example.com:1/.well-known/oauth-protected-resource/mcp",
	} {
		if got := (client.Resource{URL: url}).MetadataURL(); got != want {
			t.Errorf("%s: %s, want %s", url, got, want)
		}
	}
}
