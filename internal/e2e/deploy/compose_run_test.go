package deploy

import (
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// What docker-compose.yaml describes, as plain processes: the same commands, the
// same configuration, the secrets that its init makes; only where things are is
// another place.
func TestComposeWorks(t *testing.T) {
	t.Parallel()
	harness.Need(t, "redis-server")
	c := readComposition(t)
	secrets := t.TempDir()
	makeSecrets(t, secrets)
	redis := c.redis(t, secrets)
	redis.start(t)
	idp := c.runIDP(t, secrets)
	here := strings.NewReplacer("redis:6379", redis.address, "http://idp:9000", "http://"+idp)
	var brokers []*harness.Broker
	for _, name := range c.brokers() {
		brokers = append(brokers, c.runBroker(t, name, secrets, here))
	}

	for _, b := range brokers {
		b.Env = c.callerEnvironment(cliService, secrets)
	}
	c.operate(t, brokers[0], secrets)
	first := brokers[0].Get(t, "orders-api")
	second := brokers[1].Get(t, "orders-api")
	if first.Origin != "fetched" || second.Origin != "shared" || first.AccessToken != second.AccessToken {
		t.Errorf("the first broker's token is %s, the second's %s; the same: %v", first.Origin, second.Origin, first.AccessToken == second.AccessToken)
	}
	brokers[1].MustVerify(t, "a token that the other broker fetched", first.AccessToken, harness.Active, "--audience", "https://orders.example.com")
	if got := brokers[1].Get(t, "billing-api"); got.Origin != "shared" {
		t.Errorf("the token that proved the other client's secret is %s", got.Origin)
	}
	for _, b := range brokers {
		if res := b.Run(t, "healthcheck"); res.Code != 0 {
			t.Errorf("healthcheck: %v", res)
		}
		b.Env = b.Env[:1] // trusts the broker, and proves nothing
		if res := b.Run(t, "healthcheck", "--config", b.File); res.Code != 0 {
			t.Errorf("healthcheck, as the broker's container does it: %v", res)
		}
		if res := b.Run(t, "get", "orders-api"); res.Code == 0 || !strings.Contains(res.Stderr, "Unauthenticated") {
			t.Errorf("get without a certificate: %v", res)
		}
		if code := b.Process.Stop(t, syscall.SIGTERM); code != 0 {
			t.Errorf("exit code %d after SIGTERM", code)
		}
	}

	redis.restart(t)
	later := c.runBroker(t, c.brokers()[0], secrets, here)
	later.Env = c.callerEnvironment(adminService, secrets)
	if res := later.Run(t, "clients", "billing-api"); !strings.Contains(res.Stdout, "current") {
		t.Errorf("Redis lost the secret when all restarted: %v", res)
	}
	if output := redis.process.Output.String(); strings.Contains(output, "CRITICAL") {
		t.Errorf("Redis did not load all of its append-only file: %.600s", output)
	}
}

// operate runs the operator's commands that the composition names.
func (c composition) operate(t *testing.T, b *harness.Broker, secrets string) {
	t.Helper()
	admin := *b
	admin.Env = c.callerEnvironment(adminService, secrets)
	named := regexp.MustCompile(`(?m)^#   docker compose run --rm admin (.*)$`).FindAllStringSubmatch(readText(t, composeFile), -1)
	if len(named) < 4 {
		t.Fatalf("only %d commands for operators are named", len(named))
	}
	for _, command := range named {
		args := strings.Fields(command[1])
		for i, arg := range args {
			if strings.HasPrefix(arg, "/") {
				args[i] = filepath.Join(secrets, c.initFile(adminService, arg))
			}
		}
		if res := admin.Run(t, args...); res.Code != 0 {
			t.Errorf("broker %s: %v", command[1], res)
		}
	}
	if res := b.Run(t, "clients"); res.Code == 0 || !strings.Contains(res.Stderr, "PermissionDenied") {
		t.Errorf("the sample caller lists clients: %v", res)
	}
}

// callerEnvironment is the environment of a service that calls the brokers, without the
// address. The authority that it trusts is first.
func (c composition) callerEnvironment(name, secrets string) []string {
	var env []string
	for _, variable := range []string{"TOKENBROKER_CA", "TOKENBROKER_CERT", "TOKENBROKER_KEY"} {
		env = append(env, variable+"="+filepath.Join(secrets, c.initFile(name, c.Services[name].Environment[variable])))
	}
	return env
}

// composedRedis is the Redis of the composition.
type composedRedis struct {
	address, dir string
	command      []string
	process      *testkit.Process
}

func (c composition) redis(t *testing.T, secrets string) *composedRedis {
	t.Helper()
	service, address, dir := c.Services["redis"], harness.FreeAddress(t), t.TempDir()
	args := slices.Clone(service.Command)
	for i, arg := range args {
		switch {
		case i > 0 && args[i-1] == "--dir":
			args[i] = dir
		case strings.HasPrefix(arg, "/"):
			args[i] = filepath.Join(secrets, c.initFile("redis", arg))
		}
	}
	_, port, _ := net.SplitHostPort(address)
	command := slices.Concat(service.Entrypoint, args, []string{"--bind", "127.0.0.1", "--port", port})
	return &composedRedis{address: address, dir: dir, command: command}
}

func (r *composedRedis) start(t *testing.T) {
	t.Helper()
	r.process = harness.Start(t, r.dir, nil, r.command[0], r.command[1:]...)
	r.process.Ready(t, func() bool {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", r.address)
		return err == nil && conn.Close() == nil
	})
}

func (r *composedRedis) restart(t *testing.T) {
	t.Helper()
	r.process.Stop(t, syscall.SIGTERM)
	r.start(t)
}

// runIDP runs the sample IdP of the composition and returns its address.
func (c composition) runIDP(t *testing.T, secrets string) string {
	t.Helper()
	address := harness.FreeAddress(t)
	args := slices.Clone(c.Services["idp"].Command)
	for i := range args {
		args[i] = strings.NewReplacer(":9000", address, "http://idp:9000", "http://"+address).Replace(args[i])
	}
	if at := slices.Index(args, "--secrets"); at >= 0 {
		// A folder: where init puts any file that is in it.
		args[at+1] = filepath.Dir(filepath.Join(secrets, c.initFile("idp", args[at+1]+"/any")))
	}
	p := harness.Start(t, t.TempDir(), nil, "broker", args...)
	client := &http.Client{Timeout: harness.Patience}
	t.Cleanup(client.CloseIdleConnections)
	p.Ready(t, func() bool { return harness.Answers(t, client, "http://"+address+"/.well-known/openid-configuration") })
	return address
}

// runBroker runs a broker of the composition with its configuration, in which
// here puts the other services' addresses.
func (c composition) runBroker(t *testing.T, name, secrets string, here *strings.Replacer) *harness.Broker {
	t.Helper()
	b := &harness.Broker{Grpc: harness.FreeAddress(t), Ops: harness.FreeAddress(t)}
	text := here.Replace(readText(t, c.configuration(t, name)))
	text = strings.NewReplacer(`":8443"`, `"`+b.Grpc+`"`, `":8444"`, `"`+harness.FreeAddress(t)+`"`, `":9090"`, `"`+b.Ops+`"`).Replace(text)
	for _, path := range fileReferences(text) {
		text = strings.ReplaceAll(text, path, filepath.Join(secrets, c.initFile(name, path)))
	}
	b.File = harness.WriteFile(t, "broker.yaml", text)
	b.Launch(t, "broker")
	b.Await(t)
	return b
}
