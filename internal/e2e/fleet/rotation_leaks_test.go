package fleet

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/redact/redacttest"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// No secret is in any answer, log, metric, command line or backup, nor in what Redis
// shows and has on disk, whatever is done with secrets.
func TestSealedFleetLeaksNoSecret(t *testing.T) {
	t.Parallel()
	names := []string{"first", "second", "third", "staged", "wrong", "compromised"}
	secrets := map[string]string{}
	var good []string
	for _, name := range names {
		secrets[name] = redacttest.Canary(name)
		if name != "wrong" {
			good = append(good, secrets[name])
		}
	}
	idp := harness.StartIdP(t, time.Hour, devidp.Client{
		ID: "abc", Secrets: []redact.String{redact.New("unused")}, Scopes: []string{"read"}, Audiences: harness.Audiences(1),
	})
	idp.Takes(good...)
	options := redisOptions()
	options.AppendOnly = true
	options.Config = []string{"slowlog-log-slower-than 0", "slowlog-max-len 100000"}
	options.ACL[0] += " +info +wait"
	server := redistest.Start(t, options)
	monitored := server.Monitor()
	f := startFleet(t, 2, "log: {level: debug}\n"+redisConfig(t, "", server.Addr())+idp.Managed("orders"))
	first, second := f.Replicas[0], f.Replicas[1]

	told := redacttest.Places{}
	note := func(what string, res harness.Result) {
		told["answer to "+what] += res.Stdout + res.Stderr
	}
	rotate := func(name string, args ...string) {
		t.Helper()
		note("rotate "+name, first.Bring(t, secrets[name], append([]string{"secret", "rotate", "orders"}, args...)...))
	}
	rotate("first")
	rotate("second", "--json")
	rotate("wrong")
	rotate("staged", "--stage-only")
	rotate("third") // another one is staged
	note("activate", second.Run(t, "secret", "activate", "orders"))
	rotate("third", "--request-id", "a-b-c")
	rotate("first", "--request-id", "a-b-c") // used for another
	note("rollback", second.Run(t, "secret", "rollback", "orders"))
	note("retire", second.Run(t, "secret", "retire", "orders", "00000000"))
	rotate("compromised", "--compromised")
	note("purge", first.Run(t, "purge", "orders"))
	note("clients", first.Run(t, "clients"))
	note("a client", second.Run(t, "clients", "orders"))
	note("a client in JSON", second.Run(t, "clients", "orders", "--json"))
	file := filepath.Join(t.TempDir(), "secrets.sealed")
	note("export", first.Run(t, "secret", "export", file))
	note("import", second.Run(t, "secret", "import", file, "--replace"))
	note("a broken import", second.Run(t, "secret", "import", harness.WriteFile(t, "broken", fmt.Sprintf(`{"v":1,"clients":{"orders":%q}}`, "Y2FuYXJ5"))))
	first.Get(t, "orders")
	if content, err := os.ReadFile(file); err != nil {
		t.Error(err)
	} else {
		told["the backup"] = string(content)
	}
	told["the command line"] = commandLineOf(t, first.Broker, idp, secrets["second"])
	maps.Copy(told, everythingOf(t, f.Replicas))
	for place, text := range everythingIn(t, server, monitored) {
		told["Redis: "+place] = text
	}

	for name, secret := range secrets {
		if found := told.Of(secret); found != nil {
			t.Errorf("the %s secret is in %v", name, found)
		}
	}
	if !strings.Contains(told["log of replica 0"], "secret rotation step") || !strings.Contains(told["Redis: values"], "TB1") || !strings.Contains(told["answer to rotate wrong"], "FAILED") {
		t.Error("the flows did not happen")
	}
	// The search finds what there is.
	told["planted"] = "x" + secrets["third"] + "x"
	if got := told.Of(secrets["third"]); !slices.Equal(got, []string{"planted"}) {
		t.Errorf("what was planted was found in %v", got)
	}
	delete(told, "planted")
	t.Logf("searched for %d secrets in %d places, %d bytes", len(secrets), len(told), told.Size())
}

// commandLine is what the system shows of a rotation that is under way: arguments and
// environment.
func commandLineOf(t *testing.T, b *harness.Broker, idp *harness.CountingIdP, secret string) string {
	t.Helper()
	idp.SetDelay(5 * time.Second)
	defer idp.SetDelay(0)
	before := idp.Calls()
	c := b.Command("")
	cmd := exec.Command("broker", "secret", "rotate", "orders")
	cmd.Env = harness.Environment(c.Env...)
	cmd.Stdin = strings.NewReader(secret + "\n")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	testkit.Eventually(t, "the proof is at the IdP", func() bool { return idp.Calls() > before })
	var shown strings.Builder
	for _, file := range []string{"cmdline", "environ"} {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", cmd.Process.Pid, file))
		if err != nil {
			t.Fatal(err)
		}
		shown.Write(content)
	}
	if !strings.Contains(shown.String(), "rotate") {
		t.Error("the system shows nothing of the command")
	}
	return shown.String()
}
