package idp_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

const longSecret = "canary-secret-of-more-than-32-bytes"

func newKey(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	return josetest.New(t, kind, "").Private
}

func pemKey(t testing.TB, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// certify makes a self-signed certificate that is valid from an hour ago.
func certify(t testing.TB, key crypto.Signer, life time.Duration) (*x509.Certificate, string) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "broker"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func write(t testing.TB, path, text string) string {
	t.Helper()
	testkit.WriteFile(t, path, text)
	return path
}

func secretOf(text string) secret.Version { return secret.Version{ID: "v1", Value: redact.New(text)} }

// fetched is the one request of a fetch that must succeed.
func fetched(t *testing.T, cfg idp.Config, with string, req idp.Request) recorded {
	t.Helper()
	url, requests := idpServer(t, grants(good))
	if cfg.Issuer == nil {
		cfg.TokenURL = url
	}
	if _, err := client(t, cfg).Fetch(t.Context(), secretOf(with), req); err != nil {
		t.Fatal(err)
	}
	all := requests()
	if cfg.Issuer == nil && len(all) != 1 {
		t.Fatalf("%d requests", len(all))
	}
	return all[0]
}

// asserted verifies an assertion with a library that the client does not use.
func asserted(t *testing.T, text string, public any, algorithm string) (header map[string]any, claims jwt.MapClaims) {
	t.Helper()
	token, err := jwt.Parse(text, func(*jwt.Token) (any, error) { return public, nil }, jwt.WithValidMethods([]string{algorithm}), jwt.WithStrictDecoding(), jwt.WithIssuedAt())
	if err != nil {
		t.Fatalf("the assertion: %v", err)
	}
	claims, ok := token.Claims.(jwt.MapClaims)
	if !ok {
		t.Fatalf("%T", token.Claims)
	}
	return token.Header, claims
}

// timed takes the times out of claims, after it found them as they should be.
func timed(t *testing.T, claims jwt.MapClaims, names ...string) jwt.MapClaims {
	t.Helper()
	now := float64(time.Now().Unix())
	iat, _ := claims["iat"].(float64)
	exp, _ := claims["exp"].(float64)
	const slow = 5 // seconds that the test may take
	if iat > now-5 || iat < now-5-slow || exp > now+60 || exp < now+60-slow {
		t.Errorf("iat %v, exp %v at %v", iat, exp, now)
	}
	if id, _ := claims["jti"].(string); len(id) < 20 {
		t.Errorf("jti %q", id)
	}
	if nbf, ok := claims["nbf"]; ok && nbf != iat {
		t.Errorf("nbf %v, iat %v", nbf, iat)
	}
	for _, name := range append(names, "iat", "exp", "nbf", "jti") {
		delete(claims, name)
	}
	return claims
}

func without(form url.Values, names ...string) url.Values {
	for _, name := range names {
		form.Del(name)
	}
	return form
}

func TestPrivateKeyJWT(t *testing.T) {
	tried := 0
	for _, kind := range []string{"RS256", "ES256", "ES384", "ES512", "EdDSA"} {
		key := newKey(t, kind)
		parsed, err := jose.ParseSigningKey(redact.New(pemKey(t, key)))
		if err != nil {
			t.Fatal(err)
		}
		for _, algorithm := range append(jose.Algorithms(), "") {
			usual := algorithm == ""
			if usual {
				algorithm = kind
			}
			if !parsed.Permits(algorithm) || algorithm == "Ed25519" { // a name that the other library does not know
				continue
			}
			tried++
			cfg := idp.Config{Auth: idp.PrivateKeyJWT}
			if !usual {
				cfg.Assertion.Algorithm = algorithm
			}
			got := fetched(t, cfg, pemKey(t, key)+"\n", idp.Request{Scopes: []string{"read"}})
			header, claims := asserted(t, got.form.Get("client_assertion"), key.Public(), algorithm)
			if diff := cmp.Diff(map[string]any{"alg": algorithm, "typ": "client-authentication+jwt", "kid": parsed.Thumbprint()}, header); diff != "" {
				t.Error(diff)
			}
			aud, _ := claims["aud"].(string)
			if diff := cmp.Diff(jwt.MapClaims{"iss": clientID, "sub": clientID}, timed(t, claims, "aud")); diff != "" || !strings.HasSuffix(aud, "/token") {
				t.Errorf("aud %v, %s", aud, diff)
			}
			want := url.Values{"grant_type": {"client_credentials"}, "client_id": {clientID}, "scope": {"read"}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}}
			if diff := cmp.Diff(want, without(got.form, "client_assertion")); diff != "" || got.header.Get("Authorization") != "" {
				t.Error(diff)
			}
		}
	}
	if tried != 6+3+1+5 {
		t.Errorf("%d were tried", tried)
	}
}

