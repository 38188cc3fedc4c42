package deploy

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

func TestGRPCurlUsesReflection(t *testing.T) {
	t.Parallel()
	harness.Need(t, "grpcurl")
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, idp.Config(t))
	grpcurl := func(args ...string) string {
		t.Helper()
		res := harness.Command{Name: "grpcurl"}.Run(t, append([]string{"-plaintext"}, args...)...)
		if res.Code != 0 {
			t.Fatalf("grpcurl %s: %v", strings.Join(args, " "), res)
		}
		return res.Stdout
	}
	services := strings.Fields(grpcurl(b.Grpc, "list"))
	listed := "\n" + strings.Join(services, "\n") + "\n"
	for _, service := range []string{"tokenbroker.v1.TokenBrokerService", "tokenbroker.v1.AdminService", "grpc.health.v1.Health"} {
		if !strings.Contains(listed, "\n"+service+"\n") {
			t.Errorf("%s is not listed: %v", service, services)
		}
	}
	var got struct{ AccessToken, TokenType, Origin string }
	answer := grpcurl("-d", `{"client_name": "basic"}`, b.Grpc, "tokenbroker.v1.TokenBrokerService/GetToken")
	if err := json.Unmarshal([]byte(answer), &got); err != nil || got.TokenType != "Bearer" || got.Origin != "TOKEN_ORIGIN_FETCHED" {
		t.Errorf("GetToken: type %q, origin %q, %v", got.TokenType, got.Origin, err)
	}
	b.MustVerify(t, "the token that grpcurl got", got.AccessToken, harness.Active)
	for _, service := range []string{"", "tokenbroker.v1.TokenBrokerService"} {
		health := grpcurl("-d", fmt.Sprintf(`{"service": %q}`, service), b.Grpc, "grpc.health.v1.Health/Check")
		if !strings.Contains(health, `"SERVING"`) {
			t.Errorf("health of %q: %s", service, health)
		}
	}
}

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, idp.Config(t))
	if res := b.Run(t, "healthcheck"); res.Code != 0 {
		t.Errorf("of a broker that serves: %v", res)
	}
	b.Process.Stop(t, harness.Terminate)
	if res := b.Run(t, "healthcheck"); res.Code == 0 {
		t.Errorf("of a broker that is gone: %v", res)
	}
}

func TestTerminationDrains(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, idp.Config(t))
	idp.SetDelay(t, 2*time.Second)
	call := harness.Start(t, t.TempDir(), b.Command("").Env, "broker", "get", "basic")
	testkit.Eventually(t, "the call is at the IdP", func() bool { return idp.TokenRequests(t) == 1 })

	begin := time.Now()
	if code := b.Process.Stop(t, harness.Terminate); code != 0 {
		t.Errorf("the broker ended with exit code %d", code)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("the broker ended after %v", took)
	}
	<-call.Exited
	if code := call.Cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the call in progress ended with exit code %d", code)
	}
}

func TestDevShowsItsResults(t *testing.T) {
	t.Parallel()
	res := harness.Run(t, "dev", "--exit")
	if res.Code != 0 {
		t.Fatalf("broker dev --exit: %v", res)
	}
	shown := strings.ToLower(res.Stdout)
	for _, want := range []string{"development", "gettoken", "active", "rejected: bad_signature", "prove: the idp issued a token", "activate: active"} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q is not shown: %v", want, res)
		}
	}
}

// devBroker is a running "broker dev".
type devBroker struct {
	*testkit.Process

	state   string // directory of the user's state
	address string
	same    harness.Command // of the same user
}

// startDev starts "broker dev" with a state directory of its own.
func startDev(t *testing.T) *devBroker {
	t.Helper()
	d := &devBroker{state: t.TempDir(), address: harness.FreeAddress(t)}
	env := []string{"XDG_STATE_HOME=" + d.state}
	d.Process = harness.Start(t, t.TempDir(), env, "broker", "dev", "--addr", d.address, "--http", harness.FreeAddress(t))
	d.Ready(t, func() bool { return strings.Contains(d.Output.String(), "Serving until Ctrl-C") })
	d.same = harness.Command{Name: "broker", Env: append(env, "TOKENBROKER_ADDR="+d.address)}
	return d
}

