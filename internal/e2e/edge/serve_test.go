package edge

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

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
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

func verdictOf(t *testing.T, res harness.Result) verdict {
	t.Helper()
	var v verdict
	if err := json.Unmarshal([]byte(res.Stdout), &v); err != nil {
		t.Fatalf("not JSON: %v", res)
	}
	return v
}

func TestTokensOfEachClientAndResource(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, idp.Config(t))
	for name, id := range map[string]string{"basic": "basic", "odd": "odd:%+/=& id", "post": "post"} {
		for resource, algorithm := range map[string]string{harness.RS256: "RS256", harness.ES256: "ES256", harness.EdDSA: "EdDSA", harness.Array: "RS256"} {
			got := b.Get(t, name, "--resource", resource, "--scope", "read")
			left := time.Until(got.ExpiresAt)
			if got.TokenType != "Bearer" || !slices.Equal(got.Scopes, []string{"read"}) || got.Origin != "fetched" || got.Degraded ||
				left > time.Hour || left < 55*time.Minute || !got.RefreshAt.After(time.Now()) || !got.RefreshAt.Before(got.ExpiresAt) {
				got.AccessToken = ""
				t.Errorf("get of %s for %s: %+v", name, resource, got)
			}
			if token, _, err := jwt.NewParser().ParseUnverified(got.AccessToken, jwt.MapClaims{}); err != nil || token.Header["alg"] != algorithm {
				t.Errorf("get of %s for %s: a token signed otherwise (%v)", name, resource, err)
			}
			res := b.MustVerify(t, name+" for "+resource, got.AccessToken, harness.Active, "--audience", resource, "--scope", "read")
			want := verdict{Active: true, Issuer: idp.Issuer, Subject: id, ClientID: id, Audience: []string{resource}, Scopes: []string{"read"}}
			if resource == harness.Array {
				want.Audience = append(want.Audience, "https://other.example.com")
			}
			if diff := cmp.Diff(want, verdictOf(t, res)); diff != "" {
				t.Errorf("verify of %s for %s: %s", name, resource, diff)
			}
		}
	}
	if diff := cmp.Diff(map[string]int{"basic": 8, "post": 4}, idp.Requests(t).Auth); diff != "" {
		t.Errorf("the clients did not authenticate as configured: %s", diff)
	}
}

func TestSecondGetComesFromMemory(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, idp.Config(t))
	first := b.Get(t, "basic")
	if first.Origin != "fetched" || !slices.Equal(first.Scopes, []string{"read", "write"}) {
		t.Errorf("the first: origin %s, scopes %v", first.Origin, first.Scopes)
	}
	again := b.Get(t, "basic", "--scope", "write", "--scope", "read", "--resource", harness.RS256) // the same, said otherwise
	if again.Origin != "memory" || again.AccessToken != first.AccessToken {
		t.Errorf("the second: origin %s, same token: %v", again.Origin, again.AccessToken == first.AccessToken)
	}
	plain := b.Run(t, "get", "basic")
	if plain.Code != 0 || plain.Stdout != first.AccessToken+"\n" || plain.Stderr != "" {
		t.Errorf("without --json not the token alone: exit code %d, stderr %q", plain.Code, plain.Stderr)
	}
	if n := idp.TokenRequests(t); n != 1 {
		t.Errorf("the IdP was asked %d times", n)
	}
	if other := b.Get(t, "basic", "--scope", "read"); other.Origin != "fetched" || other.AccessToken == first.AccessToken {
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

func TestVerifyShowsTheRejectionReason(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, idp.Config(t))
	good := idp.Mint(t, harness.ES256)
	b.MustVerify(t, "a good token", good, harness.Active)

	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.MapClaims{"iss": "https://other.example.com", "aud": harness.ES256, "exp": time.Now().Add(time.Hour).Unix()}
	foreign, err := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, token string
		args        []string
		reason      string
	}{
		{"a token for others", good, []string{"--audience", harness.RS256}, "wrong_audience"},
		{"a token without a scope", good, []string{"--scope", "admin"}, "insufficient_scope"},
		{"a token that was tampered with", tamper(good), nil, "bad_signature"},
		{"a token of somebody else", foreign, nil, "unknown_issuer"},
		{"something else", "no-token", nil, "malformed"},
	} {
		res := b.MustVerify(t, tt.name, tt.token, harness.Rejected, tt.args...)
		if v := verdictOf(t, res); v.Active || v.Reason != tt.reason || v.Issuer != "" {
			t.Errorf("%s: want %s: %v", tt.name, tt.reason, res)
		}
	}
}

func TestRefusedClientIsTriedSeldom(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	secret := idp.Clients["basic"]
	secret.Secret = "not-the-secret"
	idp.Clients["basic"] = secret
	b := harness.StartBroker(t, idp.Config(t))
	for range 5 {
		if res := b.Run(t, "get", "basic"); res.Code == 0 || res.Stdout != "" || !strings.Contains(res.Stderr, "FailedPrecondition") {
			t.Errorf("get with a wrong secret: %v", res)
		}
	}
	if n := idp.TokenRequests(t); n != 1 {
		t.Errorf("the IdP was asked %d times", n)
	}
	b.Get(t, "post") // others are not affected
}

func TestThrottledCallerGetsRetryAfter(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, idp.Config(t))
	idp.FailNext(t, 1, http.StatusTooManyRequests, "3")
	res := b.Run(t, "get", "basic")
	if res.Code == 0 || !strings.Contains(res.Stderr, "ResourceExhausted") || !strings.Contains(res.Stderr, "try again in") {
		t.Errorf("get from an IdP that throttles: %v", res)
	}
	if _, res := b.TryGet(t, "basic"); res.Code == 0 || idp.TokenRequests(t) != 1 {
		t.Errorf("the IdP was asked again at once: %d requests, %v", idp.TokenRequests(t), res)
	}
	testkit.Eventually(t, "the IdP is asked again", func() bool { _, res := b.TryGet(t, "basic"); return res.Code == 0 })
}

func TestNoSecretIsPrinted(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, "log: {level: debug}\n"+idp.Config(t))
	token := b.Get(t, "basic").AccessToken
	printed := []harness.Result{
		b.Verify(t, token),
		b.Verify(t, tamper(token)),
		b.Verify(t, token, "--audience", "https://other.example.com"),
		b.Run(t, "get", "post", "--resource", "https://unknown.example.com"),
		b.Run(t, "get", "nobody"),
	}
	var text strings.Builder
	for _, res := range printed {
		text.WriteString(res.Stdout + res.Stderr)
	}
	b.Process.Stop(t, harness.Terminate)
	text.WriteString(b.Process.Output.String())
	_, signature := cutSignature(token)
	for what, secret := range map[string]string{
		"the token's signature": signature[1:],
		"the secret of basic":   idp.Clients["basic"].Secret,
		"the secret of post":    idp.Clients["post"].Secret,
	} {
		if len(secret) < 40 || strings.Contains(text.String(), secret) || strings.Contains(text.String(), secret[:40]) {
			t.Errorf("%s was printed", what)
		}
	}
	if b.Process.Output.String() == "" {
		t.Error("the broker logged nothing, so this says nothing")
	}
}
