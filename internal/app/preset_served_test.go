package app_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

const providersFile = "../../docs/identity-providers.md"

// examples are the configurations of docs/identity-providers.md, by the section
// that they stand in.
func examples(t *testing.T) map[string]string {
	t.Helper()
	page, err := os.ReadFile(providersFile)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for section := range strings.SplitSeq(string(page), "\n## ") {
		name, _, _ := strings.Cut(section, "\n")
		for _, block := range regexp.MustCompile("(?s)```yaml\n(clients:\n.*?)```").FindAllStringSubmatch(section, -1) {
			if found[name] != "" {
				t.Errorf("%s has two configurations", name)
			}
			found[name] = block[1]
		}
	}
	return found
}

// signer is a key of a client: as the file that the broker has, and as what the IdP
// knows.
type signer struct {
	file string
	set  []byte
}

func rsaPEM(t *testing.T) (string, *josetest.Signer) {
	t.Helper()
	key := josetest.New(t, "RS256", "registered")
	der, err := x509.MarshalPKCS8PrivateKey(key.Private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), key
}

// secretsOf makes what stands in the files that the examples name.
func secretsOf(t *testing.T) map[string]signer {
	t.Helper()
	text, key := rsaPEM(t)
	private, ok := key.Private.(*rsa.PrivateKey)
	if !ok {
		t.Fatal(key)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "orders-api"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk := &josetest.Signer{KeyID: "okta-made-this", Algorithm: "ES256", Private: ec}
	d, err := ec.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	account := josetest.JSON{"type": "service_account", "private_key_id": "registered", "private_key": text, "client_email": "orders@shop-123456.iam.gserviceaccount.com", "client_id": "1"}
	set := josetest.Set(key.JWK())
	return map[string]signer{
		"orders-api":                     {"good\n", nil},
		"salesforce":                     {"good\n", nil},
		"zoom":                           {"good\n", nil},
		"orders-api.pem":                 {text, set},
		"orders-api-and-certificate.pem": {text + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), set},
		"okta-api.jwk":                   {string(josetest.Marshal(jwk.JWK(josetest.JSON{"d": josetest.Base64(d)}))), josetest.Set(jwk.JWK())},
		"orders-service-account.json":    {string(josetest.Marshal(account)), set},
	}
}

// provider is how an example's IdP has its clients registered.
type provider struct {
	section, imitate, issuer string
	scopes                   []string
	audiences                []string
	lifetime                 time.Duration
	opaque                   bool
	auth                     map[string]string // by the client's name in the example
	grant                    string
	params                   map[string]string
	// What callers get.
	life        time.Duration
	extras      map[string]string
	grantScopes []string
}