func TestDevCredentialIsUsedByCommands(t *testing.T) {
	t.Parallel()
	d := startDev(t)
	same, address := d.same, d.address
	res := same.Run(t, "get", "orders-api")
	if res.Code != 0 {
		t.Fatalf("get: %v", res)
	}
	same.Input = res.Stdout
	if res := same.Run(t, "verify", "-"); res.Code != harness.Active {
		t.Errorf("verify: %v", res)
	}
	if res := same.Run(t, "revocations", "list"); res.Code != 0 {
		t.Errorf("revocations list: %v", res)
	}
	another := harness.Command{Name: "broker", Env: []string{"XDG_STATE_HOME=" + t.TempDir(), "TOKENBROKER_ADDR=" + address}}
	if res := another.Run(t, "get", "orders-api"); res.Code == 0 || !strings.Contains(res.Stderr, "Unauthenticated") {
		t.Errorf("get by another user: %v", res)
	}

	dir := filepath.Join(d.state, "tokenbroker", "dev")
	file := filepath.Join(dir, strings.ReplaceAll(address, ":", "_")+".token")
	for path, mode := range map[string]os.FileMode{dir: os.ModeDir | 0o700, file: 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	if res := another.Run(t, "get", "orders-api", "--token-file", file); res.Code != 0 {
		t.Errorf("get by another user with the file: %v", res)
	}
	if code := d.Stop(t, harness.Terminate); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// The commands that broker dev prints work as they stand.
func TestDevPrintsCommandsThatWork(t *testing.T) {
	t.Parallel()
	harness.Need(t, "grpcurl")
	harness.Need(t, "curl")
	d := startDev(t)
	answers := []string{"eyJ", `"scopes":[`, "active", "which it replaces, is kept as a fallback", "previous", `"accessToken"`, `"access_token"`, "X-Auth-Issuer: http://127.0.0.1:"}
	_, after, _ := strings.Cut(d.Output.String(), "In another terminal:")
	commands := regexp.MustCompile("(?m)^  .*$").FindAllString(after, -1)
	if len(commands) != len(answers) {
		t.Fatalf("%d commands:\n%s", len(commands), d.Output)
	}
	for i, line := range commands {
		shell := harness.Command{Name: "sh", Env: d.same.Env}
		if res := shell.Run(t, "-c", strings.ReplaceAll(line, "go run ./cmd/broker", "broker")); res.Code != 0 || !strings.Contains(res.Stdout, answers[i]) {
			t.Errorf("%s: %v", line, res)
		}
	}
}

func TestDevCreatesCertificates(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "tls")
	if res := harness.Run(t, "dev", "--certificates", dir, "--host", "broker.internal"); res.Code != 0 {
		t.Fatalf("dev --certificates: %v", res)
	}
	if res := harness.Run(t, "dev", "--certificates", dir); res.Code == 0 || !strings.Contains(res.Stderr, "already exists") {
		t.Errorf("in the same directory again: %v", res)
	}
	idp := harness.SimpleIdP(t, time.Hour)
	b := &harness.Broker{Grpc: harness.FreeAddress(t), Ops: harness.FreeAddress(t)}
	b.File = harness.WriteFile(t, "broker.yaml", fmt.Sprintf(`
listen: {grpc: %q, ops: %q, tls: {cert: %[3]s/broker.crt, key: %[3]s/broker.key, client_ca: %[3]s/ca.crt}}
callers: [{name: demo, spiffe_id: "spiffe://example.com/demo", roles: [all]}]
roles: {all: {get: [{client: "*"}]}}
`, b.Grpc, b.Ops, dir)+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}))
	b.Launch(t, "broker")
	b.Await(t)
	cli := harness.Command{Name: "broker", Env: []string{"TOKENBROKER_ADDR=" + b.Grpc}}
	mine := []string{"--ca", dir + "/ca.crt", "--cert", dir + "/demo.crt", "--key", dir + "/demo.key"}
	for name, tt := range map[string]struct {
		args []string
		says string // empty: it works
	}{
		"by its certificate":          {mine, ""},
		"under the name of the host":  {append(mine, "--server-name", "broker.internal"), ""},
		"under another name":          {append(mine, "--server-name", "other.internal"), "is for localhost, broker.internal, 127.0.0.1, ::1 and not for \"other.internal\": connect by a name in it"},
		"without a certificate":       {mine[:2], "Unauthenticated"},
		"without trust in the broker": {[]string{"--plaintext=false"}, "is not issued by a CA that this system trusts: give the file with the broker's CA by --ca"},
	} {
		res := cli.Run(t, append([]string{"get", "orders"}, tt.args...)...)
		if (res.Code == 0) != (tt.says == "") || !strings.Contains(res.Stderr, tt.says) {
			t.Errorf("get %s: %v", name, res)
		}
	}
	cli.Env = append(cli.Env, "TOKENBROKER_CA="+dir+"/ca.crt")
	if res := cli.Run(t, "healthcheck"); res.Code != 0 { // needs no caller
		t.Errorf("healthcheck: %v", res)
	}
}

func TestCheckConfig(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	config := idp.Config(t)
	file := harness.WriteFile(t, "broker.yaml", config)
	idp.Reset(t)
	if res := harness.Run(t, "check-config", file); res.Code != 0 {
		t.Errorf("of a good file: %v", res)
	}
	if paths := idp.Requests(t).Paths; len(paths) != 0 {
		t.Errorf("without --live the IdP was asked: %v", paths)
	}
	if res := harness.Run(t, "check-config", file, "--live"); res.Code != 0 {
		t.Errorf("live: %v", res)
	}
	if paths := idp.Requests(t).Paths; paths["/jwks"] == 0 || paths["/.well-known/openid-configuration"] == 0 || paths["/token"] != 0 {
		t.Errorf("--live asked the IdP for %v", paths)
	}
	idp.Stop(t)
	if res := harness.Run(t, "check-config", file, "--live"); res.Code == 0 {
		t.Errorf("live, with the IdP down: %v", res)
	}

	bad := harness.WriteFile(t, "broker.yaml", config+"clientz: {}\n")
	want := fmt.Sprintf("%s:%d:", bad, strings.Count(config, "\n")+1)
	if res := harness.Run(t, "check-config", bad); res.Code == 0 || !strings.Contains(res.Stderr, want) || !strings.Contains(res.Stderr, "clientz") {
		t.Errorf("of a file with an unknown key, want %s: %v", want, res)
	}
}

// Scripts take exit code 1 for a rejection, so nothing else may exit with it.
func TestVerifyUsageErrorIsNoRejection(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"no token":         {"verify"},
		"two tokens":       {"verify", "a", "b"},
		"unknown flag":     {"verify", "a", "--nonsense"},
		"no such broker":   {"verify", "a", "--addr", "127.0.0.1:1"},
		"nothing on stdin": {"verify", "-"},
	} {
		if res := harness.Run(t, args...); res.Code != harness.Undecided || res.Stderr == "" {
			t.Errorf("%s: %v", name, res)
		}
	}
}
