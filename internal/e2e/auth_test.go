package e2e_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// jwk is the private key of a client of the IdP, as a JWK.
func (p *oidcProvider) jwk(t *testing.T, id string) string {
	t.Helper()
	text, err := json.Marshal(p.clients[id].Key)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// pem is the same in PEM: SEC1 for ECDSA, PKCS#8 for Ed25519.
func (p *oidcProvider) pem(t *testing.T, id string) string {
	t.Helper()
	d, err := base64.RawURLEncoding.DecodeString(p.clients[id].Key["d"])
	if err != nil {
		t.Fatal(err)
	}
	block := &pem.Block{Type: "PRIVATE KEY"}
	if p.clients[id].Key["kty"] == "EC" {
		key, errKey := ecdsa.ParseRawPrivateKey(elliptic.P256(), d)
		if errKey != nil {
			t.Fatal(errKey)
		}
		block.Type = "EC PRIVATE KEY"
		block.Bytes, err = x509.MarshalECPrivateKey(key)
	} else {
		block.Bytes, err = x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(d))
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block))
}

// yaml is a client of the configuration.
func (p *oidcProvider) yaml(name, id, auth string, keys ...string) string {
	return fmt.Sprintf("  %s:\n    issuer: %s\n    client_id: %q\n    auth: %s\n    resources: [%s]\n    scopes: [read, write]\n    %s\n",
		name, p.issuer, id, auth, rs256, strings.Join(keys, "\n    "))
}

// ways are the ways to authenticate of the clients that server.mjs has, each as a
// client of the broker.
func (p *oidcProvider) ways(t *testing.T) map[string]string {
	t.Helper()
	secret := func(id string) string { return "secret: file:" + writeFile(t, "secret", p.clients[id].Secret) }
	key := func(text string) string { return "secret: file:" + writeFile(t, "key", text) }
	return map[string]string{
		"basic":         p.yaml("basic", "basic", "client_secret_basic", secret("basic")),
		"odd":           p.yaml("odd", "odd:%+/=& id", "client_secret_basic", secret("odd:%+/=& id")),
		"post":          p.yaml("post", "post", "client_secret_post", secret("post")),
		"secret-jwt":    p.yaml("secret-jwt", "secret-jwt", "client_secret_jwt", secret("secret-jwt")),
		"secret-to":     p.yaml("secret-to", "secret-jwt", "client_secret_jwt", secret("secret-jwt"), "assertion: {audience: token_endpoint, typ: JWT}"),
		"key-rs256":     p.yaml("key-rs256", "key-rs256", "private_key_jwt", key(p.jwk(t, "key-rs256"))),
		"key-ps256":     p.yaml("key-ps256", "key-ps256", "private_key_jwt", key(p.jwk(t, "key-ps256")), "assertion: {audience: token_endpoint}"),
		"key-es256":     p.yaml("key-es256", "key-es256", "private_key_jwt", key(p.jwk(t, "key-es256")), "assertion: {typ: JWT}"),
		"key-eddsa":     p.yaml("key-eddsa", "key-eddsa", "private_key_jwt", key(p.jwk(t, "key-eddsa")), "assertion: {audience: "+p.issuer+"}"),
		"key-es256-pem": p.yaml("key-es256-pem", "key-es256", "private_key_jwt", key(p.pem(t, "key-es256")), "assertion: {kid: "+p.clients["key-es256"].Key["kid"]+"}"),
		"key-eddsa-pem": p.yaml("key-eddsa-pem", "key-eddsa", "private_key_jwt", key(p.pem(t, "key-eddsa")), "assertion: {kid: "+p.clients["key-eddsa"].Key["kid"]+"}"),
	}
}

// TestEachWayToAuthenticate gets and verifies a token by each way, and finds
// nothing of a secret, a key or an assertion in what the broker printed.
func TestEachWayToAuthenticate(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	ways := idp.ways(t)
	var clients strings.Builder
	for _, way := range ways {
		clients.WriteString(way)
	}
	b := startBroker(t, fmt.Sprintf("log: {level: debug}\nclients:\n%sissuers: [{issuer: %q, audiences: [%q, %q]}]\n", &clients, idp.issuer, rs256, es256))
	for name := range ways {
		for _, resource := range []string{rs256, es256} { // an assertion is good once
			got := b.get(t, name, "--resource", resource)
			b.mustVerify(t, "a token of "+name, got.AccessToken, active, "--audience", resource)
		}
	}
	if diff := cmp.Diff(map[string]int{"basic": 4, "post": 2, "assertion": 16}, idp.requests(t).Auth); diff != "" {
		t.Error(diff)
	}
	// Failures are what is printed at length.
	idp.failNext(t, 3, 500, "")
	for _, name := range []string{"basic", "secret-jwt", "key-es256"} {
		if res := b.run(t, "get", name, "--resource", eddsa, "--json"); res.code == 0 {
			t.Errorf("%s: the IdP is in trouble, and yet: %v", name, res)
		}
	}
	b.process.stop(t, os.Interrupt)
	printed := b.process.output.String()
	idp.findNothing(t, printed)
	if !strings.Contains(printed, "no token from the IdP") {
		t.Error("the broker logged nothing of it, so this says nothing")
	}
}

