package edge

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// ordersAPI is the audience of the tokens that ZITADEL's library and Glewlwyd issue.
const ordersAPI = "https://orders.example.com"

const credentialsRefused = "CLIENT_CREDENTIALS_REFUSED"

// foreignIdP is an identity provider that was not written for this project, with one
// client registered. It keeps its state over a stop and a start.
type foreignIdP struct {
	issuer, clientID, secret string
	// dir has the state of zitadelop.
	dir string
	// client and keys are the further settings that the client and the issuer need.
	client, keys string
	audience     string
	// refusal is the broker's reason when the IdP refuses a secret.
	refusal string
	start   func(t *testing.T)
	stop    func(t *testing.T)
	// rotate makes the provider sign with a new key; old keys stay published if keepOld.
	rotate func(t *testing.T, keepOld bool)
	// sign signs a token with the provider's key; nil: the test has no key.
	sign func(t *testing.T, claims map[string]any) string
}

func foreignIdPs() map[string]func(t *testing.T) *foreignIdP {
	return map[string]func(t *testing.T) *foreignIdP{
		"oidc-provider": foreignOIDCProvider,
		"zitadel":       startZITADEL,
		"glewlwyd":      startGlewlwyd,
	}
}

// config is the broker's configuration: client "good" with the right secret and client
// "wrong" with the content of another file.
func (p *foreignIdP) config(t *testing.T, wrong string) string {
	t.Helper()
	client := func(name, file string) string {
		return fmt.Sprintf("  %s: {issuer: %q, client_id: %q, secret: \"file:%s\"%s}\n", name, p.issuer, p.clientID, file, p.client)
	}
	text := "clients:\n" + client("good", harness.WriteFile(t, "secret", p.secret))
	if wrong != "" {
		text += client("wrong", wrong)
	}
	return text + fmt.Sprintf("issuers:\n  - {issuer: %q, audiences: [%q]%s}\n", p.issuer, p.audience, p.keys)
}

func TestOtherIdPs(t *testing.T) {
	t.Parallel()
	for name, launch := range foreignIdPs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			idp := launch(t)
			idp.checkConfig(t)
			wrong := harness.WriteFile(t, "secret", "this-is-not-the-secret-of-the-client")
			b := harness.StartBroker(t, idp.config(t, wrong))
			token := idp.getAndVerify(t, b)
			idp.correctSecret(t, b, wrong)
			idp.restart(t, b, token)
			idp.rotateKeys(t, b)
		})
	}
}

// checkConfig shows that "check-config --live --mint" accepts the right secret and
// names the client whose secret is wrong.
func (p *foreignIdP) checkConfig(t *testing.T) {
	t.Helper()
	good := harness.WriteFile(t, "broker.yaml", p.config(t, ""))
	if res := harness.Run(t, "check-config", good, "--live", "--mint"); res.Code != 0 {
		t.Fatalf("check-config with the right secret: %v", res)
	}
	bad := harness.WriteFile(t, "broker.yaml", p.config(t, harness.WriteFile(t, "secret", "also-not-the-secret-of-the-client")))
	res := harness.Run(t, "check-config", bad, "--live", "--mint")
	if res.Code == 0 || !strings.Contains(res.Stdout+res.Stderr, "wrong") {
		t.Errorf("check-config with a wrong secret: %v", res)
	}
}

// getAndVerify returns a token that the broker got and verified.
func (p *foreignIdP) getAndVerify(t *testing.T, b *harness.Broker) string {
	t.Helper()
	given := b.Get(t, "good")
	if given.TokenType != "Bearer" || given.Origin != "fetched" || !given.RefreshAt.Before(given.ExpiresAt) {
		given.AccessToken = ""
		t.Errorf("get: %+v", given)
	}
	token := given.AccessToken
	got := verdictOf(t, b.MustVerify(t, "the token", token, harness.Active, "--audience", p.audience))
	if got.Issuer != p.issuer || got.ClientID != p.clientID || got.Subject != p.clientID {
		t.Errorf("verify: %+v", got)
	}
	b.MustVerify(t, "the token for another audience", token, harness.Rejected, "--audience", "https://other.example.com")
	b.MustVerify(t, "a token that was tampered with", tamper(token), harness.Rejected, "--audience", p.audience)
	return token
}

