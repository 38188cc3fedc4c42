package devidp_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redact"
)

// keyOf finds the key of a token's kid among those published.
func keyOf(t *testing.T, idp *devidp.Server, client *http.Client) jwt.Keyfunc {
	t.Helper()
	keys, _ := get(t, client, idp.Issuer()+devidp.JWKSPath).body["keys"].([]any)
	return func(token *jwt.Token) (any, error) {
		for _, k := range keys {
			if jwk, _ := k.(map[string]any); jwk["kid"] == token.Header["kid"] {
				if jwk["alg"] != token.Method.Alg() || jwk["use"] != "sig" {
					return nil, fmt.Errorf("the key is for %v %v", jwk["use"], jwk["alg"])
				}
				return publicKey(t, jwk), nil
			}
		}
		return nil, fmt.Errorf("no key %v is published", token.Header["kid"])
	}
}

func publicKey(t *testing.T, jwk map[string]any) crypto.PublicKey {
	t.Helper()
	number := func(name string) []byte {
		data, err := base64.RawURLEncoding.DecodeString(jwk[name].(string))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	switch jwk["kty"] {
	case "RSA":
		return &rsa.PublicKey{N: new(big.Int).SetBytes(number("n")), E: int(new(big.Int).SetBytes(number("e")).Int64())}
	case "EC":
		key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, number("x")...), number("y")...))
		if err != nil {
			t.Fatal(err)
		}
		return key
	default:
		return ed25519.PublicKey(number("x"))
	}
}

func TestPublishedKeyVerifiesTokens(t *testing.T) {
	for _, algorithm := range []string{"RS256", "ES256", "EdDSA"} {
		t.Run(algorithm, func(t *testing.T) {
			cfg := config()
			cfg.Algorithm = algorithm
			overBoth(t, cfg, func(t *testing.T, idp *devidp.Server, client *http.Client) {
				got := ask(t, idp, client, "scope=read")
				if got.status != http.StatusOK || got.body["token_type"] != "Bearer" || got.body["expires_in"] != 3600.0 || got.body["scope"] != "read" {
					t.Fatalf("%d %v", got.status, got.body)
				}
				if got.header.Get("Cache-Control") != "no-store" || got.header.Get("Content-Type") != "application/json" {
					t.Errorf("header: %v", got.header)
				}
				claims := jwt.MapClaims{}
				token, err := jwt.ParseWithClaims(got.body["access_token"].(string), claims, keyOf(t, idp, client),
					jwt.WithValidMethods([]string{algorithm}), jwt.WithTimeFunc(time.Now))
				if err != nil {
					t.Fatal(err)
				}
				if token.Header["typ"] != "at+jwt" || len(token.Header) != 3 {
					t.Errorf("header: %v", token.Header)
				}
				if claims["jti"] == "" || claims["exp"].(float64)-claims["iat"].(float64) != 3600 {
					t.Errorf("claims: %v", claims)
				}
				delete(claims, "jti")
				delete(claims, "iat")
				delete(claims, "exp")
				want := jwt.MapClaims{"iss": idp.Issuer(), "sub": "any", "client_id": "any", "aud": orders, "scope": "read"}
				if diff := cmp.Diff(want, claims); diff != "" {
					t.Errorf("claims: %s", diff)
				}
			})
		})
	}
}

// claimsOf reads a token's claims without verifying it.
func claimsOf(t *testing.T, got answer) jwt.MapClaims {
	t.Helper()
	claims := jwt.MapClaims{}
	text, _ := got.body["access_token"].(string)
	if _, _, err := jwt.NewParser().ParseUnverified(text, claims); err != nil {
		t.Fatalf("%d %v: %v", got.status, got.body, err)
	}
	return claims
}

func TestRequestedValuesAreGranted(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		for _, tt := range []struct {
			more, scope string
			audience    any
		}{
			{"", "read write", orders},
			{"scope=&audience=&resource=", "read write", orders},
			{"scope=write+read+write", "read write", orders},
			{"audience=plain", "read write", "plain"},
			{"resource=" + stock, "read write", stock},
			{"resource=" + stock + "&resource=" + orders, "read write", []any{stock, orders}},
			{"resource=" + stock + "&audience=plain", "read write", []any{"plain", stock}},
			{"resource=" + stock + "&audience=" + stock, "read write", stock},
		} {
			claims := claimsOf(t, ask(t, idp, client, tt.more))
			if diff := cmp.Diff([]any{tt.scope, tt.audience}, []any{claims["scope"], claims["aud"]}); diff != "" {
				t.Errorf("%s: %s", tt.more, diff)
			}
		}
	})
}

