package fleet

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/redact/redacttest"
)

// allowCores lets processes that a test starts dump their memory, as far as it is
// for this process to say.
func allowCores(t *testing.T) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &before); err != nil {
		t.Fatal(err)
	}
	for _, wanted := range []unix.Rlimit{{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}, {Cur: before.Max, Max: before.Max}} {
		if unix.Setrlimit(unix.RLIMIT_CORE, &wanted) == nil {
			break
		}
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_CORE, &before) })
}

// dumped reports whether the kernel says that it dumped a process that ended by a
// signal.
func dumped(t *testing.T, state *os.ProcessState) bool {
	t.Helper()
	status, ok := state.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() {
		t.Fatalf("no signal ended it: %v", state)
	}
	return status.CoreDump()
}

func coresIn(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "core*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A broker that is made to abort leaves nothing of its memory behind, and shows
// nothing of it while it runs.
func TestBrokerMemoryIsNotDumped(t *testing.T) {
	allowCores(t)
	secret := redacttest.Canary("secret")
	idp := harness.StartIdP(t, time.Hour, devidp.Client{ID: "orders", Secrets: []redact.String{redact.New(secret)}, Scopes: []string{"read"}, Audiences: []string{"https://orders.example.com"}})
	b := harness.NewBroker(t, "server: {pprof: true}\n"+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}))
	b.Launch(t, "broker", "GOTRACEBACK=crash") // it aborts where it would exit
	b.Await(t)
	b.Get(t, "orders")

	proc := fmt.Sprintf("/proc/%d/", b.Process.Cmd.Process.Pid)
	limits, err := os.ReadFile(proc + "limits")
	if err != nil || !regexp.MustCompile(`(?m)^Max core file size\s+0\s+0\s`).Match(limits) {
		t.Errorf("%v: %s", err, limits)
	}
	// What cannot be dumped is root's, which shows where this test is not.
	if info, err := os.Stat(proc + "environ"); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("its memory is of user %d, %v", info.Sys().(*syscall.Stat_t).Uid, err)
	}
	for _, place := range []string{"cmdline", "environ"} {
		if content, err := os.ReadFile(proc + place); err != nil || len(content) == 0 || strings.Contains(string(content), secret) {
			t.Errorf("%s: %v, or the secret is in it", place, err)
		}
	}
	// What is served about the process goes on to be.
	client := &http.Client{Timeout: harness.Patience}
	defer client.CloseIdleConnections()
	for _, path := range []string{"/metrics", "/debug/pprof/goroutine?debug=2", "/debug/pprof/profile?seconds=1"} {
		if !harness.Answers(t, client, "http://"+b.Ops+path) {
			t.Errorf("%s is not served", path)
		}
	}
	if res := b.Run(t, "healthcheck"); res.Code != 0 {
		t.Errorf("healthcheck: %v", res)
	}

	b.Process.Stop(t, syscall.SIGQUIT)
	if !strings.Contains(b.Process.Output.String(), "SIGQUIT: quit") {
		t.Errorf("it did not crash: %v", b.Process.Cmd.ProcessState)
	}
	if cores := coresIn(t, filepath.Dir(b.File)); dumped(t, b.Process.Cmd.ProcessState) || len(cores) > 0 {
		t.Errorf("it was dumped: %v, %v", b.Process.Cmd.ProcessState, cores)
	}
	if strings.Contains(b.Process.Output.String(), secret) {
		t.Error("the secret is in what it printed when it crashed")
	}
}

// The test above can fail: a process that does nothing about it is dumped here.
func TestOtherProcessesCanBeDumped(t *testing.T) {
	allowCores(t)
	cmd := exec.Command("sleep", "60")
	cmd.Dir = t.TempDir()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if !dumped(t, cmd.ProcessState) {
		t.Skip("no process is dumped on this machine: that a broker is not says nothing here")
	}
}
