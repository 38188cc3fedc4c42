package e2e_test

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
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/redact/redacttest"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// No secret is in any answer, log, metric, command line or backup, nor in what Redis
// shows and has on disk, whatever is done with secrets.
func TestNoSecretIsSeenWhateverIsDoneWithIt(t *testing.T) {
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
	idp := startIdP(t, time.Hour, devidp.Client{
		ID: "abc", Secrets: []redact.String{redact.New("unused")}, Scopes: []string{"read"}, Audiences: audiences(1),
	})
	idp.takes(good...)
	options := redisOptions()
	options.AppendOnly = true
	options.Config = []string{"slowlog-log-slower-than 0", "slowlog-max-len 100000"}
	options.ACL[0] += " +info +wait"
	server := redistest.Start(t, options)
	monitored := server.Monitor()
	f := startFleet(t, 2, "log: {level: debug}\n"+redisConfig(t, "", server.Addr())+idp.managed("orders"))
	first, second := f.replicas[0], f.replicas[1]

	told := redacttest.Places{}
	note := func(what string, res result) {
		told["answer to "+what] += res.stdout + res.stderr
	}
	rotate := func(name string, args ...string) {
		t.Helper()
		note("rotate "+name, first.bring(t, secrets[name], append([]string{"secret", "rotate", "orders"}, args...)...))
	}
	rotate("first")
	rotate("second", "--json")
	rotate("wrong")
	rotate("staged", "--stage-only")
	rotate("third") // another one is staged
	note("activate", second.run(t, "secret", "activate", "orders"))
	rotate("third", "--request-id", "a-b-c")
	rotate("first", "--request-id", "a-b-c") // used for another
	note("rollback", second.run(t, "secret", "rollback", "orders"))
	note("retire", second.run(t, "secret", "retire", "orders", "00000000"))
	rotate("compromised", "--compromised")
	note("purge", first.run(t, "purge", "orders"))
	note("clients", first.run(t, "clients"))
	note("a client", second.run(t, "clients", "orders"))
	note("a client in JSON", second.run(t, "clients", "orders", "--json"))
	file := filepath.Join(t.TempDir(), "secrets.sealed")
	note("export", first.run(t, "secret", "export", file))
	note("import", second.run(t, "secret", "import", file, "--replace"))
	note("a broken import", second.run(t, "secret", "import", writeFile(t, "broken", fmt.Sprintf(`{"v":1,"clients":{"orders":%q}}`, "Y2FuYXJ5"))))
	first.get(t, "orders")
	if content, err := os.ReadFile(file); err != nil {
		t.Error(err)
	} else {
		told["the backup"] = string(content)
	}
	told["the command line"] = first.commandLine(t, idp, secrets["second"])
	maps.Copy(told, everythingOf(t, f.replicas))
	for place, text := range everythingIn(t, server, monitored) {
		told["Redis: "+place] = text
	}

	for name, secret := range secrets {
		if found := told.Of(secret); found != nil {
			t.Errorf("the %s secret is in %v", name, found)
		}
	}
	if !strings.Contains(told["log of replica 0"], "a client's secret: a step") || !strings.Contains(told["Redis: values"], "TB1") || !strings.Contains(told["answer to rotate wrong"], "FAILED") {
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
func (b *broker) commandLine(t *testing.T, idp *countingIdP, secret string) string {
	t.Helper()
	idp.SetDelay(5 * time.Second)
	defer idp.SetDelay(0)
	before := idp.calls()
	c := b.command("")
	cmd := exec.Command("broker", "secret", "rotate", "orders")
	cmd.Env = environment(c.env...)
	cmd.Stdin = strings.NewReader(secret + "\n")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	testkit.Eventually(t, "the proof is at the IdP", func() bool { return idp.calls() > before })
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
