package edge

import (
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

const introspection = "/token/introspection"

// introspecting is config with the IdP's opaque tokens verified by introspection,
// as client basic. An answer is used so long.
func introspecting(t *testing.T, p *harness.OIDCProvider, cache string) string {
	t.Helper()
	return p.Config(t) + "    introspection: {client: basic, cache: " + cache + "}\n"
}

func introspectionsAt(t *testing.T, p *harness.OIDCProvider) int {
	t.Helper()
	return p.Requests(t).Paths[introspection]
}

func revokeAt(t *testing.T, p *harness.OIDCProvider, token string) {
	t.Helper()
	if got := p.Post(t, "/token/revocation", p.Basic("basic"), url.Values{"token": {token}}); got.Status != http.StatusOK {
		t.Fatalf("revocation: %d %s", got.Status, got.Error)
	}
}

func TestTokenKindsAreVerifiedTogether(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, introspecting(t, idp, "1m"))
	for _, resource := range []string{harness.RS256, harness.ES256, harness.EdDSA, harness.Array, harness.Opaque} {
		token := idp.Mint(t, resource)
		res := b.MustVerify(t, "a token for "+resource, token, harness.Active, "--audience", resource, "--scope", "write")
		want := verdict{Active: true, Issuer: idp.Issuer, Subject: "basic", ClientID: "basic", Audience: []string{resource}, Scopes: []string{"read", "write"}}
		if resource == harness.Array {
			want.Audience = append(want.Audience, "https://other.example.com")
		}
		if diff := cmp.Diff(want, verdictOf(t, res)); diff != "" {
			t.Errorf("%s: %s", resource, diff)
		}
		for args, reason := range map[string]string{"--audience https://x.example.com": "wrong_audience", "--audience " + resource + " --scope admin": "insufficient_scope"} {
			if v := verdictOf(t, b.MustVerify(t, args, token, harness.Rejected, strings.Fields(args)...)); v.Reason != reason {
				t.Errorf("%s with %s: %s", resource, args, v.Reason)
			}
		}
	}
	if n := introspectionsAt(t, idp); n != 1 {
		t.Errorf("the IdP was asked about tokens %d times, want about the one that is opaque once", n)
	}
	for _, token := range []string{tamper(idp.Mint(t, harness.RS256)), idp.Mint(t, harness.ES256) + "=", tamper(idp.Mint(t, harness.EdDSA)) + ".x"} {
		b.MustVerify(t, "a bad JWT", token, harness.Rejected)
	}
	if n := introspectionsAt(t, idp); n != 1 {
		t.Errorf("a bad JWT was shown to the IdP")
	}
	if v := verdictOf(t, b.MustVerify(t, "a token that nobody issued", "nobody-issued-this", harness.Rejected)); v.Reason != "inactive" {
		t.Errorf("a token that nobody issued: %s", v.Reason)
	}
}

// What operators revoke is refused whatever the IdP still says of it.
func TestTokenKindsCanBeRevoked(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, introspecting(t, idp, "1m"))
	for _, resource := range []string{harness.RS256, harness.ES256, harness.EdDSA, harness.Opaque} {
		token, others := b.Get(t, "basic", "--resource", resource).AccessToken, b.Get(t, "post", "--resource", resource).AccessToken
		b.MustVerify(t, "a token for "+resource, token, harness.Active, "--audience", resource)
		add := b.Run(t, "revocations", "add", "--issuer", idp.Issuer, "--client-id", "basic")
		if add.Code != 0 {
			t.Fatalf("revocations add: %v", add)
		}
		if v := verdictOf(t, b.MustVerify(t, "a revoked token for "+resource, token, harness.Rejected, "--audience", resource)); v.Reason != "revoked" {
			t.Errorf("a revoked token for %s: %s", resource, v.Reason)
		}
		b.MustVerify(t, "another client's token for "+resource, others, harness.Active, "--audience", resource)
		if res := b.Run(t, "revocations", "delete", strings.TrimSpace(add.Stdout)); res.Code != 0 {
			t.Fatalf("revocations delete: %v", res)
		}
	}
}

func TestRevocationAtTheIdPIsNoticed(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	const cache = 3 * time.Second
	b := harness.StartBroker(t, introspecting(t, idp, cache.String()))
	given := b.Get(t, "basic", "--resource", harness.Opaque)
	token := given.AccessToken
	for range 5 {
		b.MustVerify(t, "an opaque token", token, harness.Active, "--audience", harness.Opaque)
	}
	revokeAt(t, idp, token)
	begin := time.Now()
	testkit.Eventually(t, "the revocation is seen", func() bool { return b.Verify(t, token, "--audience", harness.Opaque).Code == harness.Rejected })
	if took := time.Since(begin); took > cache+2*time.Second {
		t.Errorf("it took %v with answers used for %v", took, cache)
	}
	if v := verdictOf(t, b.MustVerify(t, "the revoked token", token, harness.Rejected, "--audience", harness.Opaque)); v.Reason != "inactive" {
		t.Errorf("the revoked token: %s", v.Reason)
	}
	b.MustVerify(t, "another token", idp.Mint(t, harness.Opaque), harness.Active, "--audience", harness.Opaque)
}

