package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redact"
)

// clientCount clients are registered at the IdP. The first serves the
// comparison, the second the slow refresh.
const clientCount = 10_000

// audience is so long that a token has about 900 bytes, like tokens of large IdPs.
const audience = "https://orders.example.com/a/path/that/stands/for/the/claims/of/large/identity/providers/in/their/tokens/such/as/groups/roles/tenants/and/entitlements/of/all/kinds"

func clientName(i int) string { return fmt.Sprintf("client-%05d", i) }

// clients returns n clients with a single request each.
func clients(n int) []devidp.Client {
	all := make([]devidp.Client, n)
	for i := range all {
		all[i] = devidp.Client{ID: clientName(i), Scopes: []string{"read", "write"}, Audiences: []string{audience}}
	}
	return all
}

// way is how clients reach an IdP. Zero: with HTTP/1.1 in plaintext.
type way struct {
	name       string
	tls, http2 bool
}

// provider is an IdP, on a loopback port of this process.
type provider struct {
	*devidp.Server

	clients []devidp.Client
	dir     string // directory of their secrets
	ca      string // file with its authority; empty: it serves plaintext
	http    *http.Server
}

// startProvider starts an IdP that signs with the algorithm and registers the clients.
// It writes a secret for each of them to a file in dir.
func startProvider(ctx context.Context, dir, algorithm string, clients []devidp.Client, over way) (*provider, error) {
	p := &provider{clients: clients, dir: dir}
	for i := range clients {
		secret := rand.Text()
		clients[i].Secrets = []redact.String{redact.New(secret)}
		if err := os.WriteFile(p.secretPath(i), []byte(secret), 0o600); err != nil {
			return nil, err
		}
	}
	listener, err := listen(ctx)
	if err != nil {
		return nil, err
	}
	scheme := "http://"
	if over.tls {
		scheme = "https://"
	}
	p.Server, err = devidp.New(devidp.Config{Issuer: scheme + listener.Addr().String(), Algorithm: algorithm, Clients: clients})
	if err != nil {
		_ = listener.Close()
		return nil, err
	}
	p.http = &http.Server{Handler: p.Server, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	p.http.Protocols.SetHTTP1(!over.http2)
	p.http.Protocols.SetHTTP2(over.http2)
	if !over.tls {
		go func() { _ = p.http.Serve(listener) }() // it ends by close; before that, calls fail
		return p, nil
	}
	if err := p.certify(); err != nil {
		_ = listener.Close()
		return nil, err
	}
	go func() { _ = p.http.ServeTLS(listener, "", "") }()
	return p, nil
}

// certify gives the IdP a certificate of an authority of its own.
func (p *provider) certify() error {
	authority, err := devca.New("IdP")
	if err != nil {
		return err
	}
	pair, err := authority.Issue(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		return err
	}
	p.http.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair.TLS()}, MinVersion: tls.VersionTLS12}
	p.ca, err = authority.Write(p.dir, "idp-ca")
	return err
}

// trust is the line of an issuer or a client that names the authority of the IdP.
func (p *provider) trust() string {
	if p.ca == "" {
		return ""
	}
	return fmt.Sprintf("    tls: {ca: %s}\n", p.ca)
}

func (p *provider) close() { _ = p.http.Close() }

func (p *provider) secretPath(i int) string { return filepath.Join(p.dir, p.clients[i].ID) }

// setting is the configuration of a broker under test.
type setting struct {
	idp *provider
	// clients is how many clients of the IdP, from the first, the broker has.
	clients int
	// redis is its store. Nil: its memory.
	redis *redisServer
	// profiled: it serves profiles, which cost nothing without requests.
	profiled bool
	// proof authenticates it and its callers; decisions are then in the audit log. Zero:
	// it is in plaintext.
	proof proof
	// http is the address of its HTTP API for gateways; it then serves Envoy beside its
	// own API. Empty: not served.
	http string
}

func exchanges(client devidp.Client) bool { return client.Exchange != nil }

// config is the broker's configuration. Omitted fields have their defaults. Names of
// clients are their IDs; their own scopes are their first two permitted ones.
func (s setting) config(address, ops string) string {
	listener, callers := fmt.Sprintf("{address: %s, caller: bench}", address), "{name: bench, roles: [all]}"
	if s.proof.dir != "" {
		listener = fmt.Sprintf("%s\n  tls: {cert: %s.crt, key: %[2]s.key, client_ca: %s.crt}", address, s.proof.path(serverFile), s.proof.path(authorityFile))
		callers = fmt.Sprintf("{name: mesh, spiffe_id: %q, roles: [all]}, {name: pod, issuer: %q, subject: %q, roles: [all]}", loadID, s.idp.Issuer(), loadSubject)
	}
	gateways := ""
	if s.http != "" && s.proof.dir == "" {
		listener += fmt.Sprintf("\n  http: {address: %s, caller: bench}", s.http)
	} else if s.http != "" {
		listener += "\n  http: " + s.http
	}
	if s.http != "" {
		gateways = "gateways: {ext_authz: {}}\n"
	}
	exchange := ""
	if slices.ContainsFunc(s.idp.clients[:s.clients], exchanges) {
		exchange = fmt.Sprintf(", exchange: [{client: %s, from: {issuers: [%q], audiences: [%q]}}]", exchanger, s.idp.Issuer(), audience)
	}
	var text strings.Builder
	text.WriteString(gateways)
	fmt.Fprintf(&text, `listen:
  grpc: %s
  ops: %s
callers: [%s]
limits: {per_second: 1000000}
roles: {all: {get: [{client: "*", audiences: ["*"], scopes: ["*"]}], verify: [{issuer: "*"}]%s}}
log:
  level: warn
server:
  pprof: %t
`, listener, ops, callers, exchange, s.profiled)
	if s.proof.dir != "" {
		fmt.Fprintf(&text, "audit: {file: %s}\n", s.proof.path("audit.jsonl"))
	}
	if s.redis != nil {
		fmt.Fprintf(&text, `store:
  redis:
    addresses: [%s]
  sealing_keys: file:%s
`, s.redis.address, s.redis.ring)
	}
	fmt.Fprintf(&text, `issuers:
  - issuer: %s
    audiences: [%s]
%sclients:
`, s.idp.Issuer(), s.idp.clients[0].Audiences[0], s.idp.trust())
	for i, client := range s.idp.clients[:s.clients] {
		fmt.Fprintf(&text, `  %[1]s:
    issuer: %[2]s
    client_id: %[1]s
    secret: file:%[3]s
    audience: %[4]s
    scopes: [%[5]s]
%[6]s`, client.ID, s.idp.Issuer(), s.idp.secretPath(i), client.Audiences[0], strings.Join(client.Scopes[:2], ", "), s.idp.trust())
		if exchanges(client) {
			text.WriteString("    exchange: {}\n")
		}
	}
	return text.String()
}
