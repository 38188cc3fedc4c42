package fleet

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redact/redacttest"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

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
func TestFleetRollbackAndPurge(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	redis := redistest.Start(t, redisOptions())
	f := startFleet(t, 3, redisConfig(t, "", redis.Addr())+idp.Managed("orders"))
	idp.Takes("first", "second")
	first, other := f.Replicas[0], f.Replicas[2]
	if res := first.Run(t, "get", "orders"); res.Code == 0 || !strings.Contains(res.Stderr, "broker secret rotate orders") {
		t.Errorf("without a secret: %v", res)
	}
	first.Rotate(t, "first")
	one := current(first.Client(t, "orders"))
	first.Rotate(t, "second")
	two := current(first.Client(t, "orders"))
	load := startLoad(t, f.Replicas, 5, 20*time.Millisecond, "orders")

	res := other.Bring(t, "wrong", "secret", "rotate", "orders")
	if res.Code == 0 || !strings.Contains(res.Stdout, "prove   FAILED") || !strings.Contains(res.Stderr, "CLIENT_CREDENTIALS_REFUSED") {
		t.Errorf("a wrong secret: %v", res)
	}
	if got := idp.Refused("wrong"); got != 1 {
		t.Errorf("the IdP saw the wrong secret %d times", got)
	}
	for _, r := range f.Replicas {
		if got := r.Client(t, "orders"); current(got) != two || states(got) != "retired current previous" {
			t.Errorf("after a wrong secret: %s", states(got))
		}
	}

	begun := time.Now()
	if res := other.Run(t, "secret", "rollback", "orders"); res.Code != 0 {
		t.Fatalf("secret rollback: %v", res)
	}
	slowest := time.Duration(0)
	for _, r := range f.Replicas {
		testkit.Eventually(t, "the rollback", func() bool { return current(r.Client(t, "orders")) == one })
		slowest = max(slowest, time.Since(begun))
	}
	purged := map[string]bool{}
	for _, a := range askAll(t, f.Replicas, 1, "orders").Good(t, "before the purge") {
		purged[a.Token.AccessToken()] = true
	}
	purgedAt := time.Now()
	if res := first.Run(t, "purge", "orders"); res.Code != 0 {
		t.Fatalf("purge: %v", res)
	}
	slowestPurge := time.Duration(0)
	for _, r := range f.Replicas {
		testkit.Eventually(t, "the purge", func() bool { return !purged[r.Ask(t, "orders").Token.AccessToken()] })
		slowestPurge = max(slowestPurge, time.Since(purgedAt))
	}
	load.Good(t, "load")
	t.Logf("the rollback was seen on all replicas after %v, the purge after %v, processes included; %v", slowest, slowestPurge, load.Took)
	if slowest > 5*time.Second+slack || slowestPurge > 5*time.Second+slack {
		t.Errorf("within 5 s was promised")
	}
	if got := f.Replicas[1].Client(t, "orders"); got.GetSecretInUse() != one {
		t.Errorf("in use is %s, rolled back to %s", got.GetSecretInUse(), one)
	}
}

// slack is what starting processes may take on a slow machine.
const slack = 10 * time.Second

// The secret of a single-secret IdP is staged, then changed there; the command waits
// until the IdP knows it.
func TestActivateWaitsForTheIdP(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	config := fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(t.TempDir(), "broker.db"), "file:"+makeRing(t))
	b := harness.StartBroker(t, config+idp.Managed("orders"))
	idp.Takes("first")
	b.Rotate(t, "first")
	if res := b.Rotate(t, "second", "--stage-only"); !strings.Contains(res.Stdout, "stored on disk") || strings.Contains(res.Stdout, "WARNING") {
		t.Errorf("staged: %v", res)
	}
	if res := b.Bring(t, "third", "secret", "rotate", "orders"); res.Code == 0 || !strings.Contains(res.Stderr, "SECRET_STAGED") {
		t.Errorf("another one: %v", res)
	}
	idp.Takes()
	time.AfterFunc(7*time.Second, func() { idp.Takes("second") })
	res := b.Run(t, "secret", "activate", "orders", "--wait", "60s")
	if res.Code != 0 || states(b.Client(t, "orders")) != "current previous" {
		t.Errorf("activate: %v", res)
	}
	if got := idp.Refused("second"); got > 2 {
		t.Errorf("the IdP saw it %d times before it took it", got)
	}
	if res := b.Run(t, "secret", "retire", "orders", inState(b.Client(t, "orders"), tokenbrokerv1.SecretState_SECRET_STATE_PREVIOUS)); res.Code != 0 {
		t.Errorf("retire: %v", res)
	}
	if got := states(b.Client(t, "orders")); got != "current retired" {
		t.Errorf("after retiring: %s", got)
	}
}

