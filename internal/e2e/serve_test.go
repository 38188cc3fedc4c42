package e2e_test

import (
	"crypto/ed25519"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/testkit"
)

// verdict is what "broker verify --json" prints.
type verdict struct {
	Active   bool     `json:"active"`
	Reason   string   `json:"reason"`
	Issuer   string   `json:"issuer"`
	Subject  string   `json:"subject"`
	ClientID string   `json:"client_id"`
	Audience []string `json:"audiences"`
	Scopes   []string `json:"scopes"`
}

func verdictOf(t *testing.T, res result) verdict {
	t.Helper()
	var v verdict
	if err := json.Unmarshal([]byte(res.stdout), &v); err != nil {
		t.Fatalf("not JSON: %v", res)
	}
	return v
}

func TestTokensOfEveryClientAndResourceAreHandedOutAndVerified(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	b := startBroker(t, idp.config(t))
	for name, id := range map[string]string{"basic": "basic", "odd": "odd:%+/=& id", "post": "post"} {
		for resource, algorithm := range map[string]string{rs256: "RS256", es256: "ES256", eddsa: "EdDSA", array: "RS256"} {
			got := b.get(t, name, "--resource", resource, "--scope", "read")
			left := time.Until(got.ExpiresAt)
			if got.TokenType != "Bearer" || !slices.Equal(got.Scopes, []string{"read"}) || got.Origin != "fetched" || got.Degraded ||
				left > time.Hour || left < 55*time.Minute || !got.RefreshAt.After(time.Now()) || !got.RefreshAt.Before(got.ExpiresAt) {
				got.AccessToken = ""
				t.Errorf("get of %s for %s: %+v", name, resource, got)
			}
			if token, _, err := jwt.NewParser().ParseUnverified(got.AccessToken, jwt.MapClaims{}); err != nil || token.Header["alg"] != algorithm {
				t.Errorf("get of %s for %s: a token signed otherwise (%v)", name, resource, err)
			}
			res := b.mustVerify(t, name+" for "+resource, got.AccessToken, active, "--audience", resource, "--scope", "read")
			want := verdict{Active: true, Issuer: idp.issuer, Subject: id, ClientID: id, Audience: []string{resource}, Scopes: []string{"read"}}
			if resource == array {
				want.Audience = append(want.Audience, "https://other.example.com")
			}
			if diff := cmp.Diff(want, verdictOf(t, res)); diff != "" {
				t.Errorf("verify of %s for %s: %s", name, resource, diff)
			}
		}
	}
	if diff := cmp.Diff(map[string]int{"basic": 8, "post": 4}, idp.requests(t).Auth); diff != "" {
		t.Errorf("the clients did not authenticate as configured: %s", diff)
	}
}

func TestASecondGetIsServedFromMemory(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	b := startBroker(t, idp.config(t))
	first := b.get(t, "basic")
	if first.Origin != "fetched" || !slices.Equal(first.Scopes, []string{"read", "write"}) {
		t.Errorf("the first: origin %s, scopes %v", first.Origin, first.Scopes)
	}
	again := b.get(t, "basic", "--scope", "write", "--scope", "read", "--resource", rs256) // the same, said otherwise
	if again.Origin != "memory" || again.AccessToken != first.AccessToken {
		t.Errorf("the second: origin %s, same token: %v", again.Origin, again.AccessToken == first.AccessToken)
	}
	plain := b.run(t, "get", "basic")
	if plain.code != 0 || plain.stdout != first.AccessToken+"\n" || plain.stderr != "" {
		t.Errorf("without --json not the token alone: exit code %d, stderr %q", plain.code, plain.stderr)
	}
	if n := idp.tokenRequests(t); n != 1 {
		t.Errorf("the IdP was asked %d times", n)
	}
	if other := b.get(t, "basic", "--scope", "read"); other.Origin != "fetched" || other.AccessToken == first.AccessToken {
		t.Errorf("fewer scopes: origin %s, same token: %v", other.Origin, other.AccessToken == first.AccessToken)
	}
}

