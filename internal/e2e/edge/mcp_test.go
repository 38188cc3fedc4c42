package edge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// mcpClient is the OAuth client of the MCP client. It has a key, because the SDK does not
// encode secrets with special characters as RFC 6749 section 2.3.1 requires.
const mcpClient = "key-es256"

const resourceMetadata = "/.well-known/oauth-protected-resource"

// mcpRoutes are the additions to the example of each gateway, which the documentation shows:
// pairs of a line and the lines before it.
var mcpRoutes = map[string][]string{
	"nginx": {"        location / {\n", `        location /.well-known/oauth-protected-resource {
            proxy_pass http://tokenbroker;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
        }
`},
	"caddy": {"	route {\n", `	handle /.well-known/oauth-protected-resource* {
		reverse_proxy 127.0.0.1:8444
	}
`},
	"haproxy": {"    # The identity headers of the request", `    acl metadata path_beg /.well-known/oauth-protected-resource
    http-request allow if metadata
`, "    default_backend orders\n", `    use_backend tokenbroker if metadata
`, "\nbackend orders\n", `
backend tokenbroker
    server tokenbroker 127.0.0.1:8444
`},
}

// mcpWorld is a server of MCP, an authorization server and a broker, all without a gateway.
type mcpWorld struct {
	idp            *harness.OIDCProvider
	broker, server string // addresses
}

