package devidp_test

import (
	"crypto/rand"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
)

const (
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	jwtBearer     = "urn:ietf:params:oauth:grant-type:jwt-bearer"
)

// asserting has clients that authenticate by assertions.
func asserting(t *testing.T) (cfg devidp.Config, key, other *josetest.Signer) {
	t.Helper()
	key, other = josetest.New(t, "ES256", "k1"), josetest.New(t, "EdDSA", "k2")
	secrets := []redact.String{redact.New(secret)}
	keys := josetest.Set(key.JWK(), other.JWK())
	return devidp.Config{
		Algorithm: "EdDSA",
		Clients: []devidp.Client{
			{ID: "key", Keys: keys, Auth: devidp.AuthPrivateKeyJWT, Scopes: []string{"read"}},
			{ID: "hmac", Secrets: secrets, Auth: devidp.AuthSecretJWT},
			{ID: "basic", Secrets: secrets, Keys: keys},
			{ID: "public", Auth: devidp.AuthNone},
			{ID: "bearer", Keys: keys, Auth: devidp.AuthNone, Grant: jwtBearer, Scopes: []string{"read", "write"}},
			{ID: "custom", Secrets: secrets, Grant: "account_credentials", Params: map[string]string{"account_id": "42"}},
		},
	}, key, other
}

// claimsFor are good claims; a nil one of more leaves a claim out.
func claimsFor(idp *devidp.Server, client string, more josetest.JSON) josetest.JSON {
	now := time.Now().Unix()
	claims := josetest.JSON{"iss": client, "sub": client, "aud": idp.Issuer(), "iat": now - 1, "exp": now + 60, "jti": rand.Text()}
	maps.Copy(claims, more)
	maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
	return claims
}

func asserted(more url.Values, assertion string) string {
	form := url.Values{"grant_type": {"client_credentials"}, "client_assertion_type": {assertionType}, "client_assertion": {assertion}}
	maps.Copy(form, more)
	return form.Encode()
}

func TestAssertionsAuthenticate(t *testing.T) {
	cfg, key, other := asserting(t)
	overBoth(t, cfg, func(t *testing.T, idp *devidp.Server, client *http.Client) {
		header := key.Header(josetest.JSON{"typ": "client-authentication+jwt"})
		for name, form := range map[string]string{
			"a key":               asserted(nil, key.Token(header, claimsFor(idp, "key", nil))),
			"another key":         asserted(nil, other.Token(other.Header(josetest.JSON{"typ": "JWT"}), claimsFor(idp, "key", nil))),
			"without kid and typ": asserted(nil, key.Token(key.Header(josetest.JSON{"kid": nil, "typ": nil}), claimsFor(idp, "key", nil))),
			"for the endpoint":    asserted(url.Values{"client_id": {"key"}}, key.Token(header, claimsFor(idp, "key", josetest.JSON{"aud": idp.TokenEndpoint()}))),
			"a secret":            asserted(nil, josetest.HMAC([]byte(secret), josetest.JSON{"alg": "HS256"}, claimsFor(idp, "hmac", nil))),
			"nothing":             "grant_type=client_credentials&client_id=public",
			"a grant":             url.Values{"grant_type": {jwtBearer}, "assertion": {key.Token(key.Header(josetest.JSON{"typ": "JWT"}), claimsFor(idp, "bearer", josetest.JSON{"scope": "write"}))}}.Encode(),
			"a grant by its name": "grant_type=account_credentials&account_id=42&client_id=custom&client_secret=" + secret,
		} {
			if got := send(t, client, tokenRequest(t, idp, form)); got.status != http.StatusOK {
				t.Errorf("%s: %d %v", name, got.status, got.body)
			} else if name == "a grant" && got.body["scope"] != "write" {
				t.Errorf("%s: %v", name, got.body)
			}
		}
		ways := map[string]int{}
		for _, request := range idp.TokenRequests() {
			ways[request.ClientID+" by "+request.Auth]++
			if !request.OK {
				t.Errorf("%+v", request)
			}
		}
		for _, way := range []string{"key by private_key_jwt", "hmac by secret_jwt", "public by none", "bearer by none"} {
			if ways[way] == 0 {
				t.Errorf("nobody is on record as %s: %v", way, ways)
			}
		}
	})
}

