package edge

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
	"crypto/x509/pkix"
	"encoding/base64"
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

	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
)

func TestIdP_clientAuthentication(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	token := func(basic *url.Userinfo, more url.Values) harness.IdPAnswer {
		form := harness.Grant(harness.RS256)
		maps.Copy(form, more)
		return idp.Post(t, "/token", basic, form)
	}
	secret := func(id string) string { return idp.Clients[id].Secret }
	for _, tt := range []struct {
		name   string
		basic  *url.Userinfo
		form   url.Values
		status int
	}{
		{"basic", idp.Basic("basic"), nil, 200},
		{"basic, odd id", idp.Basic("odd:%+/=& id"), nil, 200},
		{"basic, not form-urlencoded", url.UserPassword("basic", secret("basic")), nil, 400},
		{"basic, wrong secret", url.UserPassword("basic", "wrong"), nil, 401},
		{"post", nil, url.Values{"client_id": {"post"}, "client_secret": {secret("post")}}, 200},
		{"post, wrong secret", nil, url.Values{"client_id": {"post"}, "client_secret": {"wrong"}}, 401},
		{"both", idp.Basic("basic"), url.Values{"client_id": {"basic"}, "client_secret": {secret("basic")}}, 400},
		{"unknown resource", idp.Basic("basic"), url.Values{"resource": {"https://other.example.com"}}, 400},
		{"two resources", idp.Basic("basic"), url.Values{"resource": {harness.RS256, harness.ES256}}, 400},
	} {
		if got := token(tt.basic, tt.form); got.Status != tt.status || (got.AccessToken != "") != (tt.status == 200) {
			t.Errorf("%s: %d %s, want %d", tt.name, got.Status, got.Error, tt.status)
		}
	}
	for _, id := range []string{"secret-jwt", "key-rs256", "key-es256", "key-eddsa"} {
		assertion := url.Values{
			"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
			"client_assertion":      {assertionOf(t, idp, id)},
		}
		if got := token(nil, assertion); got.Status != http.StatusOK {
			t.Errorf("%s: %d %s", id, got.Status, got.Error)
		}
		if got := token(nil, assertion); got.Status != http.StatusUnauthorized {
			t.Errorf("%s, replayed: %d %s", id, got.Status, got.Error)
		}
	}
	if auth := idp.Requests(t).Auth; auth["basic"] < 4 || auth["post"] != 2 || auth["assertion"] != 8 {
		t.Errorf("counted: %v", auth)
	}
}