func TestOpaqueTokenWhileTheIdPIsDown(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, introspecting(t, idp, "1m"))
	known, unknown, jwt := idp.Mint(t, harness.Opaque), idp.Mint(t, harness.Opaque), idp.Mint(t, harness.ES256)
	b.MustVerify(t, "an opaque token", known, harness.Active, "--audience", harness.Opaque)
	b.MustVerify(t, "a JWT", jwt, harness.Active)
	idp.Stop(t)
	b.MustVerify(t, "a token that was asked about, IdP down", known, harness.Active, "--audience", harness.Opaque)
	b.MustVerify(t, "a JWT, IdP down", jwt, harness.Active)
	res := b.MustVerify(t, "another opaque token, IdP down", unknown, harness.Undecided, "--audience", harness.Opaque)
	if strings.Contains(res.Stderr, unknown) || !strings.Contains(res.Stderr, "INTROSPECTION_UNAVAILABLE") {
		t.Errorf("IdP down: %v", res)
	}
	idp.Start(t)
	testkit.Eventually(t, "an opaque token is active once the IdP is back", func() bool {
		return b.Verify(t, idp.Mint(t, harness.Opaque), "--audience", harness.Opaque).Code == harness.Active
	})
}

func TestKeysOfEachAlgorithmRotate(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, idp.Config(t))
	resources := []string{harness.RS256, harness.ES256, harness.EdDSA}
	mint := func() (tokens []string) {
		for _, resource := range resources {
			tokens = append(tokens, idp.Mint(t, resource))
		}
		return tokens
	}
	verify := func(what string, tokens []string, want int) {
		t.Helper()
		for i, token := range tokens {
			b.MustVerify(t, what+" for "+resources[i], token, want)
		}
	}
	first := mint()
	verify("a token", first, harness.Active)
	idp.RotateKeys(t, true)
	second := mint()
	testkit.Eventually(t, "new keys are known", func() bool { return b.Verify(t, second[0]).Code == harness.Active })
	verify("a token of a new key", second, harness.Active)
	verify("a token of an old key that is still published", first, harness.Active)
	idp.RotateKeys(t, false)
	third := mint()
	testkit.Eventually(t, "new keys without overlap are known", func() bool { return b.Verify(t, third[0]).Code == harness.Active })
	verify("a token of a new key", third, harness.Active)
	verify("a token of a withdrawn key", first, harness.Rejected)
	verify("a token of a withdrawn key", second, harness.Rejected)
}

func TestOpaqueTokenIsNotPrinted(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, "log: {level: debug}\n"+introspecting(t, idp, "0s"))
	token := idp.Mint(t, harness.Opaque)
	var text strings.Builder
	say := func(res harness.Result) { text.WriteString(res.Stdout + res.Stderr) }
	say(b.Verify(t, token, "--audience", harness.Opaque))
	say(b.Verify(t, token))
	revokeAt(t, idp, token)
	say(b.Verify(t, token, "--audience", harness.Opaque))
	idp.Stop(t)
	for range 5 {
		say(b.Verify(t, token, "--audience", harness.Opaque))
	}
	b.Process.Stop(t, harness.Terminate)
	text.WriteString(b.Process.Output.String())
	for what, secret := range map[string]string{"the token": token, "the client's secret": idp.Clients["basic"].Secret} {
		if len(secret) < 20 || strings.Contains(text.String(), secret[:20]) || strings.Contains(text.String(), url.QueryEscape(secret)) {
			t.Errorf("%s was printed", what)
		}
	}
	if !strings.Contains(b.Process.Output.String(), "introspection") {
		t.Error("the broker logged nothing of it, so this says nothing")
	}
}

func TestCheckConfig_introspection(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	file := filepath.Join(t.TempDir(), "broker.yaml")
	write := func(config string) {
		testkit.WriteFile(t, file, config)
	}
	write(introspecting(t, idp, "1s"))
	if res := harness.Run(t, "check-config", file, "--live"); res.Code != 0 || !strings.Contains(res.Stdout+res.Stderr, "introspection") {
		t.Errorf("all well: %v", res)
	}
	write(strings.Replace(introspecting(t, idp, "1s"), "client: basic", "client: basic, endpoint: "+idp.Issuer+"/nowhere", 1))
	if res := harness.Run(t, "check-config", file, "--live"); res.Code == 0 || !strings.Contains(res.Stdout+res.Stderr, "does not exist") {
		t.Errorf("no endpoint: %v", res)
	}
	write(strings.Replace(introspecting(t, idp, "1s"), "client: basic", "client: nobody", 1))
	if res := harness.Run(t, "check-config", file); res.Code == 0 || !strings.Contains(res.Stderr, "no client of this name") {
		t.Errorf("an unknown client: %v", res)
	}
}