func TestBadAssertionsAreRefused(t *testing.T) {
	cfg, key, _ := asserting(t)
	stranger := josetest.New(t, "ES256", "k1")
	overBoth(t, cfg, func(t *testing.T, idp *devidp.Server, client *http.Client) {
		now := time.Now().Unix()
		good := key.Header(josetest.JSON{"typ": "JWT"})
		of := func(more josetest.JSON) string { return key.Token(good, claimsFor(idp, "key", more)) }
		replayed := of(josetest.JSON{"jti": "once"})
		if got := send(t, client, tokenRequest(t, idp, asserted(nil, replayed))); got.status != http.StatusOK {
			t.Fatalf("%v", got)
		}
		confused := josetest.HMAC(josetest.Marshal(key.JWK()), josetest.JSON{"alg": "HS256"}, claimsFor(idp, "key", nil))
		for name, form := range map[string]string{
			"replayed":               asserted(nil, replayed),
			"no JWT":                 asserted(nil, "canary"),
			"a foreign key":          asserted(nil, stranger.Token(good, claimsFor(idp, "key", nil))),
			"another kid":            asserted(nil, key.Token(key.Header(josetest.JSON{"kid": "k3", "typ": "JWT"}), claimsFor(idp, "key", nil))),
			"another typ":            asserted(nil, key.Token(key.Header(), claimsFor(idp, "key", nil))),
			"no signature":           asserted(nil, strings.TrimRight(of(nil), "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")),
			"an HMAC with the key":   asserted(nil, confused),
			"another audience":       asserted(nil, of(josetest.JSON{"aud": "https://other.example.com"})),
			"two audiences":          asserted(nil, of(josetest.JSON{"aud": []string{idp.Issuer(), idp.TokenEndpoint()}})),
			"no audience":            asserted(nil, of(josetest.JSON{"aud": nil})),
			"expired":                asserted(nil, of(josetest.JSON{"exp": now - 1})),
			"no exp":                 asserted(nil, of(josetest.JSON{"exp": nil})),
			"lives for long":         asserted(nil, of(josetest.JSON{"exp": now + 7200})),
			"from the future":        asserted(nil, of(josetest.JSON{"iat": now + 30})),
			"no iat":                 asserted(nil, of(josetest.JSON{"iat": nil})),
			"no jti":                 asserted(nil, of(josetest.JSON{"jti": nil})),
			"another iss":            asserted(nil, of(josetest.JSON{"iss": "other"})),
			"another sub":            asserted(nil, of(josetest.JSON{"sub": "basic"})),
			"another client_id":      asserted(url.Values{"client_id": {"basic"}}, of(nil)),
			"another type":           asserted(url.Values{"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:saml2-bearer"}}, of(nil)),
			"an unknown client":      asserted(nil, key.Token(good, claimsFor(idp, "nobody", nil))),
			"a client of secrets":    asserted(nil, key.Token(good, claimsFor(idp, "basic", nil))),
			"a key for an HMAC":      asserted(nil, key.Token(good, claimsFor(idp, "hmac", nil))),
			"two ways":               asserted(url.Values{"client_secret": {secret}}, of(nil)),
			"a wrong HMAC":           asserted(nil, josetest.HMAC([]byte("wrong"), josetest.JSON{"alg": "HS256"}, claimsFor(idp, "hmac", nil))),
			"nothing, but needed":    "grant_type=client_credentials&client_id=key",
			"a secret, for a key":    "grant_type=client_credentials&client_id=key&client_secret=" + secret,
			"a grant for another":    url.Values{"grant_type": {jwtBearer}, "assertion": {of(nil)}}.Encode(),
			"a grant that expired":   url.Values{"grant_type": {jwtBearer}, "assertion": {key.Token(good, claimsFor(idp, "bearer", josetest.JSON{"exp": now - 1}))}}.Encode(),
			"a grant of a stranger":  url.Values{"grant_type": {jwtBearer}, "assertion": {stranger.Token(good, claimsFor(idp, "bearer", nil))}}.Encode(),
			"a grant of other scope": url.Values{"grant_type": {jwtBearer}, "assertion": {key.Token(good, claimsFor(idp, "bearer", josetest.JSON{"scope": "admin"}))}}.Encode(),
			"a grant, scope outside": url.Values{"grant_type": {jwtBearer}, "scope": {"read"}, "assertion": {key.Token(good, claimsFor(idp, "bearer", nil))}}.Encode(),
			"a grant that is not":    url.Values{"grant_type": {jwtBearer}, "assertion": {"canary"}, "client_id": {"bearer"}}.Encode(),
			"a grant not theirs":     "grant_type=client_credentials&client_id=bearer",
			"a wrong parameter":      "grant_type=account_credentials&account_id=43&client_id=custom&client_secret=" + secret,
			"a missing parameter":    "grant_type=account_credentials&client_id=custom&client_secret=" + secret,
		} {
			got := send(t, client, tokenRequest(t, idp, form))
			if got.status != http.StatusBadRequest && got.status != http.StatusUnauthorized || got.body["error"] == nil || strings.Contains(fmt.Sprint(got.body), "canary") {
				t.Errorf("%s: %d %v", name, got.status, got.body)
			}
		}
	})
}