func providers() []provider {
	const orders = "https://orders.example.com"
	return []provider{
		{
			section: "Auth0", imitate: "auth0", issuer: "https://shop.eu.auth0.com/", scopes: []string{"read", "write"}, audiences: []string{orders}, lifetime: 24 * time.Hour,
			auth: map[string]string{"orders-api": devidp.AuthPost, "orders-api-by-key": devidp.AuthPrivateKeyJWT}, life: 24 * time.Hour,
		},
		{
			section: "Amazon Cognito", imitate: "cognito", issuer: "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_EXAMPLE", scopes: []string{"orders/read", "orders/write"},
			auth: map[string]string{"orders-api": devidp.AuthBasic}, life: time.Hour, grantScopes: []string{"orders/read", "orders/write"},
		},
		{
			section: "Google", imitate: "google", issuer: "https://oauth2.googleapis.com", scopes: []string{"https://www.googleapis.com/auth/devstorage.read_only"}, lifetime: 3599 * time.Second,
			auth: map[string]string{"storage": devidp.AuthNone}, grant: "urn:ietf:params:oauth:grant-type:jwt-bearer", opaque: true,
			life: 3599 * time.Second, grantScopes: []string{"https://www.googleapis.com/auth/devstorage.read_only"},
		},
		{
			section: "Keycloak", imitate: "keycloak", issuer: "https://login.example.com/realms/shop", scopes: []string{"read", "email"}, lifetime: 5 * time.Minute,
			auth: map[string]string{"orders-api": devidp.AuthBasic}, life: 5 * time.Minute, grantScopes: []string{"read"},
		},
		{
			section: "Microsoft Entra ID", imitate: "entra", issuer: "https://login.microsoftonline.com/72f988bf-86f1-41af-91ab-2d7cd011db47/v2.0", scopes: []string{"api://orders/.default"}, lifetime: 3599 * time.Second,
			auth: map[string]string{"orders-api": devidp.AuthPost, "orders-api-by-certificate": devidp.AuthPrivateKeyJWT}, life: 3599 * time.Second, grantScopes: []string{"api://orders/.default"},
		},
		{
			section: "Okta", imitate: "okta", issuer: "https://shop.okta.com", scopes: []string{"okta.users.read"},
			auth: map[string]string{"okta-api": devidp.AuthPrivateKeyJWT}, life: time.Hour, grantScopes: []string{"okta.users.read"},
		},
		{
			section: "Salesforce", imitate: "salesforce", issuer: "https://shop.my.salesforce.com", scopes: []string{"api"}, opaque: true,
			auth: map[string]string{"salesforce": devidp.AuthPost}, life: 10 * time.Minute, extras: map[string]string{"instance_url": "https://shop.my.salesforce.com"}, grantScopes: []string{"api"},
		},
		{
			section: "Zoom", imitate: "zoom", issuer: "https://zoom.us", scopes: []string{"meeting:read:admin"}, lifetime: 3600 * time.Second, opaque: true,
			auth: map[string]string{"zoom": devidp.AuthBasic}, grant: "account_credentials", params: map[string]string{"account_id": "k9Xw2LmPEXAMPLE"},
			life: time.Hour, extras: map[string]string{"api_url": "https://api.zoom.us"}, grantScopes: []string{"meeting:read:admin"},
		},
	}
}

// start makes the IdP and runs the broker of an example.
func (p provider) start(t *testing.T, text string, secrets map[string]signer) (*devidp.Server, asker) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range secrets {
		testkit.WriteFile(t, filepath.Join(dir, name), content.file)
	}
	var file struct {
		Clients map[string]struct {
			ID     string `yaml:"client_id"`
			Secret string `yaml:"secret"`
		} `yaml:"clients"`
	}
	if err := yaml.Load([]byte(text), &file); err != nil {
		t.Fatal(err)
	}
	cfg := devidp.Config{Issuer: p.issuer, Imitate: p.imitate, Algorithm: "EdDSA", Lifetime: p.lifetime}
	for name, client := range file.Clients {
		known := secrets[strings.TrimPrefix(client.Secret, "file:/run/secrets/")]
		cfg.Clients = append(cfg.Clients, devidp.Client{
			ID: client.ID, Secrets: []redact.String{redact.New(strings.TrimSpace(known.file))}, Keys: known.set, Auth: p.auth[name], Grant: p.grant, Params: p.params,
			Scopes: p.scopes, Audiences: p.audiences, Opaque: p.opaque,
		})
	}
	idp, err := devidp.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	text = "listen: {grpc: {address: \"127.0.0.1:0\", caller: everybody}, ops: off}\n" + everybody + strings.ReplaceAll(text, "file:/run/secrets/", "file:"+dir+"/")
	broker, _ := run(t, parsed(t, text), idp)
	conn, err := grpc.NewClient(broker.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	api := tokenbrokerv1.NewTokenBrokerServiceClient(conn)
	return idp, func(name string) (*tokenbrokerv1.GetTokenResponse, error) {
		return api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: name})
	}
}

// asker asks a broker for a token.
type asker func(client string) (*tokenbrokerv1.GetTokenResponse, error)

