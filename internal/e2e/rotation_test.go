package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"

	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/redact/redacttest"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// managed is the section clients of a broker's configuration, with one client whose
// secret operators bring.
func (p *countingIdP) managed(name string) string {
	return fmt.Sprintf("clients:\n  %s: {token_url: %q, client_id: %q, secret: managed, audience: %q, scopes: [%s]}\n",
		name, p.Issuer()+"/token", p.client.ID, p.client.Audiences[0], strings.Join(p.client.Scopes, ", "))
}

// takes has the IdP take these secrets and no others.
func (p *countingIdP) takes(secrets ...string) {
	values := make([]redact.String, len(secrets))
	for i, s := range secrets {
		values[i] = redact.New(s)
	}
	p.SetSecrets(p.client.ID, values...)
}

func (p *countingIdP) refused(secret string) int {
	_, refused := p.Attempts(p.client.ID, redact.New(secret))
	return refused
}

// bring pipes a secret into a command.
func (b *broker) bring(t *testing.T, secret string, args ...string) result {
	t.Helper()
	return b.command(secret+"\n").run(t, args...)
}

// rotate rotates the secret of "orders", which must succeed.
func (b *broker) rotate(t *testing.T, secret string, args ...string) result {
	t.Helper()
	res := b.bring(t, secret, append([]string{"secret", "rotate", "orders"}, args...)...)
	if res.code != 0 {
		t.Fatalf("secret rotate: %v", res)
	}
	return res
}

// client is what the replica says of a client.
func (b *broker) client(t *testing.T, name string) *tokenbrokerv1.Client {
	t.Helper()
	res := b.run(t, "clients", name, "--json")
	if res.code != 0 {
		t.Fatalf("clients: %v", res)
	}
	var c tokenbrokerv1.Client
	if err := protojson.Unmarshal([]byte(res.stdout), &c); err != nil {
		t.Fatal(err)
	}
	return &c
}

// current is the version in force; empty: there is none.
func current(c *tokenbrokerv1.Client) string {
	return inState(c, tokenbrokerv1.SecretState_SECRET_STATE_CURRENT)
}

func inState(c *tokenbrokerv1.Client, state tokenbrokerv1.SecretState) string {
	at := slices.IndexFunc(c.GetSecretVersions(), func(v *tokenbrokerv1.SecretVersion) bool { return v.GetState() == state })
	if at < 0 {
		return ""
	}
	return c.GetSecretVersions()[at].GetVersion()
}

// states are the versions in short, newest first, such as "current previous".
func states(c *tokenbrokerv1.Client) string {
	var all []string
	for _, v := range c.GetSecretVersions() {
		all = append(all, strings.ToLower(strings.TrimPrefix(v.GetState().String(), "SECRET_STATE_")))
	}
	return strings.Join(all, " ")
}

// A wrong secret is refused at its proof and nobody notices; a rollback takes effect
// on all replicas within 5 s; a purge drops all tokens within 5 s.
func TestWrongSecretRollbackAndPurgeInAFleet(t *testing.T) {
	t.Parallel()
	idp := simpleIdP(t, time.Hour)
	redis := redistest.Start(t, redisOptions())
	f := startFleet(t, 3, redisConfig(t, "", redis.Addr())+idp.managed("orders"))
	idp.takes("first", "second")
	first, other := f.replicas[0], f.replicas[2]
	if res := first.run(t, "get", "orders"); res.code == 0 || !strings.Contains(res.stderr, "broker secret rotate orders") {
		t.Errorf("without a secret: %v", res)
	}
	first.rotate(t, "first")
	one := current(first.client(t, "orders"))
	first.rotate(t, "second")
	two := current(first.client(t, "orders"))
	load := startLoad(t, f.replicas, 5, 20*time.Millisecond, "orders")

	res := other.bring(t, "wrong", "secret", "rotate", "orders")
	if res.code == 0 || !strings.Contains(res.stdout, "prove   FAILED") || !strings.Contains(res.stderr, "CLIENT_CREDENTIALS_REFUSED") {
		t.Errorf("a wrong secret: %v", res)
	}
	if got := idp.refused("wrong"); got != 1 {
		t.Errorf("the IdP saw the wrong secret %d times", got)
	}
	for _, r := range f.replicas {
		if got := r.client(t, "orders"); current(got) != two || states(got) != "retired current previous" {
			t.Errorf("after a wrong secret: %s", states(got))
		}
	}

	begun := time.Now()
	if res := other.run(t, "secret", "rollback", "orders"); res.code != 0 {
		t.Fatalf("secret rollback: %v", res)
	}
	slowest := time.Duration(0)
	for _, r := range f.replicas {
		testkit.Eventually(t, "the rollback", func() bool { return current(r.client(t, "orders")) == one })
		slowest = max(slowest, time.Since(begun))
	}
	purged := map[string]bool{}
	for _, a := range everybody(t, f.replicas, 1, "orders").good(t, "before the purge") {
		purged[a.token.AccessToken()] = true
	}
	purgedAt := time.Now()
	if res := first.run(t, "purge", "orders"); res.code != 0 {
		t.Fatalf("purge: %v", res)
	}
	slowestPurge := time.Duration(0)
	for _, r := range f.replicas {
		testkit.Eventually(t, "the purge", func() bool { return !purged[r.ask(t, "orders").token.AccessToken()] })
		slowestPurge = max(slowestPurge, time.Since(purgedAt))
	}
	load.good(t, "load")
	t.Logf("the rollback was seen on all replicas after %v, the purge after %v, processes included; %v", slowest, slowestPurge, load.took)
	if slowest > 5*time.Second+slack || slowestPurge > 5*time.Second+slack {
		t.Errorf("within 5 s was promised")
	}
	if got := f.replicas[1].client(t, "orders"); got.GetSecretInUse() != one {
		t.Errorf("in use is %s, rolled back to %s", got.GetSecretInUse(), one)
	}
}