func TestClientWithoutScopesAndAudiences(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		got := send(t, client, tokenRequest(t, idp, "grant_type=client_credentials&client_id=post&client_secret="+secret))
		claims := claimsOf(t, got)
		if _, found := claims["scope"]; found || got.body["scope"] != nil || claims["aud"] != idp.Issuer() {
			t.Errorf("%v %v", got.body, claims)
		}
	})
}

type badRequest struct {
	name, authorization, form string
	status                    int
	code                      string
}

func badRequests() []badRequest {
	const good = "grant_type=client_credentials&client_id=any&client_secret=" + secret
	basic := func(credentials string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(credentials))
	}
	return []badRequest{
		{"no grant type", "", "client_id=any&client_secret=" + secret, 400, "invalid_request"},
		{"other grant type", "", "grant_type=password&client_id=any&client_secret=" + secret, 400, "unsupported_grant_type"},
		{"repeated parameter", "", good + "&scope=read&scope=write", 400, "invalid_request"},
		{"repeated audience", "", good + "&audience=plain&audience=plain", 400, "invalid_request"},
		{"no form", "", "%zz", 400, "invalid_request"},
		{"too large", "", good + "&x=" + strings.Repeat("x", 64<<10), 400, "invalid_request"},
		{"no authentication", "", "grant_type=client_credentials&client_id=any", 401, "invalid_client"},
		{"nothing of a client", "", "grant_type=client_credentials", 401, "invalid_client"},
		{"unknown client", "", "grant_type=client_credentials&client_id=nobody&client_secret=" + secret, 401, "invalid_client"},
		{"wrong secret", "", "grant_type=client_credentials&client_id=any&client_secret=wrong", 401, "invalid_client"},
		{"both ways", basic("any:" + secret), good, 400, "invalid_request"},
		{"two clients", basic("any:" + secret), "grant_type=client_credentials&client_id=basic", 400, "invalid_request"},
		{"wrong secret, basic", basic("any:wrong"), "grant_type=client_credentials", 401, "invalid_client"},
		{"empty secret, basic", basic("any:"), "grant_type=client_credentials", 401, "invalid_client"},
		{"not encoded colon", basic("any:a:b"), "grant_type=client_credentials", 401, "invalid_client"},
		{"not encoded percent", basic("any:100%"), "grant_type=client_credentials", 401, "invalid_client"},
		{"no colon", basic("any"), "grant_type=client_credentials", 401, "invalid_client"},
		{"no base64", "Basic !", "grant_type=client_credentials", 401, "invalid_client"},
		{"bearer", "Bearer x", "grant_type=client_credentials", 401, "invalid_client"},
		{"post by a client for basic", "", "grant_type=client_credentials&client_id=basic&client_secret=" + secret, 401, "invalid_client"},
		{"basic by a client for post", basic("post:" + secret), "grant_type=client_credentials", 401, "invalid_client"},
		{"unknown scope", "", good + "&scope=read+admin", 400, "invalid_scope"},
		{"two spaces", "", good + "&scope=read++write", 400, "invalid_scope"},
		{"unknown resource", "", good + "&resource=https://other.example.com", 400, "invalid_target"},
		{"unknown audience", "", good + "&audience=other", 400, "invalid_target"},
		{"one of two unknown", "", good + "&resource=" + stock + "&resource=https://other.example.com", 400, "invalid_target"},
		{"relative resource", "", good + "&resource=plain", 400, "invalid_target"},
		{"resource with fragment", "", good + "&resource=" + url.QueryEscape(stock+"#a"), 400, "invalid_target"},
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		for _, tt := range badRequests() {
			r := tokenRequest(t, idp, tt.form)
			if tt.authorization != "" {
				r.Header.Set("Authorization", tt.authorization)
			}
			got := send(t, client, r)
			if got.status != tt.status || got.body["error"] != tt.code {
				t.Errorf("%s: %d %v, want %d %s", tt.name, got.status, got.body, tt.status, tt.code)
			}
			challenged := got.header.Get("WWW-Authenticate") != ""
			if challenged != (tt.status == http.StatusUnauthorized && tt.authorization != "") {
				t.Errorf("%s: WWW-Authenticate: %q", tt.name, got.header.Get("WWW-Authenticate"))
			}
			if got.header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: Cache-Control: %q", tt.name, got.header.Get("Cache-Control"))
			}
			if text := fmt.Sprint(got.body); strings.Contains(text, secret) || strings.Contains(text, "wrong,") {
				t.Errorf("%s: the answer repeats a secret: %s", tt.name, text)
			}
		}
		for _, request := range idp.TokenRequests() {
			if request.OK {
				t.Errorf("on record as good: %+v", request)
			}
		}
	})
}

