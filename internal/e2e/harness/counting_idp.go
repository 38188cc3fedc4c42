package harness

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redact"
)

// CountingIdP is an IdP in the process of the test: it sees and counts each
// request of each replica.
type CountingIdP struct {
	*devidp.Server

	Client devidp.Client // that it knows
}

// StartIdP starts an IdP with one client. Its first audience and all its scopes
// are the client's own in a broker's configuration.
func StartIdP(t *testing.T, lifetime time.Duration, registered devidp.Client) *CountingIdP {
	t.Helper()
	listener := httptest.NewUnstartedServer(nil)
	server, err := devidp.New(devidp.Config{
		Issuer:    "http://" + listener.Listener.Addr().String(),
		Clients:   []devidp.Client{registered},
		Lifetime:  lifetime,
		Algorithm: "EdDSA",
	})
	if err != nil {
		t.Fatal(err)
	}
	listener.Config.Handler = server
	listener.Start()
	t.Cleanup(func() {
		listener.CloseClientConnections()
		listener.Close()
	})
	return &CountingIdP{server, registered}
}

// SimpleIdP is StartIdP for where it does not matter what the client is called.
func SimpleIdP(t *testing.T, lifetime time.Duration) *CountingIdP {
	t.Helper()
	return StartIdP(t, lifetime, devidp.Client{
		ID: "abc", Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read", "write"}, Audiences: Audiences(60),
	})
}

func Audiences(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("https://api%d.example.com", i)
	}
	return all
}

// Calls counts the HTTP requests at the token endpoint.
func (p *CountingIdP) Calls() int { return p.Requests(devidp.TokenPath) }

// Config is the client in a broker's configuration.
func (p *CountingIdP) Config(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("{token_url: %q, client_id: %q, secret: %q, audience: %q, scopes: [%s]}",
		p.Issuer()+devidp.TokenPath, p.Client.ID, "file:"+WriteFile(t, "secret", p.Client.Secrets[0].Reveal()),
		p.Client.Audiences[0], strings.Join(p.Client.Scopes, ", "))
}

// Managed is the section clients of a broker's configuration, with one client whose
// secret operators bring.
func (p *CountingIdP) Managed(name string) string {
	return fmt.Sprintf("clients:\n  %s: {token_url: %q, client_id: %q, secret: managed, audience: %q, scopes: [%s]}\n",
		name, p.Issuer()+"/token", p.Client.ID, p.Client.Audiences[0], strings.Join(p.Client.Scopes, ", "))
}

// Takes has the IdP take these secrets and no others.
func (p *CountingIdP) Takes(secrets ...string) {
	values := make([]redact.String, len(secrets))
	for i, s := range secrets {
		values[i] = redact.New(s)
	}
	p.SetSecrets(p.Client.ID, values...)
}

func (p *CountingIdP) Refused(secret string) int {
	_, refused := p.Attempts(p.Client.ID, redact.New(secret))
	return refused
}

// ClientsConfig is the section clients of a broker's configuration.
func ClientsConfig(t *testing.T, clients map[string]*CountingIdP) string {
	t.Helper()
	section := strings.Builder{}
	section.WriteString("clients:\n")
	for name, idp := range clients {
		section.WriteString("  " + name + ": " + idp.Config(t) + "\n")
	}
	return section.String()
}