func TestCompromisedSecretIsWiped(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	redis := redistest.Start(t, redisOptions())
	issuers := fmt.Sprintf("issuers: [{issuer: %q, audiences: [%q]}]\n", idp.Issuer(), idp.Client.Audiences[0])
	clients := strings.Replace(idp.Managed("orders"), fmt.Sprintf("token_url: %q", idp.Issuer()+"/token"), fmt.Sprintf("issuer: %q", idp.Issuer()), 1)
	f := startFleet(t, 2, redisConfig(t, "", redis.Addr())+issuers+clients)
	idp.Takes("leaked", "fresh")
	first, other := f.Replicas[0], f.Replicas[1]
	first.Rotate(t, "leaked")
	old := first.Get(t, "orders").AccessToken
	other.MustVerify(t, "a token before", old, harness.Active)
	rest(t, 1100*time.Millisecond) // tokens tell seconds

	res := first.Rotate(t, "fresh", "--compromised", "--revoke", "--reason", "a test")
	for _, want := range []string{"wiped", "purge", "revocation"} {
		if !strings.Contains(res.Stdout, want) {
			t.Errorf("it does not tell of %q: %v", want, res)
		}
	}
	testkit.Eventually(t, "the purge", func() bool { return other.Get(t, "orders").AccessToken != old })
	testkit.Eventually(t, "the revocation", func() bool { return other.Verify(t, old).Code == harness.Rejected })
	other.MustVerify(t, "a token afterwards", other.Get(t, "orders").AccessToken, harness.Active)
	if got := states(other.Client(t, "orders")); got != "current retired" {
		t.Errorf("the versions: %s", got)
	}
}

func TestClientsAreShown(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	config := fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(t.TempDir(), "broker.db"), "file:"+makeRing(t))
	b := harness.StartBroker(t, config+idp.Managed("orders")+"  files: "+idp.Config(t)+"\n")
	idp.Takes("first", idp.Client.Secrets[0].Reveal())
	before := b.Run(t, "clients")
	if before.Code != 0 || !strings.Contains(before.Stdout, "no secret!") || !strings.Contains(before.Stdout, "idle") {
		t.Errorf("before: %v", before)
	}
	b.Rotate(t, "first")
	b.Get(t, "files")
	after := b.Run(t, "clients")
	if lines := strings.Split(strings.TrimSpace(after.Stdout), "\n"); len(lines) != 3 || !strings.HasPrefix(lines[0], "CLIENT") ||
		!strings.HasPrefix(lines[1], "files ") || !strings.Contains(lines[1], " ok ") || !strings.Contains(lines[2], " in 59m ") {
		t.Errorf("after: %v", after)
	}
	one := b.Run(t, "clients", "orders")
	for _, want := range []string{"managed", "client_secret_basic", "VERSION", "current"} {
		if !strings.Contains(one.Stdout, want) {
			t.Errorf("%q is not in: %v", want, one)
		}
	}
	if res := b.Bring(t, "x", "secret", "rotate", "files"); res.Code == 0 || !strings.Contains(res.Stderr, "change it there") {
		t.Errorf("rotating a file: %v", res)
	}
	if res := b.Run(t, "secret", "rotate", "orders", "a-secret"); res.Code == 0 || !strings.Contains(res.Stderr, "standard input") {
		t.Errorf("a secret as an argument: %v", res)
	}
	if res := b.Bring(t, "", "secret", "rotate", "orders"); res.Code == 0 {
		t.Errorf("no secret: %v", res)
	}
	if res := b.Run(t, "clients", "nobody"); res.Code == 0 {
		t.Errorf("nobody: %v", res)
	}
}