// findNothing looks for what no output may have.
func (p *oidcProvider) findNothing(t *testing.T, printed string) {
	t.Helper()
	for id, client := range p.clients {
		for _, text := range []string{client.Secret, client.Key["d"], client.Key["p"]} {
			if text != "" && (strings.Contains(printed, text[:16]) || strings.Contains(printed, url.QueryEscape(text)[:16])) {
				t.Errorf("something of the secret of %s was printed", id)
			}
		}
	}
	if strings.Contains(printed, "eyJ") || strings.Contains(printed, "PRIVATE KEY") {
		t.Error("a token, an assertion or a key was printed")
	}
}

func TestIntrospectionByAnAssertion(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	ways := idp.ways(t)
	for _, name := range []string{"key-es256", "secret-jwt"} {
		b := startBroker(t, fmt.Sprintf("clients:\n%sissuers: [{issuer: %q, audiences: [%q], introspection: {client: %s, cache: 0s}}]\n", ways[name], idp.issuer, opaque, name))
		for range 2 {
			b.mustVerify(t, "an opaque token, asked about by "+name, b.get(t, name, "--resource", opaque).AccessToken, active, "--audience", opaque)
		}
		b.mustVerify(t, "a token that nobody issued", "nobody-issued-this", rejected)
	}
}

// TestWrongKeysAreRefusedAndExplained: by the IdP, and where they cannot be keys by
// the broker at its start.
func TestWrongKeysAreRefusedAndExplained(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	foreign, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(foreign)
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	b := startBroker(t, "clients:\n"+
		idp.yaml("foreign", "key-es256", "private_key_jwt", "secret: file:"+writeFile(t, "key", text), "assertion: {kid: "+idp.clients["key-es256"].Key["kid"]+"}")+
		idp.yaml("elsewhere", "key-eddsa", "private_key_jwt", "secret: file:"+writeFile(t, "key", idp.jwk(t, "key-eddsa")), "assertion: {audience: 'https://elsewhere.example.com'}"))
	for _, name := range []string{"foreign", "elsewhere"} {
		if res := b.run(t, "get", name); res.code == 0 || !strings.Contains(res.stderr, "invalid_client") || !strings.Contains(res.stderr, "assertion.audience") {
			t.Errorf("%s: %v", name, res)
		}
	}
	config := "clients:\n" + idp.yaml("a", "basic", "client_secret_basic", "secret: file:"+writeFile(t, "key", text)) +
		idp.yaml("b", "key-es256", "private_key_jwt", "secret: file:"+writeFile(t, "secret", idp.clients["basic"].Secret))
	res := run(t, "serve", "--config", writeFile(t, "broker.yaml", config))
	if res.code == 0 || !strings.Contains(res.stderr, "clients.a: secret: ") || !strings.Contains(res.stderr, "it is a private key") || !strings.Contains(res.stderr, "clients.b: secret: ") || !strings.Contains(res.stderr, "it contains no private key") {
		t.Errorf("secrets of another kind: %v", res)
	}
	idp.findNothing(t, res.stderr+res.stdout)
	if strings.Contains(res.stderr, strings.Split(text, "\n")[1][:20]) {
		t.Error("the key was printed")
	}
}

// TestAssertionThatSomebodyElseKeepsFresh: a file that is rewritten is sent as it
// is now, and what cannot be sent is told.
func TestAssertionThatSomebodyElseKeepsFresh(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	file := filepath.Join(t.TempDir(), "token")
	key, err := jose.ParseSigningKey(redact.New(idp.jwk(t, "key-es256")))
	if err != nil {
		t.Fatal(err)
	}
	issue := func() {
		t.Helper()
		claims := map[string]any{"iss": "key-es256", "sub": "key-es256", "aud": idp.issuer, "exp": time.Now().Add(time.Minute).Unix(), "jti": rand.Text()}
		signed, err := jose.Sign(key, jose.SigningHeader{Algorithm: "ES256", KeyID: key.ID()}, claims)
		if err != nil {
			t.Fatal(err)
		}
		testkit.WriteFile(t, file, signed.Reveal()+"\n")
	}
	issue()
	b := startBroker(t, "clients:\n"+idp.yaml("federated", "key-es256", "federated_jwt", "assertion: {file: "+file+"}"))
	b.get(t, "federated", "--resource", rs256)
	issue()
	b.get(t, "federated", "--resource", es256)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if res := b.run(t, "get", "federated", "--resource", eddsa); res.code == 0 || !strings.Contains(res.stderr, "assertion.file "+file+" cannot be read") {
		t.Errorf("without the file: %v", res)
	}
	b.get(t, "federated", "--resource", es256) // which is held
	if n := idp.requests(t).Auth["assertion"]; n != 2 {
		t.Errorf("%d requests with an assertion", n)
	}
}
