package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/testkit"
)

const terminate = syscall.SIGTERM

func TestGRPCurlFindsAndCallsTheServiceByReflection(t *testing.T) {
	t.Parallel()
	need(t, "grpcurl")
	idp := startOIDCProvider(t)
	b := startBroker(t, idp.config(t))
	grpcurl := func(args ...string) string {
		t.Helper()
		res := command{name: "grpcurl"}.run(t, append([]string{"-plaintext"}, args...)...)
		if res.code != 0 {
			t.Fatalf("grpcurl %s: %v", strings.Join(args, " "), res)
		}
		return res.stdout
	}
	services := strings.Fields(grpcurl(b.grpc, "list"))
	listed := "\n" + strings.Join(services, "\n") + "\n"
	for _, service := range []string{"tokenbroker.v1.TokenBrokerService", "tokenbroker.v1.AdminService", "grpc.health.v1.Health"} {
		if !strings.Contains(listed, "\n"+service+"\n") {
			t.Errorf("%s is not listed: %v", service, services)
		}
	}
	var got struct{ AccessToken, TokenType, Origin string }
	answer := grpcurl("-d", `{"client_name": "basic"}`, b.grpc, "tokenbroker.v1.TokenBrokerService/GetToken")
	if err := json.Unmarshal([]byte(answer), &got); err != nil || got.TokenType != "Bearer" || got.Origin != "TOKEN_ORIGIN_FETCHED" {
		t.Errorf("GetToken: type %q, origin %q, %v", got.TokenType, got.Origin, err)
	}
	b.mustVerify(t, "the token that grpcurl got", got.AccessToken, active)
	for _, service := range []string{"", "tokenbroker.v1.TokenBrokerService"} {
		health := grpcurl("-d", fmt.Sprintf(`{"service": %q}`, service), b.grpc, "grpc.health.v1.Health/Check")
		if !strings.Contains(health, `"SERVING"`) {
			t.Errorf("health of %q: %s", service, health)
		}
	}
}

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	b := startBroker(t, idp.config(t))
	if res := b.run(t, "healthcheck"); res.code != 0 {
		t.Errorf("of a broker that serves: %v", res)
	}
	b.process.stop(t, terminate)
	if res := b.run(t, "healthcheck"); res.code == 0 {
		t.Errorf("of a broker that is gone: %v", res)
	}
}

func TestTerminationDrains(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	b := startBroker(t, idp.config(t))
	idp.setDelay(t, 2*time.Second)
	call := start(t, t.TempDir(), b.command("").env, "broker", "get", "basic")
	testkit.Eventually(t, "the call is at the IdP", func() bool { return idp.tokenRequests(t) == 1 })

	begin := time.Now()
	if code := b.process.stop(t, terminate); code != 0 {
		t.Errorf("the broker ended with exit code %d", code)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("the broker ended after %v", took)
	}
	<-call.exited
	if code := call.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the call in progress ended with exit code %d", code)
	}
}

func TestDevShowsItsResults(t *testing.T) {
	t.Parallel()
	res := run(t, "dev", "--exit")
	if res.code != 0 {
		t.Fatalf("broker dev --exit: %v", res)
	}
	shown := strings.ToLower(res.stdout)
	for _, want := range []string{"development", "gettoken", "active", "rejected: bad_signature", "prove: the idp issued a token", "activate: in force"} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q is not shown: %v", want, res)
		}
	}
}

// devBroker is a running "broker dev".
type devBroker struct {
	*process

	state   string // directory of the user's state
	address string
	same    command // of the same user
}

// startDev starts "broker dev" with a state directory of its own.
func startDev(t *testing.T) *devBroker {
	t.Helper()
	d := &devBroker{state: t.TempDir(), address: freeAddress(t)}
	env := []string{"XDG_STATE_HOME=" + d.state}
	d.process = start(t, t.TempDir(), env, "broker", "dev", "--addr", d.address, "--http", freeAddress(t))
	d.ready(t, func() bool { return strings.Contains(d.output.String(), "Serving until Ctrl-C") })
	d.same = command{name: "broker", env: append(env, "TOKENBROKER_ADDR="+d.address)}
	return d
}

