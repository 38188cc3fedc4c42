package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redact"
)

// clientCount clients are registered at the IdP. The first serves the
// comparison, the second the slow refresh.
const clientCount = 10_000

// audience is so long that a token has about 900 bytes, as large IdPs give
// out.
const audience = "https://orders.example.com/a/path/that/stands/for/the/claims/of/large/identity/providers/in/their/tokens/such/as/groups/roles/tenants/and/entitlements/of/all/kinds"

func clientName(i int) string { return fmt.Sprintf("client-%05d", i) }

// provider is the IdP, on a loopback port of this process.
type provider struct {
	*devidp.Server

	http *http.Server
}

// startProvider starts an IdP with all clients; their secrets are files in dir.
func startProvider(ctx context.Context, dir string) (*provider, error) {
	clients := make([]devidp.Client, clientCount)
	for i := range clients {
		secret := rand.Text()
		clients[i] = devidp.Client{
			ID:        clientName(i),
			Secrets:   []redact.String{redact.New(secret)},
			Scopes:    []string{"read", "write"},
			Audiences: []string{audience},
		}
		if err := os.WriteFile(secretPath(dir, i), []byte(secret), 0o600); err != nil {
			return nil, err
		}
	}
	listener, err := listen(ctx)
	if err != nil {
		return nil, err
	}
	idp, err := devidp.New(devidp.Config{Issuer: "http://" + listener.Addr().String(), Clients: clients})
	if err != nil {
		_ = listener.Close()
		return nil, err
	}
	p := &provider{Server: idp, http: &http.Server{Handler: idp, ReadHeaderTimeout: 10 * time.Second}}
	go func() { _ = p.http.Serve(listener) }() // it ends by close; before that, calls fail
	return p, nil
}

func (p *provider) close() { _ = p.http.Close() }

func secretPath(dir string, i int) string { return filepath.Join(dir, clientName(i)) }

// brokerConfig is the configuration of a broker with the first n clients. What
// is not said is left at its default.
func brokerConfig(address, issuer, dir string, n int) string {
	var text strings.Builder
	fmt.Fprintf(&text, `listen:
  grpc: %s
  ops: 127.0.0.1:0
log:
  level: warn
issuers:
  - issuer: %s
    audiences: [%s]
clients:
`, address, issuer, audience)
	for i := range n {
		fmt.Fprintf(&text, `  %[1]s:
    issuer: %[2]s
    client_id: %[1]s
    secret: file:%[3]s
    audience: %[4]s
    scopes: [read, write]
`, clientName(i), issuer, secretPath(dir, i), audience)
	}
	return text.String()
}
