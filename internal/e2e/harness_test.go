package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// patience is how long a test waits for what must come, on a slow machine.
const patience = 60 * time.Second

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

// testMain builds the broker and puts it first in the PATH, the tools that the
// Makefile builds second.
func testMain(m *testing.M) int {
	if address := os.Getenv(bareVariable); address != "" {
		return failed(serveBare(address))
	}
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		return failed(err)
	}
	dir, err := os.MkdirTemp("", "tokenbroker-e2e-")
	if err != nil {
		return failed(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "broker"), "./cmd/broker")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return failed(fmt.Errorf("building the broker: %w\n%s", err, out))
	}
	path := []string{dir, filepath.Join(root, "bin", "tools"), os.Getenv("PATH")}
	if err := os.Setenv("PATH", strings.Join(path, string(os.PathListSeparator))); err != nil {
		return failed(err)
	}
	return m.Run()
}

func failed(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// need skips a test whose peer is not installed and says how to install it. In
// CI nothing may be missing.
func need(t *testing.T, peer string) {
	t.Helper()
	var err error
	var install string
	switch peer {
	case "oidc-provider":
		_, err = os.Stat(filepath.Join("oidc-provider", "node_modules", "oidc-provider"))
		install = "npm ci --prefix internal/e2e/oidc-provider"
	case "node":
		_, err = exec.LookPath(peer)
		install = "apt-get install nodejs npm (version 20 or later)"
	case "redis-server", "nginx", "caddy", "haproxy", "curl":
		_, err = exec.LookPath(peer)
		install = "apt-get install " + peer
	case "python3-authlib":
		err = exec.Command("/usr/bin/python3", "-c", "import authlib, requests, grpc, google.protobuf").Run()
		install = "apt-get install python3-authlib python3-requests python3-grpcio python3-protobuf"
	case "grpc_python_plugin":
		_, err = exec.LookPath(peer)
		install = "apt-get install protobuf-compiler protobuf-compiler-grpc"
	case "script":
		_, err = exec.LookPath(peer)
		install = "apt-get install bsdutils"
	case "glewlwyd":
		err = glewlwydIsInstalled()
		install = "apt-get install glewlwyd dbconfig-no-thanks sqlite3"
	case "grpcurl", "zitadelop":
		_, err = exec.LookPath(peer)
		install = "make bin/tools/" + peer
	default:
		t.Fatalf("the harness does not know the peer %s", peer)
	}
	if err == nil {
		return
	}
	message := fmt.Sprintf("%s is not installed. Install it: %s", peer, install)
	if os.Getenv("CI") == "true" {
		t.Fatal(message)
	}
	t.Skip(message)
}

func freeAddress(t *testing.T) string {
	t.Helper()
	return "127.0.0.1:" + strconv.Itoa(redistest.FreePort(t))
}

// fetch makes an HTTP request; the caller closes the body.
func fetch(t *testing.T, client *http.Client, method, address string, body io.Reader) (*http.Response, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, address, body)
	if err != nil {
		t.Fatal(err)
	}
	return client.Do(request)
}

// answers reports whether a GET is answered with 200.
func answers(t *testing.T, client *http.Client, address string) bool {
	t.Helper()
	response, err := fetch(t, client, http.MethodGet, address, nil)
	if err != nil {
		return false
	}
	return response.Body.Close() == nil && response.StatusCode == http.StatusOK
}

// last returns the last bytes of a text.
func last(text string, size int) string {
	if len(text) <= size {
		return text
	}
	return "...\n" + text[len(text)-size:]
}

// process is a server that runs while a test runs.
type process struct {
	name   string
	cmd    *exec.Cmd
	output *testkit.Log
	exited chan struct{}
}

// start starts a server in dir. It is stopped when the test ends, and what it
// printed is shown if the test failed.
func start(t *testing.T, dir string, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{name: name, cmd: exec.Command(name, args...), output: &testkit.Log{}, exited: make(chan struct{})}
	p.cmd.Dir = dir
	p.cmd.Env = environment(env...)
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.WaitDelay = 5 * time.Second
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // ProcessState says how it ended
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.stop(t, os.Kill)
		if t.Failed() {
			t.Logf("%s (pid %d) ended with %v and had printed:\n%s", name, p.cmd.Process.Pid, p.cmd.ProcessState, last(p.output.String(), 16<<10))
		}
	})
	return p
}

// stop sends the signal, waits for the end and returns the exit code, -1 if a
// signal ended the process.
func (p *process) stop(t *testing.T, signal os.Signal) int {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("stopping %s: %v", p.name, err)
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode()
	case <-timer.C:
		_ = p.cmd.Process.Kill()
		t.Errorf("%s did not end within %v of %v", p.name, patience, signal)
		<-p.exited
		return -1
	}
}

// ready waits until done reports true, and fails at once if the process ends
// before.
func (p *process) ready(t *testing.T, done func() bool) {
	t.Helper()
	testkit.Eventually(t, p.name+" is ready", func() bool {
		select {
		case <-p.exited:
			t.Fatalf("%s ended at its start: %v", p.name, p.cmd.ProcessState)
		default:
		}
		return done()
	})
}

// environment is that of the test without settings for the broker that happen
// to be there, and with more.
func environment(more ...string) []string {
	inherited := slices.DeleteFunc(os.Environ(), func(setting string) bool {
		return strings.HasPrefix(setting, "TOKENBROKER_")
	})
	return append(inherited, more...)
}

// result is what came of a command.
type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\nstdout: %s\nstderr: %s", r.code, r.stdout, r.stderr)
}

// command is a program that is run to its end.
type command struct {
	name  string
	env   []string
	input string
}

func (c command) run(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, c.name, args...)
	cmd.Dir = t.TempDir()
	cmd.Env = environment(c.env...)
	cmd.Stdin = strings.NewReader(c.input)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if failure := (*exec.ExitError)(nil); ctx.Err() != nil || err != nil && !errors.As(err, &failure) {
		t.Fatalf("%s %s: %v\n%s", c.name, strings.Join(args, " "), errors.Join(err, ctx.Err()), stderr.String())
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// run runs the broker's command line where no broker is to be called.
func run(t *testing.T, args ...string) result {
	t.Helper()
	return command{name: "broker"}.run(t, args...)
}