func TestDevLeavesACredentialThatTheCommandsFind(t *testing.T) {
	t.Parallel()
	d := startDev(t)
	same, address := d.same, d.address
	res := same.run(t, "get", "orders-api")
	if res.code != 0 {
		t.Fatalf("get: %v", res)
	}
	same.input = res.stdout
	if res := same.run(t, "verify", "-"); res.code != active {
		t.Errorf("verify: %v", res)
	}
	if res := same.run(t, "revocations", "list"); res.code != 0 {
		t.Errorf("revocations list: %v", res)
	}
	another := command{name: "broker", env: []string{"XDG_STATE_HOME=" + t.TempDir(), "TOKENBROKER_ADDR=" + address}}
	if res := another.run(t, "get", "orders-api"); res.code == 0 || !strings.Contains(res.stderr, "Unauthenticated") {
		t.Errorf("get by another user: %v", res)
	}

	dir := filepath.Join(d.state, "tokenbroker", "dev")
	file := filepath.Join(dir, strings.ReplaceAll(address, ":", "_")+".token")
	for path, mode := range map[string]os.FileMode{dir: os.ModeDir | 0o700, file: 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	if res := another.run(t, "get", "orders-api", "--token-file", file); res.code != 0 {
		t.Errorf("get by another user with the file: %v", res)
	}
	if code := d.stop(t, terminate); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// The commands that broker dev prints work as they stand.
func TestDevPrintsCommandsThatWork(t *testing.T) {
	t.Parallel()
	need(t, "grpcurl")
	need(t, "curl")
	d := startDev(t)
	answers := []string{"eyJ", `"scopes":[`, "active", "which it replaces, is kept to fall back to", "previous", `"accessToken"`, `"access_token"`, "X-Auth-Issuer: http://127.0.0.1:"}
	_, after, _ := strings.Cut(d.output.String(), "In another terminal:")
	commands := regexp.MustCompile("(?m)^  .*$").FindAllString(after, -1)
	if len(commands) != len(answers) {
		t.Fatalf("%d commands:\n%s", len(commands), d.output)
	}
	for i, line := range commands {
		shell := command{name: "sh", env: d.same.env}
		if res := shell.run(t, "-c", strings.ReplaceAll(line, "go run ./cmd/broker", "broker")); res.code != 0 || !strings.Contains(res.stdout, answers[i]) {
			t.Errorf("%s: %v", line, res)
		}
	}
}

func TestDevMakesCertificatesToTryTLSWith(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "tls")
	if res := run(t, "dev", "--certificates", dir, "--host", "broker.internal"); res.code != 0 {
		t.Fatalf("dev --certificates: %v", res)
	}
	if res := run(t, "dev", "--certificates", dir); res.code == 0 || !strings.Contains(res.stderr, "is there already") {
		t.Errorf("in the same directory again: %v", res)
	}
	idp := simpleIdP(t, time.Hour)
	b := &broker{grpc: freeAddress(t), ops: freeAddress(t)}
	b.file = writeFile(t, "broker.yaml", fmt.Sprintf(`
listen: {grpc: %q, ops: %q, tls: {cert: %[3]s/broker.crt, key: %[3]s/broker.key, client_ca: %[3]s/ca.crt}}
callers: [{name: demo, spiffe_id: "spiffe://example.com/demo", roles: [all]}]
roles: {all: {get: [{client: "*"}]}}
`, b.grpc, b.ops, dir)+clientsConfig(t, map[string]*countingIdP{"orders": idp}))
	b.launch(t, "broker")
	b.await(t)
	cli := command{name: "broker", env: []string{"TOKENBROKER_ADDR=" + b.grpc}}
	mine := []string{"--ca", dir + "/ca.crt", "--cert", dir + "/demo.crt", "--key", dir + "/demo.key"}
	for name, tt := range map[string]struct {
		args []string
		says string // empty: it works
	}{
		"by its certificate":          {mine, ""},
		"under the name of the host":  {append(mine, "--server-name", "broker.internal"), ""},
		"under another name":          {append(mine, "--server-name", "other.internal"), "certificate is valid for localhost, broker.internal"},
		"without a certificate":       {mine[:2], "Unauthenticated"},
		"without trust in the broker": {[]string{"--plaintext=false"}, "unknown authority"},
	} {
		res := cli.run(t, append([]string{"get", "orders"}, tt.args...)...)
		if (res.code == 0) != (tt.says == "") || !strings.Contains(res.stderr, tt.says) {
			t.Errorf("get %s: %v", name, res)
		}
	}
	cli.env = append(cli.env, "TOKENBROKER_CA="+dir+"/ca.crt")
	if res := cli.run(t, "healthcheck"); res.code != 0 { // needs no caller
		t.Errorf("healthcheck: %v", res)
	}
}

func TestCheckConfig(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	config := idp.config(t)
	file := writeFile(t, "broker.yaml", config)
	idp.reset(t)
	if res := run(t, "check-config", file); res.code != 0 {
		t.Errorf("of a good file: %v", res)
	}
	if paths := idp.requests(t).Paths; len(paths) != 0 {
		t.Errorf("without --live the IdP was asked: %v", paths)
	}
	if res := run(t, "check-config", file, "--live"); res.code != 0 {
		t.Errorf("live: %v", res)
	}
	if paths := idp.requests(t).Paths; paths["/jwks"] == 0 || paths["/.well-known/openid-configuration"] == 0 || paths["/token"] != 0 {
		t.Errorf("--live asked the IdP for %v", paths)
	}
	idp.stop(t)
	if res := run(t, "check-config", file, "--live"); res.code == 0 {
		t.Errorf("live, with the IdP down: %v", res)
	}

	bad := writeFile(t, "broker.yaml", config+"clientz: {}\n")
	want := fmt.Sprintf("%s:%d:", bad, strings.Count(config, "\n")+1)
	if res := run(t, "check-config", bad); res.code == 0 || !strings.Contains(res.stderr, want) || !strings.Contains(res.stderr, "clientz") {
		t.Errorf("of a file with an unknown key, want %s: %v", want, res)
	}
}

// Scripts take exit code 1 for a rejection, so nothing else may exit with it.
func TestAVerifyThatIsCalledWronglyIsNotARejection(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"no token":         {"verify"},
		"two tokens":       {"verify", "a", "b"},
		"unknown flag":     {"verify", "a", "--nonsense"},
		"no such broker":   {"verify", "a", "--addr", "127.0.0.1:1"},
		"nothing on stdin": {"verify", "-"},
	} {
		if res := run(t, args...); res.code != undecided || res.stderr == "" {
			t.Errorf("%s: %v", name, res)
		}
	}
}