// startMCP starts a world in which each gateway has its own resource.
func startMCP(t *testing.T, resources map[string]string) *mcpWorld {
	t.Helper()
	harness.Need(t, "mcp-sdk")
	var urls, entries []string
	for name, resource := range resources {
		urls = append(urls, resource)
		entries = append(entries, fmt.Sprintf("    %s: {url: %q, authorization_servers: [ISSUER], scopes: [read]}", name, resource))
	}
	w := &mcpWorld{idp: harness.StartOIDCProvider(t, "RESOURCES="+strings.Join(urls, " ")), broker: harness.FreeAddress(t), server: harness.FreeAddress(t)}
	b := &harness.Broker{Grpc: harness.FreeAddress(t), Ops: harness.FreeAddress(t)}
	b.File = harness.WriteFile(t, "broker.yaml", fmt.Sprintf(`
listen: {grpc: %q, ops: %q, http: {address: %q, caller: edge}}
gateways:
  resources:
%s
issuers: [{issuer: ISSUER, audiences: [%s], missing_sub: client_id}]
callers: [{name: edge, roles: [gateway]}]
roles: {gateway: {verify: [{issuer: ISSUER}]}}
`, b.Grpc, b.Ops, w.broker, strings.Join(entries, "\n"), strings.Join(urls, ", ")))
	data, err := os.ReadFile(b.File)
	if err != nil {
		t.Fatal(err)
	}
	testkit.WriteFile(t, b.File, strings.ReplaceAll(string(data), "ISSUER", w.idp.Issuer))
	b.Launch(t, "broker")
	b.Await(t)
	script, err := filepath.Abs(filepath.Join("..", "mcp-sdk", "server.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(w.server, ":")
	process := harness.Start(t, t.TempDir(), []string{"PORT=" + port}, "node", script)
	process.Ready(t, func() bool {
		response, err := harness.Fetch(t, w.idp.Client, http.MethodGet, "http://"+w.server+"/", nil)
		return err == nil && response.Body.Close() == nil
	})
	return w
}

// start starts a gateway as its example configures it, with the additions for metadata.
func (w *mcpWorld) start(t *testing.T, g *realGateway, address, resource string) {
	t.Helper()
	harness.Need(t, g.name)
	dir := t.TempDir()
	changes := []string{"audience=https://orders.example.com&scope=read", "audience=" + resource + "&scope=read&resource=" + g.name}
	for addition := range slices.Chunk(mcpRoutes[g.name], 2) {
		changes = append(changes, addition[0], addition[1]+addition[0])
	}
	replace := strings.NewReplacer(changes...)
	addresses := strings.NewReplacer(exampleHTTP, w.broker, exampleGateway, address, exampleUpstream, w.server)
	for _, name := range g.files {
		testkit.WriteFile(t, filepath.Join(dir, name), addresses.Replace(replace.Replace(readExample(t, g.name+"/"+name))))
	}
	running := harness.Start(t, dir, g.env(dir), g.command[0], g.command[1:]...)
	t.Cleanup(func() { running.Stop(t, harness.Terminate) })
	running.Ready(t, func() bool {
		response, err := harness.Fetch(t, w.idp.Client, http.MethodGet, resource, nil)
		return err == nil && response.Body.Close() == nil && response.StatusCode == http.StatusUnauthorized
	})
}

// mcpRequest is a request of the client, with parts of its response.
type mcpRequest struct {
	Method, URL         string
	Status              int
	Challenge, Resource string
}

// callTool calls the tool with the client of the SDK.
func (w *mcpWorld) callTool(t *testing.T, resource string) (requests []mcpRequest, result, failure string) {
	t.Helper()
	jwk, err := json.Marshal(w.idp.Clients[mcpClient].Key)
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	command := exec.CommandContext(t.Context(), "node", filepath.Join("..", "mcp-sdk", "client.mjs"), resource, mcpClient, string(jwk), w.idp.Issuer)
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var answer struct {
		Requests      []mcpRequest
		Result, Error string
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return answer.Requests, answer.Result, answer.Error
}

// The client of the official MCP SDK, which knows only a URL and its credentials, calls a tool
// behind each gateway: 401 with resource_metadata, the metadata, the authorization server,
// a token for the resource, and the call again.
func TestMCPClientsDiscoverTheAuthorizationServer(t *testing.T) {
	t.Parallel()
	gateways := realGateways()
	addresses, resources := map[string]string{}, map[string]string{}
	for _, g := range gateways {
		addresses[g.name] = harness.FreeAddress(t)
		resources[g.name] = "http://" + addresses[g.name] + "/" + g.name + "/mcp"
	}
	w := startMCP(t, resources)
	for _, g := range gateways {
		t.Run(g.name, func(t *testing.T) {
			resource := resources[g.name]
			w.start(t, &g, addresses[g.name], resource)
			requests, result, failure := w.callTool(t, resource)
			if result != mcpClient+" read" || failure != "" {
				t.Fatalf("%q %s: %+v", result, failure, requests)
			}
			metadata := "http://" + addresses[g.name] + resourceMetadata + "/" + g.name + "/mcp"
			if first := requests[0]; first.URL != resource || first.Status != http.StatusUnauthorized || !strings.HasSuffix(first.Challenge, `resource_metadata="`+metadata+`"`) {
				t.Errorf("the first request: %+v", first)
			}
			if second := requests[1]; second.URL != metadata || second.Status != http.StatusOK {
				t.Errorf("the second request: %+v, want the metadata at %s", second, metadata)
			}
			bought := false
			for _, request := range requests {
				bought = bought || request.URL == w.idp.Issuer+"/token" && request.Status == http.StatusOK && request.Resource == resource
			}
			if !bought {
				t.Errorf("no token for the resource was requested: %+v", requests)
			}
			checkSpoofedMetadata(t, w, metadata)
		})
	}
}

// checkSpoofedMetadata checks that the headers of a request change nothing in the metadata.
func checkSpoofedMetadata(t *testing.T, w *mcpWorld, metadata string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, metadata+"?resource=%zz&x=y", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Forwarded-Host", "evil.example.net")
	request.Header.Set("Forwarded", "host=evil.example.net")
	response, err := w.idp.Client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var document struct {
		Resource string
		Servers  []string `json:"authorization_servers"`
	}
	if err := json.NewDecoder(response.Body).Decode(&document); err != nil || len(document.Servers) != 1 || document.Servers[0] != w.idp.Issuer ||
		strings.Replace(metadata, resourceMetadata, "", 1) != document.Resource {
		t.Errorf("%d %v %+v", response.StatusCode, err, document)
	}
}