// slack is what starting processes may take on a slow machine.
const slack = 10 * time.Second

// The secret of a single-secret IdP is staged, then changed there; the command waits
// until the IdP knows it.
func TestActivateWaitsForTheIdP(t *testing.T) {
	t.Parallel()
	idp := simpleIdP(t, time.Hour)
	config := fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(t.TempDir(), "broker.db"), "file:"+makeRing(t))
	b := startBroker(t, config+idp.managed("orders"))
	idp.takes("first")
	b.rotate(t, "first")
	if res := b.rotate(t, "second", "--stage-only"); !strings.Contains(res.stdout, "stored on disk") || strings.Contains(res.stdout, "WARNING") {
		t.Errorf("staged: %v", res)
	}
	if res := b.bring(t, "third", "secret", "rotate", "orders"); res.code == 0 || !strings.Contains(res.stderr, "SECRET_STAGED") {
		t.Errorf("another one: %v", res)
	}
	idp.takes()
	time.AfterFunc(7*time.Second, func() { idp.takes("second") })
	res := b.run(t, "secret", "activate", "orders", "--wait", "60s")
	if res.code != 0 || states(b.client(t, "orders")) != "current previous" {
		t.Errorf("activate: %v", res)
	}
	if got := idp.refused("second"); got > 2 {
		t.Errorf("the IdP saw it %d times before it took it", got)
	}
	if res := b.run(t, "secret", "retire", "orders", inState(b.client(t, "orders"), tokenbrokerv1.SecretState_SECRET_STATE_PREVIOUS)); res.code != 0 {
		t.Errorf("retire: %v", res)
	}
	if got := states(b.client(t, "orders")); got != "current retired" {
		t.Errorf("after retiring: %s", got)
	}
}

func TestCompromisedSecretIsGoneEverywhere(t *testing.T) {
	t.Parallel()
	idp := simpleIdP(t, time.Hour)
	redis := redistest.Start(t, redisOptions())
	issuers := fmt.Sprintf("issuers: [{issuer: %q, audiences: [%q]}]\n", idp.Issuer(), idp.client.Audiences[0])
	clients := strings.Replace(idp.managed("orders"), fmt.Sprintf("token_url: %q", idp.Issuer()+"/token"), fmt.Sprintf("issuer: %q", idp.Issuer()), 1)
	f := startFleet(t, 2, redisConfig(t, "", redis.Addr())+issuers+clients)
	idp.takes("leaked", "fresh")
	first, other := f.replicas[0], f.replicas[1]
	first.rotate(t, "leaked")
	old := first.get(t, "orders").AccessToken
	other.mustVerify(t, "a token before", old, active)
	rest(t, 1100*time.Millisecond) // tokens tell seconds

	res := first.rotate(t, "fresh", "--compromised", "--revoke", "--reason", "a test")
	for _, want := range []string{"wiped", "purge", "revocation"} {
		if !strings.Contains(res.stdout, want) {
			t.Errorf("it does not tell of %q: %v", want, res)
		}
	}
	testkit.Eventually(t, "the purge", func() bool { return other.get(t, "orders").AccessToken != old })
	testkit.Eventually(t, "the revocation", func() bool { return other.verify(t, old).code == rejected })
	other.mustVerify(t, "a token afterwards", other.get(t, "orders").AccessToken, active)
	if got := states(other.client(t, "orders")); got != "current retired" {
		t.Errorf("the versions: %s", got)
	}
}

