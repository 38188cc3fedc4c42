package config_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/cezzis/tokenbroker/internal/config"
)

func TestLine(t *testing.T) {
	cfg, err := config.Parse("f", []byte(`listen: {http: {address: "127.0.0.1:1", plaintext: true, caller: gate}, unix: {path: /run/broker, caller: gate}}
issuers:
  - {issuer: "https://a/{tenant}", tenants: [x, y], audiences: [api]}
  - {issuer: "https://b", audiences: [api]}
callers: [{name: gate, roles: [gate.way]}]
roles:
  gate.way:
    verify:
      - {issuer: "https://a/{tenant}"}
      - {issuer: "https://b"}
    admin:
      - {actions: [get_client]}
`))
	if err != nil {
		t.Fatal(err)
	}
	grants := cfg.PolicyConfig().Roles["gate.way"].Verify
	for i, want := range []int{9, 9, 10} { // one grant for each tenant
		if got := cfg.Line("roles", "gate.way", "verify", i); got != want || len(grants) != 3 {
			t.Errorf("verify grant %d of %d: line %d, want %d", i, len(grants), got, want)
		}
	}
	for i, want := range []int{3, 3, 4} {
		if got := cfg.Line("issuers", i); got != want || len(cfg.Issuers) != 3 {
			t.Errorf("issuer %d of %d: line %d, want %d", i, len(cfg.Issuers), got, want)
		}
	}
	if got := cfg.LineNear("roles", "gate.way", "get", 0); got != 7 {
		t.Errorf("near a grant that does not exist: line %d", got)
	}
	if got := cfg.Line("roles", "gate.way", "admin", 0); got != 12 {
		t.Errorf("admin grant: line %d", got)
	}
	if got := cfg.Line("roles", "none"); got != 0 {
		t.Errorf("no role: line %d", got)
	}
	if bound := cfg.Bound(); !maps.Equal(bound, map[string]string{"listen.http.caller": "gate", "listen.unix.caller": "gate"}) {
		t.Errorf("%v", bound)
	}
}

func TestCertificateFiles_keysAndLines(t *testing.T) {
	cfg, err := config.Parse("f", []byte(`listen: {tls: {cert: a.crt, key: a.key, client_ca: ca.crt}}
store:
  sealing_keys: file:ring.json
  redis: {addresses: ["127.0.0.1:6379"], tls: {ca: redis-ca.crt, cert: redis.crt, key: redis.key}}
clients:
  a.b:
    {token_url: "https://idp/token", client_id: x, auth: tls_client_auth, tls: {cert: c.crt, key: c.key, ca: c-ca.crt}}
issuers:
  - {issuer: "https://a/{tenant}", tenants: [x, y], audiences: [api], tls: {ca: i-ca.crt}}
  - {issuer: "https://b", audiences: [api], tls: {ca: i-ca.crt}}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []config.CertificateFile{
		{Path: "a.crt", Key: "listen.tls.cert", Line: 1},
		{Path: "ca.crt", Key: "listen.tls.client_ca", Line: 1, CA: true},
		{Path: "redis.crt", Key: "store.redis.tls.cert", Line: 4},
		{Path: "redis-ca.crt", Key: "store.redis.tls.ca", Line: 4, CA: true},
		{Path: "c.crt", Key: `clients."a.b".tls.cert`, Line: 7},
		{Path: "c-ca.crt", Key: `clients."a.b".tls.ca`, Line: 7, CA: true},
		{Path: "i-ca.crt", Key: "issuers[0].tls.ca", Line: 9, CA: true},
		{Path: "i-ca.crt", Key: "issuers[1].tls.ca", Line: 10, CA: true},
	}
	if got := cfg.CertificateFiles(); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
}
