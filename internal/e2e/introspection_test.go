package e2e_test

import (
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/testkit"
)

const introspection = "/token/introspection"

// introspecting is config with the IdP's opaque tokens verified by introspection,
// as client basic. An answer is used so long.
func (p *oidcProvider) introspecting(t *testing.T, cache string) string {
	t.Helper()
	return p.config(t) + "    introspection: {client: basic, cache: " + cache + "}\n"
}

func (p *oidcProvider) introspections(t *testing.T) int {
	t.Helper()
	return p.requests(t).Paths[introspection]
}

func (p *oidcProvider) revoke(t *testing.T, token string) {
	t.Helper()
	if got := p.post(t, "/token/revocation", p.basic("basic"), url.Values{"token": {token}}); got.status != http.StatusOK {
		t.Fatalf("revocation: %d %s", got.status, got.Error)
	}
}

func TestTokensOfEveryKindAreVerifiedBesideEachOther(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	b := startBroker(t, idp.introspecting(t, "1m"))
	for _, resource := range []string{rs256, es256, eddsa, array, opaque} {
		token := idp.mint(t, resource)
		res := b.mustVerify(t, "a token for "+resource, token, active, "--audience", resource, "--scope", "write")
		want := verdict{Active: true, Issuer: idp.issuer, Subject: "basic", ClientID: "basic", Audience: []string{resource}, Scopes: []string{"read", "write"}}
		if resource == array {
			want.Audience = append(want.Audience, "https://other.example.com")
		}
		if diff := cmp.Diff(want, verdictOf(t, res)); diff != "" {
			t.Errorf("%s: %s", resource, diff)
		}
		for args, reason := range map[string]string{"--audience https://x.example.com": "wrong_audience", "--audience " + resource + " --scope admin": "insufficient_scope"} {
			if v := verdictOf(t, b.mustVerify(t, args, token, rejected, strings.Fields(args)...)); v.Reason != reason {
				t.Errorf("%s with %s: %s", resource, args, v.Reason)
			}
		}
	}
	if n := idp.introspections(t); n != 1 {
		t.Errorf("the IdP was asked about tokens %d times, want about the one that is opaque once", n)
	}
	for _, token := range []string{tamper(idp.mint(t, rs256)), idp.mint(t, es256) + "=", tamper(idp.mint(t, eddsa)) + ".x"} {
		b.mustVerify(t, "a bad JWT", token, rejected)
	}
	if n := idp.introspections(t); n != 1 {
		t.Errorf("a bad JWT was shown to the IdP")
	}
	if v := verdictOf(t, b.mustVerify(t, "a token that nobody issued", "nobody-issued-this", rejected)); v.Reason != "inactive" {
		t.Errorf("a token that nobody issued: %s", v.Reason)
	}
}

// What operators revoke is refused whatever the IdP still says of it.
func TestTokensOfEveryKindCanBeRevoked(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	b := startBroker(t, idp.introspecting(t, "1m"))
	for _, resource := range []string{rs256, es256, eddsa, opaque} {
		token, others := b.get(t, "basic", "--resource", resource).AccessToken, b.get(t, "post", "--resource", resource).AccessToken
		b.mustVerify(t, "a token for "+resource, token, active, "--audience", resource)
		add := b.run(t, "revocations", "add", "--issuer", idp.issuer, "--client-id", "basic")
		if add.code != 0 {
			t.Fatalf("revocations add: %v", add)
		}
		if v := verdictOf(t, b.mustVerify(t, "a revoked token for "+resource, token, rejected, "--audience", resource)); v.Reason != "revoked" {
			t.Errorf("a revoked token for %s: %s", resource, v.Reason)
		}
		b.mustVerify(t, "another client's token for "+resource, others, active, "--audience", resource)
		if res := b.run(t, "revocations", "delete", strings.TrimSpace(add.stdout)); res.code != 0 {
			t.Fatalf("revocations delete: %v", res)
		}
	}
}

func TestRevocationAtTheIdPIsSeenInTime(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	const cache = 3 * time.Second
	b := startBroker(t, idp.introspecting(t, cache.String()))
	given := b.get(t, "basic", "--resource", opaque)
	token := given.AccessToken
	for range 5 {
		b.mustVerify(t, "an opaque token", token, active, "--audience", opaque)
	}
	idp.revoke(t, token)
	begin := time.Now()
	testkit.Eventually(t, "the revocation is seen", func() bool { return b.verify(t, token, "--audience", opaque).code == rejected })
	if took := time.Since(begin); took > cache+2*time.Second {
		t.Errorf("it took %v with answers used for %v", took, cache)
	}
	if v := verdictOf(t, b.mustVerify(t, "the revoked token", token, rejected, "--audience", opaque)); v.Reason != "inactive" {
		t.Errorf("the revoked token: %s", v.Reason)
	}
	b.mustVerify(t, "another token", idp.mint(t, opaque), active, "--audience", opaque)
}