// correctSecret shows that a wrong secret is refused, and that the client works once
// its file has the right one: the remembered failure ends with the secret.
func (p *foreignIdP) correctSecret(t *testing.T, b *harness.Broker, file string) {
	t.Helper()
	if _, res := b.TryGet(t, "wrong"); res.Code == 0 || !strings.Contains(res.Stderr, "FailedPrecondition") || !strings.Contains(res.Stderr, p.refusal) {
		t.Errorf("get with a wrong secret: %v", res)
	}
	testkit.WriteFile(t, file, p.secret)
	testkit.Eventually(t, "the corrected secret is used", func() bool { _, res := b.TryGet(t, "wrong"); return res.Code == 0 })
}

// restart shows what goes on while the IdP is down and after it and the broker were
// started again.
func (p *foreignIdP) restart(t *testing.T, b *harness.Broker, token string) {
	t.Helper()
	p.stop(t)
	if got := b.Get(t, "good"); got.AccessToken != token {
		t.Error("the broker hands out another token while the IdP is down")
	}
	b.MustVerify(t, "a token while the IdP is down", token, harness.Active, "--audience", p.audience)
	p.start(t)
	p.another(t, b, token)

	if code := b.Process.Stop(t, harness.Terminate); code != 0 {
		t.Errorf("the broker ended with %d", code)
	}
	b.Launch(t, "broker")
	b.Await(t)
	b.MustVerify(t, "a token from before the broker's restart", token, harness.Active, "--audience", p.audience)
	p.another(t, b, token)
}

// another has the broker drop its tokens and returns a new one, which verifies.
func (p *foreignIdP) another(t *testing.T, b *harness.Broker, before string) string {
	t.Helper()
	if res := b.Run(t, "purge", "good"); res.Code != 0 {
		t.Fatalf("purge: %v", res)
	}
	var token string
	testkit.Eventually(t, "another token", func() bool {
		given, res := b.TryGet(t, "good")
		token = given.AccessToken
		return res.Code == 0 && token != before
	})
	testkit.Eventually(t, "another token is active", func() bool { return b.Verify(t, token, "--audience", p.audience).Code == harness.Active })
	return token
}

// RotateKeys shows that the broker follows the keys of the IdP, with an overlap and
// without one.
func (p *foreignIdP) rotateKeys(t *testing.T, b *harness.Broker) {
	t.Helper()
	first := b.Get(t, "good").AccessToken
	p.rotate(t, true)
	second := p.another(t, b, first)
	if keyID(t, first) == keyID(t, second) {
		t.Error("the IdP did not rotate its keys")
	}
	b.MustVerify(t, "a token of a key that is still published", first, harness.Active, "--audience", p.audience)
	p.rotate(t, false)
	p.another(t, b, second)
	b.MustVerify(t, "a token of a withdrawn key", first, harness.Rejected, "--audience", p.audience)
	b.MustVerify(t, "a token of a withdrawn key", second, harness.Rejected, "--audience", p.audience)
}

func foreignOIDCProvider(t *testing.T) *foreignIdP {
	t.Helper()
	idp := harness.StartOIDCProvider(t)
	return &foreignIdP{
		issuer: idp.Issuer, clientID: "basic", secret: idp.Clients["basic"].Secret, audience: harness.RS256, refusal: credentialsRefused,
		client: fmt.Sprintf(", resources: [%q]", harness.RS256),
		start:  idp.Start, stop: idp.Stop, rotate: idp.RotateKeys,
	}
}

