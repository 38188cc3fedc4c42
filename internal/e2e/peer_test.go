package e2e_test

// These tests hold the IdP itself to what the others rely on.

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
)

func TestIdPAuthenticatesClientsInEveryWay(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	token := func(basic *url.Userinfo, more url.Values) idpAnswer {
		form := grant(rs256)
		maps.Copy(form, more)
		return idp.post(t, "/token", basic, form)
	}
	secret := func(id string) string { return idp.clients[id].Secret }
	for _, tt := range []struct {
		name   string
		basic  *url.Userinfo
		form   url.Values
		status int
	}{
		{"basic", idp.basic("basic"), nil, 200},
		{"basic, odd id", idp.basic("odd:%+/=& id"), nil, 200},
		{"basic, not form-urlencoded", url.UserPassword("basic", secret("basic")), nil, 400},
		{"basic, wrong secret", url.UserPassword("basic", "wrong"), nil, 401},
		{"post", nil, url.Values{"client_id": {"post"}, "client_secret": {secret("post")}}, 200},
		{"post, wrong secret", nil, url.Values{"client_id": {"post"}, "client_secret": {"wrong"}}, 401},
		{"both", idp.basic("basic"), url.Values{"client_id": {"basic"}, "client_secret": {secret("basic")}}, 400},
		{"unknown resource", idp.basic("basic"), url.Values{"resource": {"https://other.example.com"}}, 400},
		{"two resources", idp.basic("basic"), url.Values{"resource": {rs256, es256}}, 400},
	} {
		if got := token(tt.basic, tt.form); got.status != tt.status || (got.AccessToken != "") != (tt.status == 200) {
			t.Errorf("%s: %d %s, want %d", tt.name, got.status, got.Error, tt.status)
		}
	}
	for _, id := range []string{"secret-jwt", "key-rs256", "key-es256", "key-eddsa"} {
		assertion := url.Values{
			"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
			"client_assertion":      {idp.assertion(t, id)},
		}
		if got := token(nil, assertion); got.status != http.StatusOK {
			t.Errorf("%s: %d %s", id, got.status, got.Error)
		}
		if got := token(nil, assertion); got.status != http.StatusUnauthorized {
			t.Errorf("%s, replayed: %d %s", id, got.status, got.Error)
		}
	}
	if auth := idp.requests(t).Auth; auth["basic"] < 4 || auth["post"] != 2 || auth["assertion"] != 8 {
		t.Errorf("counted: %v", auth)
	}
}

// assertion is how a client authenticates by RFC 7523.
func (p *oidcProvider) assertion(t *testing.T, id string) string {
	t.Helper()
	method, key := jwt.SigningMethod(jwt.SigningMethodHS256), any([]byte(p.clients[id].Secret))
	if jwk := p.clients[id].Key; jwk != nil {
		method, key = jwt.GetSigningMethod(jwk["alg"]), privateKey(t, jwk)
	}
	signed, err := jwt.NewWithClaims(method, jwt.MapClaims{
		"iss": id, "sub": id, "aud": p.issuer, "jti": rand.Text(), "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
	}).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func privateKey(t *testing.T, jwk map[string]string) crypto.PrivateKey {
	t.Helper()
	member := func(name string) []byte {
		data, err := base64.RawURLEncoding.DecodeString(jwk[name])
		if err != nil || len(data) == 0 {
			t.Fatalf("member %s of a private key: %v", name, err)
		}
		return data
	}
	number := func(name string) *big.Int { return new(big.Int).SetBytes(member(name)) }
	switch jwk["kty"] {
	case "RSA":
		key := &rsa.PrivateKey{D: number("d"), Primes: []*big.Int{number("p"), number("q")}}
		key.N, key.E = number("n"), int(number("e").Int64())
		key.Precompute()
		return key
	case "EC":
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), member("d"))
		if err != nil {
			t.Fatal(err)
		}
		return key
	default:
		return ed25519.NewKeyFromSeed(member("d"))
	}
}

func TestIdPIssuesTokensByResource(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	for resource, want := range map[string]struct {
		algorithm string
		audience  any
		lifetime  int
	}{
		rs256:  {"RS256", rs256, 3600},
		es256:  {"ES256", es256, 3600},
		eddsa:  {"EdDSA", eddsa, 3600},
		array:  {"RS256", []any{array, "https://other.example.com"}, 3600},
		short:  {"ES256", short, 5},
		opaque: {"", nil, 3600},
		"":     {"", nil, 3600},
	} {
		got := idp.post(t, "/token", idp.basic("basic"), grant(resource))
		if got.status != http.StatusOK || got.ExpiresIn != want.lifetime {
			t.Errorf("%s: %d %s, expires_in %d", resource, got.status, got.Error, got.ExpiresIn)
		}
		if isJWT := strings.Count(got.AccessToken, ".") == 2; isJWT != (want.algorithm != "") {
			t.Errorf("%s: JWT is %v", resource, isJWT)
		}
		if want.algorithm == "" {
			continue
		}
		claims := jwt.MapClaims{}
		token, _, err := jwt.NewParser().ParseUnverified(got.AccessToken, claims)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]any{want.algorithm, "at+jwt", want.audience}, []any{token.Header["alg"], token.Header["typ"], claims["aud"]}); diff != "" {
			t.Errorf("%s: %s", resource, diff)
		}
	}
}