func TestKeysCanBeReplaced(t *testing.T) {
	cfg, key, _ := asserting(t)
	cfg.Issuer = "https://idp.example.com"
	idp := newServer(t, cfg)
	client := &http.Client{Transport: idp.RoundTripper()}
	next := josetest.New(t, "ES256", "k9")
	try := func(signer *josetest.Signer) int {
		return send(t, client, tokenRequest(t, idp, asserted(nil, signer.Token(signer.Header(josetest.JSON{"typ": "JWT"}), claimsFor(idp, "key", nil))))).status
	}
	if before, after := try(key), try(next); before != http.StatusOK || after != http.StatusUnauthorized {
		t.Errorf("before: %d, %d", before, after)
	}
	idp.SetKeys("key", josetest.Set(next.JWK()))
	if before, after := try(key), try(next); before != http.StatusUnauthorized || after != http.StatusOK {
		t.Errorf("after: %d, %d", before, after)
	}
	for name, set := range map[string]func(){
		"nobody": func() { idp.SetKeys("nobody", josetest.Set(next.JWK())) },
		"no key": func() { idp.SetKeys("key", []byte(`{"keys":[]}`)) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			set()
		}()
	}
}

// TestSecretsOfAnImitationTakeAWhile: there is a time in which neither is good.
func TestSecretsOfAnImitationTakeAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		idp := newServer(t, devidp.Config{Issuer: "https://idp.example.com/", Algorithm: "EdDSA", Imitate: "auth0", Clients: []devidp.Client{{
			ID: "any", Secrets: []redact.String{redact.New("old")}, Audiences: []string{orders},
		}}})
		client := &http.Client{Transport: idp.RoundTripper()}
		good := func(secret string) bool {
			form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"any"}, "client_secret": {secret}, "audience": {orders}}
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, idp.TokenEndpoint(), strings.NewReader(form.Encode()))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			return send(t, client, r).status == http.StatusOK
		}
		if !good("old") || good("new") {
			t.Error("before")
		}
		idp.SetSecrets("any", redact.New("new"))
		if good("old") || good("new") {
			t.Error("at once")
		}
		time.Sleep(30 * time.Second)
		if good("old") || !good("new") {
			t.Error("after 30 s")
		}
		idp.SetSecrets("any", redact.New("newer"), redact.New("new"))
		if !good("new") || good("newer") {
			t.Error("a secret that stays is good all the time")
		}
	})
}

func TestImitations(t *testing.T) {
	if got := devidp.Imitations(); len(got) != 9 {
		t.Errorf("%q", got)
	}
	if _, err := devidp.New(devidp.Config{Issuer: "https://idp.example.com", Imitate: "canary"}); err == nil {
		t.Error("anybody is imitated")
	}
}