// startZITADEL starts the OpenID provider library of ZITADEL, which tools/zitadelop
// serves. Files of its directory are its keys.
func startZITADEL(t *testing.T) *foreignIdP {
	t.Helper()
	harness.Need(t, "zitadelop")
	address, dir := harness.FreeAddress(t), t.TempDir()
	idp := &foreignIdP{issuer: "http://" + address, dir: dir, clientID: "orders", secret: rand.Text(), audience: ordersAPI, keys: ", types: [JWT]", refusal: credentialsRefused}
	testkit.WriteFile(t, filepath.Join(dir, "secret"), idp.secret)
	keys := 0
	idp.rotate = func(t *testing.T, keepOld bool) {
		t.Helper()
		keys++
		addRSAKey(t, filepath.Join(dir, fmt.Sprintf("%d.pem", keys)))
		for i := 1; i < keys && !keepOld; i++ {
			if err := os.Remove(filepath.Join(dir, fmt.Sprintf("%d.pem", i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	idp.rotate(t, true)
	idp.sign = func(t *testing.T, claims map[string]any) string {
		t.Helper()
		return signWith(t, filepath.Join(dir, fmt.Sprintf("%d.pem", keys)), claims)
	}
	idp.runs(t, idp.issuer+"/.well-known/openid-configuration", func(t *testing.T) *testkit.Process {
		t.Helper()
		return harness.Start(t, dir, nil, "zitadelop", address, dir)
	})
	return idp
}

// signWith signs a token with a key of zitadelop, by the key's name there.
func signWith(t *testing.T, path string, claims map[string]any) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(content)
	key, err := jose.ParseSigningKey(redact.New(string(content)))
	if block == nil || err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	id := sha256.Sum256(block.Bytes)
	token, err := jose.Sign(key, jose.SigningHeader{Type: "JWT", Algorithm: "RS256", KeyID: hex.EncodeToString(id[:8])}, claims)
	if err != nil {
		t.Fatal(err)
	}
	return token.Reveal()
}

// runs makes start and stop of a process that is ready once it answers at an address,
// in whatever way, and starts it.
func (p *foreignIdP) runs(t *testing.T, ready string, launch func(t *testing.T) *testkit.Process) {
	t.Helper()
	client := &http.Client{Timeout: harness.Patience}
	var running *testkit.Process
	p.start = func(t *testing.T) {
		t.Helper()
		running = launch(t)
		running.Ready(t, func() bool {
			response, err := harness.Fetch(t, client, http.MethodGet, ready, nil)
			return err == nil && response.Body.Close() == nil
		})
	}
	p.stop = func(t *testing.T) {
		t.Helper()
		running.Stop(t, harness.Terminate)
		client.CloseIdleConnections()
	}
	p.start(t)
}

// addRSAKey writes the file in one step, because its reader may come at any time.
func addRSAKey(t *testing.T, path string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// glewlwyd is Glewlwyd, which is set up through its own administration API.
type glewlwyd struct {
	api    string
	client *http.Client
	keys   []map[string]string // private JWKs, the one that signs first
}

const (
	glewlwydModules = "/usr/lib/glewlwyd/"
)

func startGlewlwyd(t *testing.T) *foreignIdP {
	t.Helper()
	harness.Need(t, "glewlwyd")
	address, dir := harness.FreeAddress(t), t.TempDir()
	_, port, _ := strings.Cut(address, ":")
	base := "http://" + address
	writeGlewlwydFiles(t, dir, port, base)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	g := &glewlwyd{api: base + "/api", client: &http.Client{Timeout: harness.Patience, Jar: jar}}
	idp := &foreignIdP{
		issuer: g.api + "/oidc", clientID: "orders", secret: rand.Text(), audience: ordersAPI,
		client: fmt.Sprintf(", scopes: [read], resources: [%q]", ordersAPI), keys: ", algorithms: [ES256]",
		refusal: "TOKEN_REQUEST_REFUSED", // it answers 403 without a body
	}
	idp.runs(t, g.api+"/auth", func(t *testing.T) *testkit.Process {
		t.Helper()
		return harness.Start(t, dir, nil, "glewlwyd", "-c", filepath.Join(dir, "glewlwyd.conf"))
	})
	idp.rotate = func(t *testing.T, keepOld bool) {
		t.Helper()
		g.rotate(t, keepOld)
		g.call(t, http.MethodPut, "/mod/plugin/oidc", g.plugin(t, idp.issuer))
		g.call(t, http.MethodPut, "/mod/plugin/oidc/reset", nil)
	}
	g.setUp(t, idp)
	return idp
}

func writeGlewlwydFiles(t *testing.T, dir, port, base string) {
	t.Helper()
	database := filepath.Join(dir, "glewlwyd.db")
	schema, err := os.ReadFile(harness.GlewlwydSchema)
	if err != nil {
		t.Fatal(err)
	}
	if res := (harness.Command{Name: "sqlite3", Input: string(schema)}).Run(t, database); res.Code != 0 {
		t.Fatalf("sqlite3: %v", res)
	}
	config := fmt.Sprintf(`port=%s
bind_address="127.0.0.1"
external_url="%s"
api_prefix="api"
log_mode="console"
log_level="WARNING"
cookie_secure=0
session_key="GLEWLWYD2_SESSION_ID"
admin_scope="g_admin"
profile_scope="g_profile"
user_module_path="%[3]suser"
client_module_path="%[3]sclient"
user_auth_scheme_module_path="%[3]sscheme"
plugin_module_path="%[3]splugin"
hash_algorithm="SHA512"
database={ type="sqlite3" path="%[4]s" }
`, port, base, glewlwydModules, database)
	testkit.WriteFile(t, filepath.Join(dir, "glewlwyd.conf"), config)
}

// setUp logs in with the password of a new installation and adds the scope, the OpenID
// Connect plugin and the client.
func (g *glewlwyd) setUp(t *testing.T, idp *foreignIdP) {
	t.Helper()
	g.rotate(t, false)
	g.call(t, http.MethodPost, "/auth/", map[string]any{"username": "admin", "password": "password"})
	g.call(t, http.MethodPost, "/scope/", map[string]any{"name": "read", "display_name": "read", "password_required": false, "scheme": map[string]any{}})
	g.call(t, http.MethodPost, "/mod/plugin/", g.plugin(t, idp.issuer))
	g.call(t, http.MethodPost, "/client/", map[string]any{
		"client_id": idp.clientID, "name": idp.clientID, "client_secret": idp.secret, "confidential": true, "enabled": true,
		"authorization_type": []string{"client_credentials"}, "token_endpoint_auth_method": []string{"client_secret_basic"},
		"scope": []string{"read"}, "resource": []string{ordersAPI}, "redirect_uri": []string{},
	})
}

func (g *glewlwyd) plugin(t *testing.T, issuer string) map[string]any {
	t.Helper()
	set, err := json.Marshal(map[string]any{"keys": g.keys})
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{"module": "oidc", "name": "oidc", "display_name": "oidc", "parameters": map[string]any{
		"iss": issuer, "jwks-private": string(set), "jwt-type": "ecdsa", "jwt-key-size": "256", "jwks-show": true, "subject-type": "public",
		"access-token-duration": 3600, "refresh-token-duration": 3600, "code-duration": 600, "refresh-token-rolling": false,
		"allow-non-oidc": true, "auth-type-client-enabled": true, "auth-type-code-enabled": false, "auth-type-token-enabled": false,
		"auth-type-none-enabled": false, "auth-type-password-enabled": false, "auth-type-device-enabled": false, "auth-type-refresh-enabled": false,
		"resource-allowed": true, "resource-client-property": "resource",
	}}
}

// rotate puts a new key first.
func (g *glewlwyd) rotate(t *testing.T, keepOld bool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := private.PublicKey.Bytes() // 0x04, x, y
	if err != nil {
		t.Fatal(err)
	}
	d, err := private.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	const coordinate = 32
	key := map[string]string{
		"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": rand.Text(),
		"x": encode(point[1 : 1+coordinate]), "y": encode(point[1+coordinate:]), "d": encode(d),
	}
	if !keepOld {
		g.keys = nil
	}
	g.keys = append([]map[string]string{key}, g.keys...)
}

func (g *glewlwyd) call(t *testing.T, method, path string, body any) {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), method, g.api+path, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := g.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s %s of Glewlwyd: %s, %v", method, path, response.Status, err)
	}
}
