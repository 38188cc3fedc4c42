package e2e_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
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
	var got struct{ AccessToken, TokenType, Source string }
	answer := grpcurl("-d", `{"client_name": "basic"}`, b.grpc, "tokenbroker.v1.TokenBrokerService/GetToken")
	if err := json.Unmarshal([]byte(answer), &got); err != nil || got.TokenType != "Bearer" || got.Source != "TOKEN_SOURCE_FETCHED" {
		t.Errorf("GetToken: type %q, source %q, %v", got.TokenType, got.Source, err)
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
	eventually(t, "the call is at the IdP", func() bool { return idp.tokenRequests(t) == 1 })

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

func TestDevShowsTheThreeResults(t *testing.T) {
	t.Parallel()
	res := run(t, "dev", "--exit")
	if res.code != 0 {
		t.Fatalf("broker dev --exit: %v", res)
	}
	shown := strings.ToLower(res.stdout)
	for _, want := range []string{"development", "gettoken", "active", "rejected: bad_signature"} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q is not shown: %v", want, res)
		}
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
