package edge

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

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// jwk is the private key of a client of the IdP, as a JWK.
func jwkOf(t *testing.T, p *harness.OIDCProvider, id string) string {
	t.Helper()
	text, err := json.Marshal(p.Clients[id].Key)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// pem is the same in PEM: SEC1 for ECDSA, PKCS#8 for Ed25519.
func pemOf(t *testing.T, p *harness.OIDCProvider, id string) string {
	t.Helper()
	d, err := base64.RawURLEncoding.DecodeString(p.Clients[id].Key["d"])
	if err != nil {
		t.Fatal(err)
	}
	block := &pem.Block{Type: "PRIVATE KEY"}
	if p.Clients[id].Key["kty"] == "EC" {
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

// ways are the ways to authenticate of the clients that server.mjs has, each as a
// client of the broker.
func waysOf(t *testing.T, p *harness.OIDCProvider) map[string]string {
	t.Helper()
	secret := func(id string) string { return "secret: file:" + harness.WriteFile(t, "secret", p.Clients[id].Secret) }
	key := func(text string) string { return "secret: file:" + harness.WriteFile(t, "key", text) }
	return map[string]string{
		"basic":         p.YAML("basic", "basic", "client_secret_basic", secret("basic")),
		"odd":           p.YAML("odd", "odd:%+/=& id", "client_secret_basic", secret("odd:%+/=& id")),
		"post":          p.YAML("post", "post", "client_secret_post", secret("post")),
		"secret-jwt":    p.YAML("secret-jwt", "secret-jwt", "client_secret_jwt", secret("secret-jwt")),
		"secret-to":     p.YAML("secret-to", "secret-jwt", "client_secret_jwt", secret("secret-jwt"), "assertion: {audience: token_endpoint, typ: JWT}"),
		"key-rs256":     p.YAML("key-rs256", "key-rs256", "private_key_jwt", key(jwkOf(t, p, "key-rs256"))),
		"key-ps256":     p.YAML("key-ps256", "key-ps256", "private_key_jwt", key(jwkOf(t, p, "key-ps256")), "assertion: {audience: token_endpoint}"),
		"key-es256":     p.YAML("key-es256", "key-es256", "private_key_jwt", key(jwkOf(t, p, "key-es256")), "assertion: {typ: JWT}"),
		"key-eddsa":     p.YAML("key-eddsa", "key-eddsa", "private_key_jwt", key(jwkOf(t, p, "key-eddsa")), "assertion: {audience: "+p.Issuer+"}"),
		"key-es256-pem": p.YAML("key-es256-pem", "key-es256", "private_key_jwt", key(pemOf(t, p, "key-es256")), "assertion: {kid: "+p.Clients["key-es256"].Key["kid"]+"}"),
		"key-eddsa-pem": p.YAML("key-eddsa-pem", "key-eddsa", "private_key_jwt", key(pemOf(t, p, "key-eddsa")), "assertion: {kid: "+p.Clients["key-eddsa"].Key["kid"]+"}"),
	}
}

// TestEachWayToAuthenticate gets and verifies a token by each way, and finds
// nothing of a secret, a key or an assertion in what the broker printed.
func TestEachWayToAuthenticate(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	ways := waysOf(t, idp)
	var clients strings.Builder
	for _, way := range ways {
		clients.WriteString(way)
	}
	b := harness.StartBroker(t, fmt.Sprintf("log: {level: debug}\nclients:\n%sissuers: [{issuer: %q, audiences: [%q, %q]}]\n", &clients, idp.Issuer, harness.RS256, harness.ES256))
	for name := range ways {
		for _, resource := range []string{harness.RS256, harness.ES256} { // an assertion is good once
			got := b.Get(t, name, "--resource", resource)
			b.MustVerify(t, "a token of "+name, got.AccessToken, harness.Active, "--audience", resource)
		}
	}
	if diff := cmp.Diff(map[string]int{"basic": 4, "post": 2, "assertion": 16}, idp.Requests(t).Auth); diff != "" {
		t.Error(diff)
	}
	// Failures are what is printed at length.
	idp.FailNext(t, 3, 500, "")
	for _, name := range []string{"basic", "secret-jwt", "key-es256"} {
		if res := b.Run(t, "get", name, "--resource", harness.EdDSA, "--json"); res.Code == 0 {
			t.Errorf("%s: the IdP is in trouble, and yet: %v", name, res)
		}
	}
	b.Process.Stop(t, os.Interrupt)
	printed := b.Process.Output.String()
	findNothing(t, idp, printed)
	if !strings.Contains(printed, "no token from the IdP") {
		t.Error("the broker logged nothing of it, so this says nothing")
	}
}

// findNothing looks for what no output may have.
func findNothing(t *testing.T, p *harness.OIDCProvider, printed string) {
	t.Helper()
	for id, client := range p.Clients {
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

func TestIntrospectionWithAnAssertion(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	ways := waysOf(t, idp)
	for _, name := range []string{"key-es256", "secret-jwt"} {
		b := harness.StartBroker(t, fmt.Sprintf("clients:\n%sissuers: [{issuer: %q, audiences: [%q], introspection: {client: %s, cache: 0s}}]\n", ways[name], idp.Issuer, harness.Opaque, name))
		for range 2 {
			b.MustVerify(t, "an opaque token, asked about by "+name, b.Get(t, name, "--resource", harness.Opaque).AccessToken, harness.Active, "--audience", harness.Opaque)
		}
		b.MustVerify(t, "a token that nobody issued", "nobody-issued-this", harness.Rejected)
	}
}

// TestWrongKeysAreRefusedAndExplained: by the IdP, and where they cannot be keys by
// the broker at its start.
func TestWrongKeysAreRefusedAndExplained(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	foreign, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(foreign)
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	b := harness.StartBroker(t, "clients:\n"+
		idp.YAML("foreign", "key-es256", "private_key_jwt", "secret: file:"+harness.WriteFile(t, "key", text), "assertion: {kid: "+idp.Clients["key-es256"].Key["kid"]+"}")+
		idp.YAML("elsewhere", "key-eddsa", "private_key_jwt", "secret: file:"+harness.WriteFile(t, "key", jwkOf(t, idp, "key-eddsa")), "assertion: {audience: 'https://elsewhere.example.com'}"))
	for _, name := range []string{"foreign", "elsewhere"} {
		if res := b.Run(t, "get", name); res.Code == 0 || !strings.Contains(res.Stderr, "invalid_client") || !strings.Contains(res.Stderr, "assertion.audience") {
			t.Errorf("%s: %v", name, res)
		}
	}
	config := "clients:\n" + idp.YAML("a", "basic", "client_secret_basic", "secret: file:"+harness.WriteFile(t, "key", text)) +
		idp.YAML("b", "key-es256", "private_key_jwt", "secret: file:"+harness.WriteFile(t, "secret", idp.Clients["basic"].Secret))
	res := harness.Run(t, "serve", "--config", harness.WriteFile(t, "broker.yaml", config))
	if res.Code == 0 || !strings.Contains(res.Stderr, "clients.a: secret: ") || !strings.Contains(res.Stderr, "it is a private key") || !strings.Contains(res.Stderr, "clients.b: secret: ") || !strings.Contains(res.Stderr, "it contains no private key") {
		t.Errorf("secrets of another kind: %v", res)
	}
	findNothing(t, idp, res.Stderr+res.Stdout)
	if strings.Contains(res.Stderr, strings.Split(text, "\n")[1][:20]) {
		t.Error("the key was printed")
	}
}

// TestAssertionFileIsReadAgain: a file that is rewritten is sent as it
// is now, and what cannot be sent is told.
func TestAssertionFileIsReadAgain(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	file := filepath.Join(t.TempDir(), "token")
	key, err := jose.ParseSigningKey(redact.New(jwkOf(t, idp, "key-es256")))
	if err != nil {
		t.Fatal(err)
	}
	issue := func() {
		t.Helper()
		claims := map[string]any{"iss": "key-es256", "sub": "key-es256", "aud": idp.Issuer, "exp": time.Now().Add(time.Minute).Unix(), "jti": rand.Text()}
		signed, err := jose.Sign(key, jose.SigningHeader{Algorithm: "ES256", KeyID: key.ID()}, claims)
		if err != nil {
			t.Fatal(err)
		}
		testkit.WriteFile(t, file, signed.Reveal()+"\n")
	}
	issue()
	b := harness.StartBroker(t, "clients:\n"+idp.YAML("federated", "key-es256", "federated_jwt", "assertion: {file: "+file+"}"))
	b.Get(t, "federated", "--resource", harness.RS256)
	issue()
	b.Get(t, "federated", "--resource", harness.ES256)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if res := b.Run(t, "get", "federated", "--resource", harness.EdDSA); res.Code == 0 || !strings.Contains(res.Stderr, "assertion.file "+file+" cannot be read") {
		t.Errorf("without the file: %v", res)
	}
	b.Get(t, "federated", "--resource", harness.ES256) // which is held
	if n := idp.Requests(t).Auth["assertion"]; n != 2 {
		t.Errorf("%d requests with an assertion", n)
	}
}