// tamper changes the first character of a JWT's signature.
func tamper(token string) string {
	signed, signature := cutSignature(token)
	first := "A"
	if strings.HasPrefix(signature, first) {
		first = "B"
	}
	return signed + "." + first + signature[1:]
}

func cutSignature(token string) (signed, signature string) {
	dot := strings.LastIndexByte(token, '.')
	return token[:dot], token[dot+1:]
}

func TestVerifySaysWhyATokenIsRejected(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	b := startBroker(t, idp.config(t))
	good := idp.mint(t, es256)
	b.mustVerify(t, "a good token", good, active)

	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.MapClaims{"iss": "https://other.example.com", "aud": es256, "exp": time.Now().Add(time.Hour).Unix()}
	foreign, err := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, token string
		args        []string
		reason      string
	}{
		{"a token for others", good, []string{"--audience", rs256}, "wrong_audience"},
		{"a token without a scope", good, []string{"--scope", "admin"}, "insufficient_scope"},
		{"a token that was tampered with", tamper(good), nil, "bad_signature"},
		{"a token of somebody else", foreign, nil, "unknown_issuer"},
		{"something else", "no-token", nil, "malformed"},
	} {
		res := b.mustVerify(t, tt.name, tt.token, rejected, tt.args...)
		if v := verdictOf(t, res); v.Active || v.Reason != tt.reason || v.Issuer != "" {
			t.Errorf("%s: want %s: %v", tt.name, tt.reason, res)
		}
	}
}

func TestARefusedClientIsNotTriedAgainAndAgain(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	secret := idp.clients["basic"]
	secret.Secret = "not-the-secret"
	idp.clients["basic"] = secret
	b := startBroker(t, idp.config(t))
	for range 5 {
		if res := b.run(t, "get", "basic"); res.code == 0 || res.stdout != "" || !strings.Contains(res.stderr, "FailedPrecondition") {
			t.Errorf("get with a wrong secret: %v", res)
		}
	}
	if n := idp.tokenRequests(t); n != 1 {
		t.Errorf("the IdP was asked %d times", n)
	}
	b.get(t, "post") // others are not affected
}

func TestAThrottledCallerIsToldWhenToComeAgain(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	b := startBroker(t, idp.config(t))
	idp.failNext(t, 1, http.StatusTooManyRequests, "3")
	res := b.run(t, "get", "basic")
	if res.code == 0 || !strings.Contains(res.stderr, "ResourceExhausted") || !strings.Contains(res.stderr, "try again in") {
		t.Errorf("get from an IdP that throttles: %v", res)
	}
	if _, res := b.tryGet(t, "basic"); res.code == 0 || idp.tokenRequests(t) != 1 {
		t.Errorf("the IdP was asked again at once: %d requests, %v", idp.tokenRequests(t), res)
	}
	testkit.Eventually(t, "the IdP is asked again", func() bool { _, res := b.tryGet(t, "basic"); return res.code == 0 })
}

func TestNothingSecretIsPrinted(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	b := startBroker(t, "log: {level: debug}\n"+idp.config(t))
	token := b.get(t, "basic").AccessToken
	printed := []result{
		b.verify(t, token),
		b.verify(t, tamper(token)),
		b.verify(t, token, "--audience", "https://other.example.com"),
		b.run(t, "get", "post", "--resource", "https://unknown.example.com"),
		b.run(t, "get", "nobody"),
	}
	var text strings.Builder
	for _, res := range printed {
		text.WriteString(res.stdout + res.stderr)
	}
	b.process.stop(t, terminate)
	text.WriteString(b.process.output.String())
	_, signature := cutSignature(token)
	for what, secret := range map[string]string{
		"the token's signature": signature[1:],
		"the secret of basic":   idp.clients["basic"].Secret,
		"the secret of post":    idp.clients["post"].Secret,
	} {
		if len(secret) < 40 || strings.Contains(text.String(), secret) || strings.Contains(text.String(), secret[:40]) {
			t.Errorf("%s was printed", what)
		}
	}
	if b.process.output.String() == "" {
		t.Error("the broker logged nothing, so this says nothing")
	}
}