func TestExamplesAgainstImitatedIdPs(t *testing.T) {
	texts, secrets := examples(t), secretsOf(t)
	tried := 0
	for _, p := range providers() {
		t.Run(p.section, func(t *testing.T) {
			idp, ask := p.start(t, texts[p.section], secrets)
			for name, auth := range p.auth {
				tried++
				token, err := ask(name)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				if life := time.Until(token.GetExpiresAt().AsTime()); life > p.life || life < p.life-time.Minute {
					t.Errorf("%s lives for %v, want %v", name, life, p.life)
				}
				if token.GetTokenType() != "Bearer" || fmt.Sprint(token.GetExtras()) != fmt.Sprint(p.extras) {
					t.Errorf("%s: %s, %v", name, token.GetTokenType(), token.GetExtras())
				}
				if p.grantScopes != nil && !slices.Equal(token.GetScopes(), p.grantScopes) {
					t.Errorf("%s has the scopes %q", name, token.GetScopes())
				}
				requests := idp.TokenRequests()
				if last := requests[len(requests)-1]; last.Auth != auth || !last.OK {
					t.Errorf("%s: %+v", name, last)
				}
			}
		})
	}
	if tried != 10 {
		t.Errorf("%d clients were tried", tried)
	}
}

// TestPresets_refusedCredentials: the answer of each to a
// secret, or a key, that it does not know.
func TestPresets_refusedCredentials(t *testing.T) {
	texts, secrets := examples(t), secretsOf(t)
	foreign := josetest.New(t, "ES256", "k1")
	for _, p := range providers() {
		t.Run(p.section, func(t *testing.T) {
			idp, ask := p.start(t, texts[p.section], secrets)
			for name := range p.auth {
				id := parsed(t, texts[p.section]).Clients[name].ClientID
				idp.SetSecrets(id)
				idp.SetKeys(id, josetest.Set(foreign.JWK()))
				_, err := ask(name)
				if got := status.Convert(err); got.Code() != codes.FailedPrecondition || !strings.Contains(fmt.Sprint(got.Details()), "CLIENT_CREDENTIALS_REFUSED") {
					t.Errorf("%s: %v, %v", name, err, got.Details())
				}
			}
		})
	}
}

func TestPresets_throttling(t *testing.T) {
	texts, secrets := examples(t), secretsOf(t)
	reset := fmt.Sprint(time.Now().Add(90 * time.Second).Unix())
	for section, answer := range map[string]struct {
		header http.Header
		most   time.Duration
	}{
		"Microsoft Entra ID": {http.Header{"Retry-After": {"60"}}, time.Minute},
		"Auth0":              {http.Header{"X-Ratelimit-Reset": {reset}}, 90 * time.Second},
		"Okta":               {http.Header{"X-Rate-Limit-Reset": {reset}}, 90 * time.Second},
		"Amazon Cognito":     {http.Header{}, time.Minute},
	} {
		at := slices.IndexFunc(providers(), func(p provider) bool { return p.section == section })
		p := providers()[at]
		idp, ask := p.start(t, texts[section], secrets)
		idp.FailNext(10, http.StatusTooManyRequests, "too_many_requests", answer.header)
		for name := range p.auth {
			_, err := ask(name)
			if wait := retryDelay(err); status.Code(err) != codes.ResourceExhausted || wait > answer.most || wait < answer.most-10*time.Second {
				t.Errorf("%s: %v, come again in %v", section, err, wait)
			}
		}
	}
}

func retryDelay(err error) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			return retry.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

func TestPresets_demandsAreExplained(t *testing.T) {
	texts, secrets := examples(t), secretsOf(t)
	for section, tt := range map[string]struct {
		change func(text string) string
		says   string
	}{
		"Auth0": {func(text string) string {
			return regexp.MustCompile(`(?m)^    audience:.*$`).ReplaceAllString(text, "")
		}, "denies the request: grant the client access"},
		"Microsoft Entra ID": {func(text string) string { return strings.ReplaceAll(text, "/.default", "") }, "refuses the requested scopes"},
		"Google":             {func(text string) string { return text + "    assertion: {subject: user@example.com}\n" }, "refuses the client"},
		"Zoom":               {func(text string) string { return strings.ReplaceAll(text, "k9Xw2LmPEXAMPLE", "another") }, "rejects the request as invalid"},
	} {
		at := slices.IndexFunc(providers(), func(p provider) bool { return p.section == section })
		p := providers()[at]
		text := tt.change(texts[section])
		_, ask := p.start(t, text, secrets)
		for name := range p.auth {
			_, err := ask(name)
			if got := status.Convert(err); got.Code() != codes.FailedPrecondition || !strings.Contains(got.Message(), tt.says) {
				t.Errorf("%s: %v", section, err)
			}
		}
	}
}

