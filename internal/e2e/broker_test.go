package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/testkit"
)

// broker is a running "broker serve".
type broker struct {
	grpc, ops string   // addresses
	file      string   // its configuration
	env       []string // how commands connect; nil: in plaintext
	process   *process
}

// allCallers has one caller, who may everything.
const allCallers = `callers: [{name: everybody, roles: [all], limits: {per_second: 0, concurrent: 0, watches: 0}}]
roles: {all: {get: [{client: "*", audiences: ["*"], resources: ["*"], scopes: ["*"]}], verify: [{issuer: "*", audiences: ["*"]}], admin: [{actions: ["*"]}]}}
`

// startBroker starts a broker with a configuration that has everything but
// listen and callers, and waits until it is ready.
func startBroker(t *testing.T, config string) *broker {
	t.Helper()
	b := newBroker(t, config)
	b.launch(t, "broker")
	b.await(t)
	return b
}

func newBroker(t *testing.T, config string) *broker {
	t.Helper()
	b := &broker{grpc: freeAddress(t), ops: freeAddress(t)}
	listen := fmt.Sprintf("listen: {grpc: {address: %q, caller: everybody}, ops: %q}\n", b.grpc, b.ops)
	b.file = writeFile(t, "broker.yaml", listen+allCallers+config)
	return b
}

// launch starts the process, or starts it again, and does not wait for it.
func (b *broker) launch(t *testing.T, binary string, env ...string) {
	t.Helper()
	b.process = start(t, filepath.Dir(b.file), env, binary, "serve", "--config", b.file)
}

// await waits until the broker is ready.
func (b *broker) await(t *testing.T) {
	t.Helper()
	client := &http.Client{Timeout: patience}
	defer client.CloseIdleConnections()
	b.process.ready(t, func() bool { return answers(t, client, "http://"+b.ops+"/readyz") })
}

// command is the broker's command line, pointed at this broker.
func (b *broker) command(input string) command {
	env := b.env
	if env == nil {
		env = []string{"TOKENBROKER_PLAINTEXT=true"}
	}
	return command{name: "broker", env: append([]string{"TOKENBROKER_ADDR=" + b.grpc}, env...), input: input}
}

func (b *broker) run(t *testing.T, args ...string) result {
	t.Helper()
	return b.command("").run(t, args...)
}

// given is what "broker get --json" prints.
type given struct {
	AccessToken string    `json:"access_token"`
	TokenType   string    `json:"token_type"`
	ExpiresAt   time.Time `json:"expires_at"`
	RefreshAt   time.Time `json:"refresh_at"`
	Scopes      []string  `json:"scopes"`
	Origin      string    `json:"origin"`
	Degraded    bool      `json:"degraded"`
}

// get gets a token, which must succeed.
func (b *broker) get(t *testing.T, args ...string) given {
	t.Helper()
	got, res := b.tryGet(t, args...)
	if res.code != 0 {
		t.Fatalf("broker get %s: %v", strings.Join(args, " "), res)
	}
	return got
}

// tryGet is get for where it may fail.
func (b *broker) tryGet(t *testing.T, args ...string) (given, result) {
	t.Helper()
	res := b.run(t, append([]string{"get", "--json"}, args...)...)
	var got given
	if res.code != 0 {
		return got, res
	}
	if err := json.Unmarshal([]byte(res.stdout), &got); err != nil {
		t.Fatalf("broker get %s does not print JSON: %v", strings.Join(args, " "), err)
	}
	return got, res
}

// Exit codes of "broker verify".
const (
	active    = 0
	rejected  = 1
	undecided = 2
)

// verify passes the token on standard input, which keeps it out of the list of
// processes.
func (b *broker) verify(t *testing.T, token string, args ...string) result {
	t.Helper()
	return b.command(token+"\n").run(t, append([]string{"verify", "-", "--json"}, args...)...)
}

// revocationsUnknown is the reason of a replica that does not know what is revoked.
const revocationsUnknown = "REVOCATIONS_UNKNOWN"

// mustVerify fails the test unless verify ends with this exit code. Where the store is a
// new Redis, it waits: a replica that has just started does not decide for 10 s.
func (b *broker) mustVerify(t *testing.T, what, token string, want int, args ...string) result {
	t.Helper()
	res := b.verify(t, token, args...)
	if want != undecided && strings.Contains(res.stderr, revocationsUnknown) {
		testkit.Eventually(t, "the replica knows the revocations", func() bool {
			res = b.verify(t, token, args...)
			return !strings.Contains(res.stderr, revocationsUnknown)
		})
	}
	if res.code != want {
		t.Fatalf("verify of %s: want exit code %d: %v", what, want, res)
	}
	return res
}