func TestSecretJWT(t *testing.T) {
	got := fetched(t, idp.Config{Auth: idp.SecretJWT, Assertion: idp.Assertion{Type: idp.TypeJWT, Audience: "urn:idp"}}, longSecret, idp.Request{})
	header, claims := asserted(t, got.form.Get("client_assertion"), []byte(longSecret), "HS256")
	if diff := cmp.Diff(map[string]any{"alg": "HS256", "typ": "JWT"}, header); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(jwt.MapClaims{"iss": clientID, "sub": clientID, "aud": "urn:idp"}, timed(t, claims)); diff != "" {
		t.Error(diff)
	}
	if strings.Contains(got.form.Encode(), "canary") {
		t.Error("the secret was sent")
	}
}

// TestEachAttemptHasItsOwnAssertion: IdPs take one once.
func TestEachAttemptHasItsOwnAssertion(t *testing.T) {
	for name, cfg := range map[string]idp.Config{
		"client assertion": {Auth: idp.PrivateKeyJWT},
		"grant assertion":  {Grant: idp.JWTBearer},
		"by a secret":      {Auth: idp.SecretJWT},
	} {
		with := pemKey(t, newKey(t, "ES256"))
		if cfg.Auth == idp.SecretJWT {
			with = longSecret
		}
		n := 0
		var requests func() []recorded
		cfg.TokenURL, requests = idpServer(t, func(w http.ResponseWriter, r *http.Request) {
			if n++; n == 1 {
				answers(http.StatusBadGateway, "text/html", "")(w, r)
				return
			}
			grants(good)(w, r)
		})
		c := client(t, cfg)
		for range 2 {
			if _, err := c.Fetch(t.Context(), secretOf(with), idp.Request{}); err != nil {
				t.Fatal(err)
			}
		}
		seen := map[string]bool{}
		for _, r := range requests() {
			parsed, _, err := jwt.NewParser().ParseUnverified(r.form.Get("client_assertion")+r.form.Get("assertion"), jwt.MapClaims{})
			if err != nil {
				t.Fatal(err)
			}
			seen[parsed.Claims.(jwt.MapClaims)["jti"].(string)] = true
		}
		if len(seen) != 3 {
			t.Errorf("%s: %d different jti in 3 requests", name, len(seen))
		}
	}
}

// published is an issuer that publishes a token and an introspection endpoint, and
// notes what it is asked there.
func published(t *testing.T, answer string) (issuer *discovery.Issuer, requests func() []recorded) {
	t.Helper()
	var base string
	endpoint, requests := idpServer(t, grants(answer))
	document := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		grants(`{"issuer":"`+base+`","token_endpoint":"`+endpoint+`","introspection_endpoint":"`+endpoint+`/introspect"}`)(w, r)
	}))
	t.Cleanup(document.Close)
	base = document.URL
	return discovery.New(discovery.Config{Issuer: base}), requests
}