func TestOpaqueTokensAreUndecidedWhileTheIdPIsDown(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	b := startBroker(t, idp.introspecting(t, "1m"))
	known, unknown, jwt := idp.mint(t, opaque), idp.mint(t, opaque), idp.mint(t, es256)
	b.mustVerify(t, "an opaque token", known, active, "--audience", opaque)
	b.mustVerify(t, "a JWT", jwt, active)
	idp.stop(t)
	b.mustVerify(t, "a token that was asked about, IdP down", known, active, "--audience", opaque)
	b.mustVerify(t, "a JWT, IdP down", jwt, active)
	res := b.mustVerify(t, "another opaque token, IdP down", unknown, undecided, "--audience", opaque)
	if strings.Contains(res.stderr, unknown) || !strings.Contains(res.stderr, "INTROSPECTION_UNAVAILABLE") {
		t.Errorf("IdP down: %v", res)
	}
	idp.start(t)
	testkit.Eventually(t, "an opaque token is active once the IdP is back", func() bool {
		return b.verify(t, idp.mint(t, opaque), "--audience", opaque).code == active
	})
}

func TestKeysOfEveryAlgorithmRotateWithAndWithoutOverlap(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	b := startBroker(t, idp.config(t))
	resources := []string{rs256, es256, eddsa}
	mint := func() (tokens []string) {
		for _, resource := range resources {
			tokens = append(tokens, idp.mint(t, resource))
		}
		return tokens
	}
	verify := func(what string, tokens []string, want int) {
		t.Helper()
		for i, token := range tokens {
			b.mustVerify(t, what+" for "+resources[i], token, want)
		}
	}
	first := mint()
	verify("a token", first, active)
	idp.rotateKeys(t, true)
	second := mint()
	testkit.Eventually(t, "new keys are known", func() bool { return b.verify(t, second[0]).code == active })
	verify("a token of a new key", second, active)
	verify("a token of an old key that is still published", first, active)
	idp.rotateKeys(t, false)
	third := mint()
	testkit.Eventually(t, "new keys without overlap are known", func() bool { return b.verify(t, third[0]).code == active })
	verify("a token of a new key", third, active)
	verify("a token of a withdrawn key", first, rejected)
	verify("a token of a withdrawn key", second, rejected)
}

func TestNothingOfAnOpaqueTokenIsPrinted(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	b := startBroker(t, "log: {level: debug}\n"+idp.introspecting(t, "0s"))
	token := idp.mint(t, opaque)
	var text strings.Builder
	say := func(res result) { text.WriteString(res.stdout + res.stderr) }
	say(b.verify(t, token, "--audience", opaque))
	say(b.verify(t, token))
	idp.revoke(t, token)
	say(b.verify(t, token, "--audience", opaque))
	idp.stop(t)
	for range 5 {
		say(b.verify(t, token, "--audience", opaque))
	}
	b.process.stop(t, terminate)
	text.WriteString(b.process.output.String())
	for what, secret := range map[string]string{"the token": token, "the client's secret": idp.clients["basic"].Secret} {
		if len(secret) < 20 || strings.Contains(text.String(), secret[:20]) || strings.Contains(text.String(), url.QueryEscape(secret)) {
			t.Errorf("%s was printed", what)
		}
	}
	if !strings.Contains(b.process.output.String(), "introspection") {
		t.Error("the broker logged nothing of it, so this says nothing")
	}
}

func TestCheckConfigTriesIntrospection(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	file := filepath.Join(t.TempDir(), "broker.yaml")
	write := func(config string) {
		testkit.WriteFile(t, file, config)
	}
	write(idp.introspecting(t, "1s"))
	if res := run(t, "check-config", file, "--live"); res.code != 0 || !strings.Contains(res.stdout+res.stderr, "introspection") {
		t.Errorf("all well: %v", res)
	}
	write(strings.Replace(idp.introspecting(t, "1s"), "client: basic", "client: basic, endpoint: "+idp.issuer+"/nowhere", 1))
	if res := run(t, "check-config", file, "--live"); res.code == 0 || !strings.Contains(res.stdout+res.stderr, "does not exist") {
		t.Errorf("no endpoint: %v", res)
	}
	write(strings.Replace(idp.introspecting(t, "1s"), "client: basic", "client: nobody", 1))
	if res := run(t, "check-config", file); res.code == 0 || !strings.Contains(res.stderr, "no client of this name") {
		t.Errorf("an unknown client: %v", res)
	}
}