// What is exported can be read by a broker with the same ring, and by nobody else.
func TestSecretBackupAndRestore(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	ring := makeRing(t)
	fresh := func(ring string) *harness.Broker {
		config := fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(t.TempDir(), "broker.db"), "file:"+ring)
		return harness.StartBroker(t, config+idp.Managed("orders"))
	}
	first := fresh(ring)
	idp.Takes("first")
	first.Rotate(t, "first")
	file := filepath.Join(t.TempDir(), "secrets.sealed")
	if res := first.Run(t, "secret", "export", file); res.Code != 0 {
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
	if res := second.Run(t, "secret", "import", file); res.Code != 0 {
		t.Fatalf("import: %v", res)
	}
	second.Get(t, "orders")
	if res := second.Run(t, "secret", "import", file); res.Code == 0 || !strings.Contains(res.Stderr, "it already has a secret") {
		t.Errorf("over what there is: %v", res)
	}
	if res := second.Run(t, "secret", "import", file, "--replace"); res.Code != 0 {
		t.Errorf("replacing: %v", res)
	}
	stranger := fresh(makeRing(t))
	if res := stranger.Run(t, "secret", "import", file); res.Code == 0 || !strings.Contains(res.Stderr, "sealed with a key") {
		t.Errorf("with another ring: %v", res)
	}
}

// Where a terminal is attached a person is asked before something is lost; --yes goes
// without, and so do scripts.
func TestWipeNeedsConfirmation(t *testing.T) {
	t.Parallel()
	harness.Need(t, "script")
	idp := harness.SimpleIdP(t, time.Hour)
	config := fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(t.TempDir(), "broker.db"), "file:"+makeRing(t))
	b := harness.StartBroker(t, config+idp.Managed("orders"))
	idp.Takes("first", "second", "third")
	b.Rotate(t, "first")
	b.Rotate(t, "second")
	secretFile := harness.WriteFile(t, "third", "third")
	onTerminal := func(answer, command string) harness.Result {
		return commandOnTerminal(t, b, answer, command)
	}
	previous := func() string {
		return inState(b.Client(t, "orders"), tokenbrokerv1.SecretState_SECRET_STATE_PREVIOUS)
	}
	retire := "broker secret retire orders " + previous()
	if res := onTerminal("n\n", retire); !strings.Contains(res.Stdout, "will be wiped. Go on? [y/N]") || !strings.Contains(res.Stdout, "cancelled; nothing was changed") || res.Code == 0 || previous() == "" {
		t.Errorf("no: %v", res)
	}
	rotate := "broker secret rotate orders --compromised --file " + secretFile
	if res := onTerminal("\n", rotate); !strings.Contains(res.Stdout, "Go on? [y/N]") || res.Code == 0 || previous() == "" {
		t.Errorf("nothing said: %v", res)
	}
	if res := onTerminal("y\n", retire); res.Code != 0 || previous() != "" {
		t.Errorf("yes: %v", res)
	}
	if res := onTerminal("", rotate+" --yes"); strings.Contains(res.Stdout, "[y/N]") || res.Code != 0 {
		t.Errorf("--yes: %v", res)
	}
	if got := states(b.Client(t, "orders")); got != "current retired retired" {
		t.Errorf("in the end: %s", got)
	}
	if res := onTerminal("fourth\n", "broker secret rotate orders --stage-only"); strings.Contains(res.Stdout, "fourth") || !strings.Contains(res.Stdout, "not shown") || res.Code != 0 {
		t.Errorf("a secret that is typed: %v", res)
	}
}

// commandOnTerminal runs a command that is typed into a terminal.
func commandOnTerminal(t *testing.T, b *harness.Broker, input, line string) harness.Result {
	t.Helper()
	c := b.Command(input)
	c.Name = "script"
	return c.Run(t, "--quiet", "--return", "--echo", "never", "--command", line, os.DevNull)
}