func TestAudienceOfAssertions(t *testing.T) {
	key := newKey(t, "ES256")
	for audience, want := range map[string]func(issuer, token string) string{
		"":               func(issuer, _ string) string { return issuer },
		"issuer":         func(issuer, _ string) string { return issuer },
		"token_endpoint": func(_, token string) string { return token },
		"urn:idp":        func(_, _ string) string { return "urn:idp" },
	} {
		for _, grant := range []string{idp.ClientCredentials, idp.JWTBearer} {
			issuer, requests := published(t, good)
			cfg := idp.Config{Issuer: issuer, Grant: grant, Assertion: idp.Assertion{Audience: audience}}
			if grant == idp.ClientCredentials {
				cfg.Auth = idp.PrivateKeyJWT
			}
			if _, err := client(t, cfg).Fetch(t.Context(), secretOf(pemKey(t, key)), idp.Request{}); err != nil {
				t.Fatal(err)
			}
			metadata, err := issuer.Metadata(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			form := requests()[0].form
			_, claims := asserted(t, form.Get("client_assertion")+form.Get("assertion"), key.Public(), "ES256")
			if endpoint, err := metadata.TokenEndpoint.URL(); err != nil || claims["aud"] != want(issuer.URL(), endpoint) {
				t.Errorf("%q with %s: %v", audience, grant, claims["aud"])
			}
		}
	}
}

func TestIntrospectionAuthenticatesInTheSameWay(t *testing.T) {
	key := newKey(t, "ES256")
	file := write(t, filepath.Join(t.TempDir(), "assertion"), jwtOf(`{"sub":"x"}`))
	const inactive = `{"active":false}`
	for auth, with := range map[idp.AuthMethod]string{
		idp.SecretBasic: longSecret, idp.SecretPost: longSecret, idp.SecretJWT: longSecret, idp.PrivateKeyJWT: pemKey(t, key), idp.FederatedJWT: "", idp.None: "",
	} {
		for _, audience := range []string{"issuer", "token_endpoint"} {
			issuer, requests := published(t, inactive)
			c := client(t, idp.Config{Issuer: issuer, Auth: auth, AssertionFile: file, Assertion: idp.Assertion{Audience: audience}})
			if _, err := c.Introspect(t.Context(), secretOf(with), redact.New("presented")); err != nil {
				t.Fatalf("%s: %v", auth, err)
			}
			got := requests()[0]
			form := got.form
			switch auth {
			case idp.SecretBasic:
				if !strings.HasPrefix(got.header.Get("Authorization"), "Basic ") {
					t.Error("no Basic")
				}
			case idp.SecretPost:
				if form.Get("client_secret") != longSecret {
					t.Error("no secret")
				}
			case idp.PrivateKeyJWT:
				metadata, err := issuer.Metadata(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				// The token endpoint's URL names the authorization server, also where
				// another endpoint of it is asked.
				endpoint, err := metadata.TokenEndpoint.URL()
				if err != nil {
					t.Fatal(err)
				}
				want := map[string]string{"issuer": issuer.URL(), "token_endpoint": endpoint}[audience]
				if _, claims := asserted(t, form.Get("client_assertion"), key.Public(), "ES256"); claims["aud"] != want {
					t.Errorf("aud %v", claims["aud"])
				}
			case idp.SecretJWT:
				asserted(t, form.Get("client_assertion"), []byte(longSecret), "HS256")
			case idp.FederatedJWT:
				if form.Get("client_assertion") != jwtOf(`{"sub":"x"}`) {
					t.Error("no assertion")
				}
			}
			if auth != idp.SecretBasic && form.Get("client_id") != clientID || form.Get("token") != "presented" {
				t.Errorf("%s: %v", auth, form)
			}
		}
	}
}

func TestJWTBearerGrant(t *testing.T) {
	key := newKey(t, "RS256")
	got := fetched(t, idp.Config{Grant: idp.JWTBearer, Assertion: idp.Assertion{Subject: "user@example.com"}}, pemKey(t, key), idp.Request{Scopes: []string{"read", "write"}})
	header, claims := asserted(t, got.form.Get("assertion"), key.Public(), "RS256")
	if header["typ"] != "JWT" {
		t.Errorf("header %v", header)
	}
	if _, ok := claims["nbf"]; ok {
		t.Error("an nbf that Google does not document")
	}
	want := jwt.MapClaims{"iss": clientID, "sub": "user@example.com", "scope": "read write"}
	if diff := cmp.Diff(want, timed(t, claims, "aud")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(url.Values{"grant_type": {idp.JWTBearer}}, without(got.form, "assertion")); diff != "" || got.header.Get("Authorization") != "" {
		t.Error(diff)
	}
}

// With the jwt-bearer grant the assertion is the credential, and IdPs say
// invalid_grant of it.
func TestRefusedAssertionIsARefusedCredential(t *testing.T) {
	key := pemKey(t, newKey(t, "ES256"))
	refuse := answers(http.StatusBadRequest, jsonType, `{"error":"invalid_grant","error_description":"Invalid JWT Signature."}`)
	for grant, class := range map[string]idp.Class{idp.JWTBearer: idp.CredentialRefused, "another": idp.RequestRefused} {
		tokenURL, _ := idpServer(t, refuse)
		cfg := idp.Config{TokenURL: tokenURL, Grant: grant}
		if grant != idp.JWTBearer {
			cfg.Auth = idp.PrivateKeyJWT
		}
		_, err := client(t, cfg).Fetch(t.Context(), secretOf(key), idp.Request{})
		isFault(t, err, class, "invalid_grant")
	}
}

func TestHintsOfRefusedCredentials(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "assertion"), jwtOf(`{}`))
	for auth, says := range map[idp.AuthMethod]string{
		idp.PrivateKeyJWT: "public part of the key", idp.SecretJWT: "assertion.audience", idp.FederatedJWT: "subject and audience of the assertion in " + file, idp.SecretBasic: "invalid_client",
	} {
		with := longSecret
		if auth == idp.PrivateKeyJWT {
			with = pemKey(t, newKey(t, "ES256"))
		}
		tokenURL, _ := idpServer(t, answers(http.StatusUnauthorized, jsonType, `{"error":"invalid_client"}`))
		_, err := client(t, idp.Config{TokenURL: tokenURL, Auth: auth, AssertionFile: file}).Fetch(t.Context(), secretOf(with), idp.Request{})
		isFault(t, err, idp.CredentialRefused, says)
	}
}

func TestAssertionFromAFile(t *testing.T) {
	for auth, assertionType := range map[idp.AuthMethod]string{
		idp.FederatedJWT: "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", idp.SpiffeJWT: "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe",
	} {
		path := write(t, filepath.Join(t.TempDir(), "token"), jwtOf(`{"n":1}`)+"\n")
		tokenURL, requests := idpServer(t, grants(good))
		c := client(t, idp.Config{TokenURL: tokenURL, Auth: auth, AssertionFile: path})
		if err := c.CheckSecret(redact.New("")); err != nil {
			t.Errorf("%s: %v", auth, err)
		}
		for _, text := range []string{jwtOf(`{"n":1}`), jwtOf(`{"n":2}`)} {
			write(t, path, text+"\n")
			if _, err := c.Fetch(t.Context(), c.Credential(), idp.Request{}); err != nil {
				t.Fatal(err)
			}
			want := url.Values{"grant_type": {"client_credentials"}, "client_id": {clientID}, "client_assertion": {text}, "client_assertion_type": {assertionType}}
			if diff := cmp.Diff(want, requests()[0].form); diff != "" {
				t.Errorf("%s: %s", auth, diff)
			}
		}
	}
}

func TestBadAssertionFileIsAnError(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "token")
	tokenURL, requests := idpServer(t, grants(good))
	c := client(t, idp.Config{TokenURL: tokenURL, Auth: idp.FederatedJWT, AssertionFile: path})
	fetch := func() error {
		_, err := c.Fetch(t.Context(), c.Credential(), idp.Request{})
		return err
	}
	isFault(t, fetch(), idp.Misconfigured, "assertion.file "+path+" cannot be read: no such file")
	for text, says := range map[string]string{
		"":                          "is empty",
		" \r\n":                     "is empty",
		"canary":                    "does not contain a JWT",
		"canary.canary":             "does not contain a JWT",
		"a.b c.d":                   "does not contain a JWT",
		`{"a":"a.b.c"}`:             "does not contain a JWT",
		jwtOf(`{}`) + jwtOf(`{}`):   "does not contain a JWT",
		strings.Repeat("x", 17<<10): "is larger than 16384 bytes",
		jwtOf(`{"exp":1000000000}`): "expired",
		jwtOf(`{"exp":-1e300}`):     "expired",
	} {
		write(t, path, text)
		err := fetch()
		isFault(t, err, idp.Misconfigured, says)
		if strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), ".sig") {
			t.Errorf("quoted: %v", err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	isFault(t, fetch(), idp.Misconfigured, "cannot be read: is a directory")
	if n := len(requests()); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestNone(t *testing.T) {
	got := fetched(t, idp.Config{Auth: idp.None}, "canary", idp.Request{})
	if diff := cmp.Diff(url.Values{"grant_type": {"client_credentials"}, "client_id": {clientID}}, got.form); diff != "" || got.header.Get("Authorization") != "" {
		t.Error(diff)
	}
}

func TestBoundTokensAreRefused(t *testing.T) {
	for name, body := range map[string]string{
		"bound to a certificate": `{"access_token":"` + jwtOf(`{"exp":4102444800,"cnf":{"x5t#S256":"abc"}}`) + `","token_type":"Bearer","expires_in":60}`,
		"bound to a key":         `{"access_token":"` + jwtOf(`{"cnf":{"jkt":"abc"}}`) + `","token_type":"Bearer","expires_in":60}`,
		"said in the answer":     `{"access_token":"opaque","token_type":"Bearer","cnf":{"kid":"abc"}}`,
	} {
		fault := refused(t, grants(body), idp.Misconfigured, "bound to a certificate or a key (cnf)")
		if fault.Status != http.StatusOK {
			t.Errorf("%s: %+v", name, fault)
		}
	}
	refused(t, grants(`{"access_token":"x","token_type":"DPoP"}`), idp.Misconfigured, "bound to a key (DPoP)")
	for _, code := range []string{"use_dpop_nonce", "invalid_dpop_proof"} {
		refused(t, answers(http.StatusBadRequest, jsonType, `{"error":"`+code+`"}`, "DPoP-Nonce", "n"), idp.Misconfigured, "requires a proof of possession (DPoP)")
	}
	granted(t, idp.Config{}, `{"access_token":"`+jwtOf(`{"cnf":null}`)+`","token_type":"Bearer","expires_in":60}`)
}
