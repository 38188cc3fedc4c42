// Package harness starts brokers, identity providers and Redis servers for the
// end-to-end tests.
package harness

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
	"syscall"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// Patience is how long a test waits for what must come, on a slow machine.
const Patience = 60 * time.Second

// Main runs the tests of a package, with the broker's binary first in the PATH and the
// tools that the Makefile builds second. It builds the binary, unless the environment
// names a directory with one.
func Main(m *testing.M) int {
	root, err := filepath.Abs(filepath.Join("..", "..", ".."))
	if err != nil {
		return failed(err)
	}
	dir := os.Getenv(binVariable)
	if dir == "" {
		if dir, err = os.MkdirTemp("", "tokenbroker-e2e-"); err != nil {
			return failed(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		build := exec.Command("go", "build", "-o", filepath.Join(dir, "broker"), "./cmd/broker")
		build.Dir = root
		if out, err := build.CombinedOutput(); err != nil {
			return failed(fmt.Errorf("building the broker: %w\n%s", err, out))
		}
	}
	path := []string{dir, filepath.Join(root, "bin", "tools"), os.Getenv("PATH")}
	if err := os.Setenv("PATH", strings.Join(path, string(os.PathListSeparator))); err != nil {
		return failed(err)
	}
	return m.Run()
}

// binVariable names a directory with the broker's binary, which make test builds once.
const binVariable = "TOKENBROKER_E2E_BIN"

func failed(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// Need skips a test whose peer is not installed and says how to install it. In
// CI nothing may be missing.
func Need(t *testing.T, peer string) {
	t.Helper()
	var err error
	var install string
	switch peer {
	case "oidc-provider":
		_, err = os.Stat(filepath.Join("..", "oidc-provider", "node_modules", "oidc-provider"))
		install = "npm ci --prefix internal/e2e/oidc-provider"
	case "openid-client":
		_, err = os.Stat(filepath.Join("..", "openid-client", "node_modules", "openid-client"))
		install = "npm ci --prefix internal/e2e/openid-client"
	case "mcp-sdk":
		_, err = os.Stat(filepath.Join("..", "mcp-sdk", "node_modules", "@modelcontextprotocol", "sdk"))
		install = "npm ci --prefix internal/e2e/mcp-sdk"
	case "playwright-core":
		_, err = os.Stat(filepath.Join("..", "browser", "node_modules", "playwright-core"))
		install = "npm ci --prefix internal/e2e/browser"
	case "node":
		_, err = exec.LookPath(peer)
		install = "apt-get install nodejs npm (version 20 or later)"
	case "redis-server", "nginx", "caddy", "haproxy", "curl", "chromium":
		_, err = exec.LookPath(peer)
		install = "apt-get install " + peer
	case "python3-authlib":
		err = exec.Command("/usr/bin/python3", "-c", "import authlib, requests, grpc, google.protobuf").Run()
		install = "apt-get install python3-authlib python3-requests python3-grpcio python3-protobuf"
	case "grpc_python_plugin":
		_, err = exec.LookPath(peer)
		install = "apt-get install protobuf-compiler protobuf-compiler-grpc"
	case "promtool", "prometheus":
		_, err = exec.LookPath(peer)
		install = "apt-get install prometheus"
	case "script":
		_, err = exec.LookPath(peer)
		install = "apt-get install bsdutils"
	case "glewlwyd":
		err = glewlwydIsInstalled()
		install = "apt-get install glewlwyd dbconfig-no-thanks sqlite3"
	case "broker-earlier":
		_, err = exec.LookPath(peer)
		install = "make bin/tools/broker-earlier (in a clone that is not shallow)"
	case "grpcurl", "toxiproxy-server", "zitadelop":
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

func FreeAddress(t *testing.T) string {
	t.Helper()
	return "127.0.0.1:" + strconv.Itoa(redistest.FreePort(t))
}

// Fetch makes an HTTP request; the caller closes the body.
func Fetch(t *testing.T, client *http.Client, method, address string, body io.Reader) (*http.Response, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, address, body)
	if err != nil {
		t.Fatal(err)
	}
	return client.Do(request)
}

// Answers reports whether a GET is answered with 200.
func Answers(t *testing.T, client *http.Client, address string) bool {
	t.Helper()
	response, err := Fetch(t, client, http.MethodGet, address, nil)
	if err != nil {
		return false
	}
	return response.Body.Close() == nil && response.StatusCode == http.StatusOK
}

// Start starts a server in dir, with more of the environment. It is stopped when the
// test ends.
func Start(t *testing.T, dir string, env []string, name string, args ...string) *testkit.Process {
	t.Helper()
	return testkit.Launch(t, dir, Environment(env...), name, args...)
}

// Environment is that of the test without settings for the broker that happen
// to be there, and with more.
func Environment(more ...string) []string {
	inherited := slices.DeleteFunc(os.Environ(), func(setting string) bool {
		return strings.HasPrefix(setting, "TOKENBROKER_")
	})
	return append(inherited, more...)
}

// Result is what came of a command.
type Result struct {
	Stdout, Stderr string
	Code           int
}

func (r Result) String() string {
	return fmt.Sprintf("exit code %d\nstdout: %s\nstderr: %s", r.Code, r.Stdout, r.Stderr)
}

// Command is a program that is run to its end.
type Command struct {
	Name  string
	Env   []string
	Input string
}

func (c Command) Run(t *testing.T, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, c.Name, args...)
	cmd.Dir = t.TempDir()
	cmd.Env = Environment(c.Env...)
	cmd.Stdin = strings.NewReader(c.Input)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if failure := (*exec.ExitError)(nil); ctx.Err() != nil || err != nil && !errors.As(err, &failure) {
		t.Fatalf("%s %s: %v\n%s", c.Name, strings.Join(args, " "), errors.Join(err, ctx.Err()), stderr.String())
	}
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// Run runs the broker's command line where no broker is to be called.
func Run(t *testing.T, args ...string) Result {
	t.Helper()
	return Command{Name: "broker"}.Run(t, args...)
}

const GlewlwydSchema = "/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3"

// glewlwydIsInstalled reports the first thing that is missing.
func glewlwydIsInstalled() error {
	for _, program := range []string{"glewlwyd", "sqlite3"} {
		if _, err := exec.LookPath(program); err != nil {
			return err
		}
	}
	_, err := os.Stat(GlewlwydSchema)
	return err
}

const Terminate = syscall.SIGTERM

// Must makes what cannot fail where tests run.
func Must[T any](made T, err error) T {
	if err != nil {
		panic(err)
	}
	return made
}

func IsLong() bool { return os.Getenv("TOKENBROKER_LONG") != "" }