func TestOtherMediaTypesAreRefused(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		const good = "grant_type=client_credentials&client_id=any&client_secret=" + secret
		r := tokenRequest(t, idp, good)
		r.URL.RawQuery = "scope=read"
		if got := send(t, client, r); got.status != http.StatusBadRequest || got.body["error"] != "invalid_request" {
			t.Errorf("parameters in the URL: %d %v", got.status, got.body)
		}
		r = tokenRequest(t, idp, good)
		r.Header.Set("Content-Type", "application/json")
		if got := send(t, client, r); got.status != http.StatusBadRequest || !strings.Contains(fmt.Sprint(got.body), "x-www-form-urlencoded") {
			t.Errorf("another media type: %d %v", got.status, got.body)
		}
	})
}

func TestBasicCredentialsAreFormURLEncoded(t *testing.T) {
	const id, odd = "o+d/d: %41&=", "p:%+/=& \"ü"
	cfg := config()
	cfg.Clients = []devidp.Client{
		{ID: id, Secrets: []redact.String{redact.New(odd)}},
		{ID: "colon", Secrets: []redact.String{redact.New("a:b")}},
	}
	overBoth(t, cfg, func(t *testing.T, idp *devidp.Server, client *http.Client) {
		r := tokenRequest(t, idp, "grant_type=client_credentials")
		r.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(odd))
		if got := send(t, client, r); got.status != http.StatusOK {
			t.Errorf("encoded: %d %v", got.status, got.body)
		}
		r = tokenRequest(t, idp, "grant_type=client_credentials")
		r.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(odd))
		r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), " ", "   ", 1))
		if got := send(t, client, r); got.status != http.StatusOK {
			t.Errorf("after several spaces: %d %v", got.status, got.body)
		}
		r = tokenRequest(t, idp, "grant_type=client_credentials")
		r.SetBasicAuth(id, odd)
		if got := send(t, client, r); got.status != http.StatusUnauthorized {
			t.Errorf("not encoded: %d %v", got.status, got.body)
		}
		r = tokenRequest(t, idp, "grant_type=client_credentials")
		r.SetBasicAuth("colon", "a:b")
		if got := send(t, client, r); got.status != http.StatusUnauthorized {
			t.Errorf("a bare colon: %d %v", got.status, got.body)
		}
		form := url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "client_secret": {odd}}
		if got := send(t, client, tokenRequest(t, idp, form.Encode())); got.status != http.StatusOK {
			t.Errorf("post: %d %v", got.status, got.body)
		}
		var auth []string
		for _, request := range idp.TokenRequests() {
			auth = append(auth, request.Auth)
		}
		if diff := cmp.Diff([]string{"basic", "basic", "basic", "basic", "post"}, auth); diff != "" {
			t.Error(diff)
		}
	})
}

func TestMintedTokens(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		claims := jwt.MapClaims{}
		token, err := jwt.ParseWithClaims(idp.Mint(map[string]any{"sub": "me"}).Reveal(), claims, keyOf(t, idp, client))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(jwt.MapClaims{"sub": "me"}, claims); diff != "" {
			t.Errorf("claims were added: %s", diff)
		}
		kid := token.Header["kid"]

		minted := idp.MintWith(map[string]any{"typ": nil, "alg": "none", "crit": []string{"x"}}, map[string]any{})
		token, _, err = jwt.NewParser().ParseUnverified(minted.Reveal(), jwt.MapClaims{})
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]any{"alg": "none", "kid": kid, "crit": []any{"x"}}
		if diff := cmp.Diff(want, token.Header); diff != "" {
			t.Errorf("header: %s", diff)
		}
	})
}