func TestClientsAreShown(t *testing.T) {
	t.Parallel()
	idp := simpleIdP(t, time.Hour)
	config := fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(t.TempDir(), "broker.db"), "file:"+makeRing(t))
	b := startBroker(t, config+idp.managed("orders")+"  files: "+idp.config(t)+"\n")
	idp.takes("first", idp.client.Secrets[0].Reveal())
	before := b.run(t, "clients")
	if before.code != 0 || !strings.Contains(before.stdout, "no secret!") || !strings.Contains(before.stdout, "idle") {
		t.Errorf("before: %v", before)
	}
	b.rotate(t, "first")
	b.get(t, "files")
	after := b.run(t, "clients")
	if lines := strings.Split(strings.TrimSpace(after.stdout), "\n"); len(lines) != 3 || !strings.HasPrefix(lines[0], "CLIENT") ||
		!strings.HasPrefix(lines[1], "files ") || !strings.Contains(lines[1], " ok ") || !strings.Contains(lines[2], " in 59m ") {
		t.Errorf("after: %v", after)
	}
	one := b.run(t, "clients", "orders")
	for _, want := range []string{"managed", "client_secret_basic", "VERSION", "current"} {
		if !strings.Contains(one.stdout, want) {
			t.Errorf("%q is not in: %v", want, one)
		}
	}
	if res := b.bring(t, "x", "secret", "rotate", "files"); res.code == 0 || !strings.Contains(res.stderr, "change it there") {
		t.Errorf("rotating a file: %v", res)
	}
	if res := b.run(t, "secret", "rotate", "orders", "a-secret"); res.code == 0 || !strings.Contains(res.stderr, "standard input") {
		t.Errorf("a secret as an argument: %v", res)
	}
	if res := b.bring(t, "", "secret", "rotate", "orders"); res.code == 0 {
		t.Errorf("no secret: %v", res)
	}
	if res := b.run(t, "clients", "nobody"); res.code == 0 {
		t.Errorf("nobody: %v", res)
	}
}

// What is exported can be read by a broker with the same ring, and by nobody else.
func TestSecretsAreBackedUpAndBroughtBack(t *testing.T) {
	t.Parallel()
	idp := simpleIdP(t, time.Hour)
	ring := makeRing(t)
	fresh := func(ring string) *broker {
		config := fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(t.TempDir(), "broker.db"), "file:"+ring)
		return startBroker(t, config+idp.managed("orders"))
	}
	first := fresh(ring)
	idp.takes("first")
	first.rotate(t, "first")
	file := filepath.Join(t.TempDir(), "secrets.sealed")
	if res := first.run(t, "secret", "export", file); res.code != 0 {
		t.Fatalf("export: %v", res)
	}
	content, err := os.ReadFile(file)
	if err != nil || len(redacttest.Places{"file": string(content)}.Of("first")) > 0 {
		t.Fatalf("the file holds the secret, or none: %v", err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	second := fresh(ring)
	if res := second.run(t, "secret", "import", file); res.code != 0 {
		t.Fatalf("import: %v", res)
	}
	second.get(t, "orders")
	if res := second.run(t, "secret", "import", file); res.code == 0 || !strings.Contains(res.stderr, "it has a secret already") {
		t.Errorf("over what there is: %v", res)
	}
	if res := second.run(t, "secret", "import", file, "--replace"); res.code != 0 {
		t.Errorf("replacing: %v", res)
	}
	stranger := fresh(makeRing(t))
	if res := stranger.run(t, "secret", "import", file); res.code == 0 || !strings.Contains(res.stderr, "sealed with a key") {
		t.Errorf("with another ring: %v", res)
	}
}

// Where a terminal is attached a person is asked before something is lost; --yes goes
// without, and so do scripts.
func TestAPersonIsAskedBeforeASecretIsWiped(t *testing.T) {
	t.Parallel()
	need(t, "script")
	idp := simpleIdP(t, time.Hour)
	config := fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(t.TempDir(), "broker.db"), "file:"+makeRing(t))
	b := startBroker(t, config+idp.managed("orders"))
	idp.takes("first", "second", "third")
	b.rotate(t, "first")
	b.rotate(t, "second")
	secretFile := writeFile(t, "third", "third")
	onTerminal := func(answer, command string) result {
		return commandOnTerminal(t, b, answer, command)
	}
	previous := func() string {
		return inState(b.client(t, "orders"), tokenbrokerv1.SecretState_SECRET_STATE_PREVIOUS)
	}
	retire := "broker secret retire orders " + previous()
	if res := onTerminal("n\n", retire); !strings.Contains(res.stdout, "will be wiped. Go on? [y/N]") || !strings.Contains(res.stdout, "nothing was done") || res.code == 0 || previous() == "" {
		t.Errorf("no: %v", res)
	}
	rotate := "broker secret rotate orders --compromised --file " + secretFile
	if res := onTerminal("\n", rotate); !strings.Contains(res.stdout, "Go on? [y/N]") || res.code == 0 || previous() == "" {
		t.Errorf("nothing said: %v", res)
	}
	if res := onTerminal("y\n", retire); res.code != 0 || previous() != "" {
		t.Errorf("yes: %v", res)
	}
	if res := onTerminal("", rotate+" --yes"); strings.Contains(res.stdout, "[y/N]") || res.code != 0 {
		t.Errorf("--yes: %v", res)
	}
	if got := states(b.client(t, "orders")); got != "current retired retired" {
		t.Errorf("in the end: %s", got)
	}
	if res := onTerminal("fourth\n", "broker secret rotate orders --stage-only"); strings.Contains(res.stdout, "fourth") || !strings.Contains(res.stdout, "not shown") || res.code != 0 {
		t.Errorf("a secret that is typed: %v", res)
	}
}

// commandOnTerminal runs a command that is typed into a terminal.
func commandOnTerminal(t *testing.T, b *broker, input, line string) result {
	t.Helper()
	c := b.command(input)
	c.name = "script"
	return c.run(t, "--quiet", "--return", "--echo", "never", "--command", line, os.DevNull)
}