// TestEntra_refreshIn, and its older endpoint has numbers as texts.
func TestEntra_refreshIn(t *testing.T) {
	texts, secrets := examples(t), secretsOf(t)
	at := slices.IndexFunc(providers(), func(p provider) bool { return p.imitate == "entra" })
	p := providers()[at]
	p.lifetime = 24 * time.Hour
	_, ask := p.start(t, texts[p.section], secrets)
	token, err := ask("orders-api")
	if err != nil {
		t.Fatal(err)
	}
	if soon := time.Until(token.GetRefreshAt().AsTime()); soon > 12*time.Hour || soon < 11*time.Hour {
		t.Errorf("it is refreshed in %v, the IdP said 12 h", soon)
	}
	p.imitate, p.issuer, p.audiences = "entra-v1", "https://login.microsoftonline.com/72f988bf-86f1-41af-91ab-2d7cd011db47", []string{"api://orders"}
	_, ask = p.start(t, `clients:
  orders-api:
    preset: entra
    token_url: https://login.microsoftonline.com/72f988bf-86f1-41af-91ab-2d7cd011db47/oauth2/token
    client_id: abc
    secret: file:/run/secrets/orders-api
    resources: [api://orders]
`, secrets)
	if token, err = ask("orders-api"); err != nil {
		t.Fatal(err)
	}
	if life := time.Until(token.GetExpiresAt().AsTime()); life > 24*time.Hour || life < 24*time.Hour-time.Minute {
		t.Errorf("expires_in as a text gives %v", life)
	}
}

// TestOkta_requiresDPoP is refused with an explanation, and not with a token that
// nobody could use.
func TestOkta_requiresDPoP(t *testing.T) {
	texts, secrets := examples(t), secretsOf(t)
	at := slices.IndexFunc(providers(), func(p provider) bool { return p.imitate == "okta" })
	idp, ask := providers()[at].start(t, texts["Okta"], secrets)
	idp.FailNext(1, http.StatusBadRequest, "invalid_dpop_proof", nil)
	_, err := ask("okta-api")
	if got := status.Convert(err); got.Code() != codes.FailedPrecondition || !strings.Contains(got.Message(), "requires a proof of possession (DPoP)") || !strings.Contains(fmt.Sprint(got.Details()), "IDP_MISCONFIGURED") {
		t.Errorf("%v, %v", err, got.Details())
	}
}

func TestStart_secretOfAnotherKind(t *testing.T) {
	dir := t.TempDir()
	key, _ := rsaPEM(t)
	for name, text := range map[string]string{"key": key, "password": "hunter2-and-some-more"} {
		testkit.WriteFile(t, filepath.Join(dir, name), text)
	}
	client := func(name, secret, more string) string {
		return fmt.Sprintf("  %s: {token_url: \"https://idp.example.com/token\", client_id: abc, secret: %q%s}\n", name, "file:"+filepath.Join(dir, secret), more)
	}
	config := parsed(t, "clients:\n"+client("a", "key", "")+client("b", "password", ", auth: private_key_jwt")+client("c", "password", ", auth: client_secret_jwt")+client("d", "password", ", preset: google"))
	_, err := app.New(config, app.Options{Logger: quiet()})
	if err == nil {
		t.Fatal("it starts")
	}
	for _, says := range []string{
		"clients.a: secret: file:" + filepath.Join(dir, "key") + " cannot be used: it is a private key, which auth client_secret_basic would not keep private",
		"clients.b: secret: file:" + filepath.Join(dir, "password") + " cannot be used: it contains no private key",
		"clients.c: secret: file:" + filepath.Join(dir, "password") + " cannot be used: it is shorter than 32 bytes",
		"clients.d: secret: file:" + filepath.Join(dir, "password") + " cannot be used: it contains no private key",
	} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%q is not in: %v", says, err)
		}
	}
	if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), strings.Split(key, "\n")[1]) {
		t.Errorf("the secret is quoted: %v", err)
	}
}