// assertion is how a client authenticates by RFC 7523.
func assertionOf(t *testing.T, p *harness.OIDCProvider, id string) string {
	t.Helper()
	method, key := jwt.SigningMethod(jwt.SigningMethodHS256), any([]byte(p.Clients[id].Secret))
	if jwk := p.Clients[id].Key; jwk != nil {
		method, key = jwt.GetSigningMethod(jwk["alg"]), privateKey(t, jwk)
	}
	signed, err := jwt.NewWithClaims(method, jwt.MapClaims{
		"iss": id, "sub": id, "aud": p.Issuer, "jti": rand.Text(), "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
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

func TestIdP_tokensByResource(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	for resource, want := range map[string]struct {
		algorithm string
		audience  any
		lifetime  int
	}{
		harness.RS256:  {"RS256", harness.RS256, 3600},
		harness.ES256:  {"ES256", harness.ES256, 3600},
		harness.EdDSA:  {"EdDSA", harness.EdDSA, 3600},
		harness.Array:  {"RS256", []any{harness.Array, "https://other.example.com"}, 3600},
		harness.Short:  {"ES256", harness.Short, 5},
		harness.Opaque: {"", nil, 3600},
		"":             {"", nil, 3600},
	} {
		got := idp.Post(t, "/token", idp.Basic("basic"), harness.Grant(resource))
		if got.Status != http.StatusOK || got.ExpiresIn != want.lifetime {
			t.Errorf("%s: %d %s, expires_in %d", resource, got.Status, got.Error, got.ExpiresIn)
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

func TestIdP_opaqueTokens(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	token := url.Values{"token": {idp.Mint(t, harness.Opaque)}}
	if got := idp.Post(t, "/token/introspection", idp.Basic("basic"), token); !got.Active || got.ClientID != "basic" {
		t.Errorf("introspection: %d, active %v, client %q", got.Status, got.Active, got.ClientID)
	}
	if got := idp.Post(t, "/token/revocation", idp.Basic("basic"), token); got.Status != http.StatusOK {
		t.Errorf("revocation: %d %s", got.Status, got.Error)
	}
	if got := idp.Post(t, "/token/introspection", idp.Basic("basic"), token); got.Status != http.StatusOK || got.Active {
		t.Errorf("introspection when revoked: %d, active %v", got.Status, got.Active)
	}
}

// published is the ids of the keys that the IdP publishes.
func publishedBy(t *testing.T, p *harness.OIDCProvider) map[any]bool {
	t.Helper()
	var set struct {
		Keys []map[string]any `json:"keys"`
	}
	p.GetJSON(t, "/jwks", &set)
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

func TestIdP_keysRotate(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	first := keyID(t, idp.Mint(t, harness.ES256))
	if keys := publishedBy(t, idp); len(keys) != 3 || !keys[first] {
		t.Errorf("at the start: %v", keys)
	}
	idp.RotateKeys(t, true)
	second := keyID(t, idp.Mint(t, harness.ES256))
	if keys := publishedBy(t, idp); len(keys) != 6 || !keys[first] || !keys[second] || first == second {
		t.Errorf("rotated, old kept: %v", keys)
	}
	idp.Control(t, "rotate", map[string]any{"keep": false, "alg": "ES256"})
	third := keyID(t, idp.Mint(t, harness.ES256))
	if keys := publishedBy(t, idp); len(keys) != 5 || keys[first] || keys[second] || !keys[third] {
		t.Errorf("one algorithm rotated, old withdrawn: %v", keys)
	}
	before := publishedBy(t, idp)
	idp.Stop(t)
	idp.Start(t)
	if diff := cmp.Diff(before, publishedBy(t, idp)); diff != "" || keyID(t, idp.Mint(t, harness.ES256)) != third {
		t.Errorf("after a restart: %s", diff)
	}
}

func TestIdP_faults(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	ask := func() harness.IdPAnswer {
		return idp.Post(t, "/token", idp.Basic("basic"), harness.Grant(harness.ES256))
	}

	idp.SetLifetime(t, 90*time.Second)
	if got := ask(); got.ExpiresIn != 90 {
		t.Errorf("lifetime: %d", got.ExpiresIn)
	}
	idp.SetDelay(t, 300*time.Millisecond)
	begin := time.Now()
	if got := ask(); got.Status != http.StatusOK || time.Since(begin) < 300*time.Millisecond {
		t.Errorf("delayed: %d after %v", got.Status, time.Since(begin))
	}
	idp.FailNext(t, 1, http.StatusTooManyRequests, "7")
	if got := ask(); got.Status != http.StatusTooManyRequests || got.Header.Get("Retry-After") != "7" || got.Error != "temporarily_unavailable" {
		t.Errorf("failing: %d %s %v", got.Status, got.Error, got.Header)
	}
	idp.FailNextJWKS(t, 1, http.StatusServiceUnavailable)
	if keys := publishedBy(t, idp); len(keys) != 0 {
		t.Errorf("failing JWKS: %v", keys)
	}
	if got, keys := ask(), publishedBy(t, idp); got.Status != http.StatusOK || len(keys) != 3 {
		t.Errorf("after the failures: %d %s, %d keys", got.Status, got.Error, len(keys))
	}
	if got := idp.Requests(t).Paths; got["/token"] != 4 || got["/jwks"] != 2 {
		t.Errorf("counted: %v", got)
	}
	idp.SetDelay(t, time.Hour)
	idp.Reset(t)
	if got := ask(); got.Status != http.StatusOK || got.ExpiresIn != 3600 || idp.TokenRequests(t) != 1 {
		t.Errorf("after a reset: %d, expires_in %d, %d requests", got.Status, got.ExpiresIn, idp.TokenRequests(t))
	}
}

func TestIdP_tls(t *testing.T) {
	t.Parallel()
	harness.Need(t, "node")
	harness.Need(t, "oidc-provider")
	certificate, key := selfSigned(t)
	roots := x509.NewCertPool()
	if data, err := os.ReadFile(certificate); err != nil || !roots.AppendCertsFromPEM(data) {
		t.Fatalf("the certificate: %v", err)
	}
	address := harness.FreeAddress(t)
	_, port, _ := net.SplitHostPort(address)
	state := filepath.Join(t.TempDir(), "state.json")
	idp := &harness.OIDCProvider{
		Issuer: "https://" + address,
		State:  state,
		Env:    []string{"PORT=" + port, "STATE=" + state, "LIFETIME=120", "TLS_CERT=" + certificate, "TLS_KEY=" + key},
		Client: &http.Client{
			Timeout:   harness.Patience,
			Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}},
		},
	}
	idp.Start(t)
	claims := jwt.MapClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(idp.Mint(t, harness.RS256), claims); err != nil || claims["iss"] != idp.Issuer {
		t.Errorf("iss %v, %v", claims["iss"], err)
	}
	if life := claims["exp"].(float64) - claims["iat"].(float64); life != 120 {
		t.Errorf("LIFETIME=120 gives %v", life)
	}
}

// selfSigned writes a certificate for 127.0.0.1 and its key.
func selfSigned(t *testing.T) (certificate, key string) {
	t.Helper()
	pair, err := devca.SelfSigned(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "self"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		t.Fatal(err)
	}
	certificate, key, err = pair.Write(t.TempDir(), "self")
	if err != nil {
		t.Fatal(err)
	}
	return certificate, key
}