func TestIdPIntrospectsAndRevokesOpaqueTokens(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	token := url.Values{"token": {idp.mint(t, opaque)}}
	if got := idp.post(t, "/token/introspection", idp.basic("basic"), token); !got.Active || got.ClientID != "basic" {
		t.Errorf("introspection: %d, active %v, client %q", got.status, got.Active, got.ClientID)
	}
	if got := idp.post(t, "/token/revocation", idp.basic("basic"), token); got.status != http.StatusOK {
		t.Errorf("revocation: %d %s", got.status, got.Error)
	}
	if got := idp.post(t, "/token/introspection", idp.basic("basic"), token); got.status != http.StatusOK || got.Active {
		t.Errorf("introspection when revoked: %d, active %v", got.status, got.Active)
	}
}

// published is the ids of the keys that the IdP publishes.
func (p *oidcProvider) published(t *testing.T) map[any]bool {
	t.Helper()
	var set struct {
		Keys []map[string]any `json:"keys"`
	}
	p.getJSON(t, "/jwks", &set)
	ids := map[any]bool{}
	for _, key := range set.Keys {
		ids[key["kid"]] = true
	}
	return ids
}

func keyID(t *testing.T, token string) any {
	t.Helper()
	parsed, _, err := jwt.NewParser().ParseUnverified(token, jwt.MapClaims{})
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Header["kid"]
}

func TestIdPKeysRotateAndOutliveARestart(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	first := keyID(t, idp.mint(t, es256))
	if keys := idp.published(t); len(keys) != 3 || !keys[first] {
		t.Errorf("at the start: %v", keys)
	}
	idp.rotateKeys(t, true)
	second := keyID(t, idp.mint(t, es256))
	if keys := idp.published(t); len(keys) != 6 || !keys[first] || !keys[second] || first == second {
		t.Errorf("rotated, old kept: %v", keys)
	}
	idp.control(t, "rotate", map[string]any{"keep": false, "alg": "ES256"})
	third := keyID(t, idp.mint(t, es256))
	if keys := idp.published(t); len(keys) != 5 || keys[first] || keys[second] || !keys[third] {
		t.Errorf("one algorithm rotated, old withdrawn: %v", keys)
	}
	before := idp.published(t)
	idp.stop(t)
	idp.start(t)
	if diff := cmp.Diff(before, idp.published(t)); diff != "" || keyID(t, idp.mint(t, es256)) != third {
		t.Errorf("after a restart: %s", diff)
	}
}

func TestIdPMisbehavesOnDemand(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	ask := func() idpAnswer { return idp.post(t, "/token", idp.basic("basic"), grant(es256)) }

	idp.setLifetime(t, 90*time.Second)
	if got := ask(); got.ExpiresIn != 90 {
		t.Errorf("lifetime: %d", got.ExpiresIn)
	}
	idp.setDelay(t, 300*time.Millisecond)
	begin := time.Now()
	if got := ask(); got.status != http.StatusOK || time.Since(begin) < 300*time.Millisecond {
		t.Errorf("delayed: %d after %v", got.status, time.Since(begin))
	}
	idp.failNext(t, 1, http.StatusTooManyRequests, "7")
	if got := ask(); got.status != http.StatusTooManyRequests || got.header.Get("Retry-After") != "7" || got.Error != "temporarily_unavailable" {
		t.Errorf("failing: %d %s %v", got.status, got.Error, got.header)
	}
	idp.failNextJWKS(t, 1, http.StatusServiceUnavailable)
	if keys := idp.published(t); len(keys) != 0 {
		t.Errorf("failing JWKS: %v", keys)
	}
	if got, keys := ask(), idp.published(t); got.status != http.StatusOK || len(keys) != 3 {
		t.Errorf("after the failures: %d %s, %d keys", got.status, got.Error, len(keys))
	}
	if got := idp.requests(t).Paths; got["/token"] != 4 || got["/jwks"] != 2 {
		t.Errorf("counted: %v", got)
	}
	idp.setDelay(t, time.Hour)
	idp.reset(t)
	if got := ask(); got.status != http.StatusOK || got.ExpiresIn != 3600 || idp.tokenRequests(t) != 1 {
		t.Errorf("after a reset: %d, expires_in %d, %d requests", got.status, got.ExpiresIn, idp.tokenRequests(t))
	}
}

func TestIdPServesTLS(t *testing.T) {
	t.Parallel()
	need(t, "node")
	need(t, "oidc-provider")
	certificate, key := selfSigned(t)
	roots := x509.NewCertPool()
	if data, err := os.ReadFile(certificate); err != nil || !roots.AppendCertsFromPEM(data) {
		t.Fatalf("the certificate: %v", err)
	}
	address := freeAddress(t)
	_, port, _ := net.SplitHostPort(address)
	state := filepath.Join(t.TempDir(), "state.json")
	idp := &oidcProvider{
		issuer: "https://" + address,
		state:  state,
		env:    []string{"PORT=" + port, "STATE=" + state, "LIFETIME=120", "TLS_CERT=" + certificate, "TLS_KEY=" + key},
		client: &http.Client{
			Timeout:   patience,
			Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}},
		},
	}
	idp.start(t)
	claims := jwt.MapClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(idp.mint(t, rs256), claims); err != nil || claims["iss"] != idp.issuer {
		t.Errorf("iss %v, %v", claims["iss"], err)
	}
	if life := claims["exp"].(float64) - claims["iat"].(float64); life != 120 {
		t.Errorf("LIFETIME=120 gives %v", life)
	}
}

// selfSigned writes a certificate for 127.0.0.1 and its key.
func selfSigned(t *testing.T) (certificate, key string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, "tls.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		writeFile(t, "tls.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
}
