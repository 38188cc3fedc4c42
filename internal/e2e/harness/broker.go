package harness

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// Broker is a running "broker serve".
type Broker struct {
	Grpc, Ops string   // addresses
	File      string   // its configuration
	Env       []string // how commands connect; nil: in plaintext
	Process   *testkit.Process
}

// allCallers has one caller, who may everything.
const allCallers = `callers: [{name: everybody, roles: [all], limits: {per_second: 0, concurrent: 0, watches: 0}}]
roles: {all: {get: [{client: "*", audiences: ["*"], resources: ["*"], scopes: ["*"]}], verify: [{issuer: "*", audiences: ["*"]}], admin: [{actions: ["*"]}]}}
`

// StartBroker starts a broker with a configuration that has everything but
// listen and callers, and waits until it is ready.
func StartBroker(t *testing.T, config string) *Broker {
	t.Helper()
	b := NewBroker(t, config)
	b.Launch(t, "broker")
	b.Await(t)
	return b
}

func NewBroker(t *testing.T, config string) *Broker {
	t.Helper()
	b := &Broker{Grpc: FreeAddress(t), Ops: FreeAddress(t)}
	listen := fmt.Sprintf("listen: {grpc: {address: %q, caller: everybody}, ops: %q}\n", b.Grpc, b.Ops)
	b.File = WriteFile(t, "broker.yaml", listen+allCallers+config)
	return b
}

// Launch starts the process, or starts it again, and does not wait for it.
func (b *Broker) Launch(t *testing.T, binary string, env ...string) {
	t.Helper()
	b.Process = Start(t, filepath.Dir(b.File), env, binary, "serve", "--config", b.File)
}

// Await waits until the broker is ready.
func (b *Broker) Await(t *testing.T) {
	t.Helper()
	client := &http.Client{Timeout: Patience}
	defer client.CloseIdleConnections()
	b.Process.Ready(t, func() bool { return Answers(t, client, "http://"+b.Ops+"/readyz") })
}

// Command is the broker's command line, pointed at this broker.
func (b *Broker) Command(input string) Command {
	env := b.Env
	if env == nil {
		env = []string{"TOKENBROKER_PLAINTEXT=true"}
	}
	return Command{Name: "broker", Env: append([]string{"TOKENBROKER_ADDR=" + b.Grpc}, env...), Input: input}
}

func (b *Broker) Run(t *testing.T, args ...string) Result {
	t.Helper()
	return b.Command("").Run(t, args...)
}

// Given is what "broker get --json" prints.
type Given struct {
	AccessToken string    `json:"access_token"`
	TokenType   string    `json:"token_type"`
	ExpiresAt   time.Time `json:"expires_at"`
	RefreshAt   time.Time `json:"refresh_at"`
	Scopes      []string  `json:"scopes"`
	Origin      string    `json:"origin"`
	Degraded    bool      `json:"degraded"`
}

// Get gets a token, which must succeed.
func (b *Broker) Get(t *testing.T, args ...string) Given {
	t.Helper()
	got, res := b.TryGet(t, args...)
	if res.Code != 0 {
		t.Fatalf("broker get %s: %v", strings.Join(args, " "), res)
	}
	return got
}

// TryGet is get for where it may fail.
func (b *Broker) TryGet(t *testing.T, args ...string) (Given, Result) {
	t.Helper()
	res := b.Run(t, append([]string{"get", "--json"}, args...)...)
	var got Given
	if res.Code != 0 {
		return got, res
	}
	if err := json.Unmarshal([]byte(res.Stdout), &got); err != nil {
		t.Fatalf("broker get %s does not print JSON: %v", strings.Join(args, " "), err)
	}
	return got, res
}

// Exit codes of "broker verify".
const (
	Active    = 0
	Rejected  = 1
	Undecided = 2
)

// Verify passes the token on standard input, which keeps it out of the list of
// processes.
func (b *Broker) Verify(t *testing.T, token string, args ...string) Result {
	t.Helper()
	return b.Command(token+"\n").Run(t, append([]string{"verify", "-", "--json"}, args...)...)
}

// RevocationsUnknown is the reason of a replica that does not know what is revoked.
const RevocationsUnknown = "REVOCATIONS_UNKNOWN"

// MustVerify fails the test unless verify ends with this exit code. Where the store is a
// new Redis, it waits: a replica that has just started does not decide for 10 s.
func (b *Broker) MustVerify(t *testing.T, what, token string, want int, args ...string) Result {
	t.Helper()
	res := b.Verify(t, token, args...)
	if want != Undecided && strings.Contains(res.Stderr, RevocationsUnknown) {
		testkit.Eventually(t, "the replica knows the revocations", func() bool {
			res = b.Verify(t, token, args...)
			return !strings.Contains(res.Stderr, RevocationsUnknown)
		})
	}
	if res.Code != want {
		t.Fatalf("verify of %s: want exit code %d: %v", what, want, res)
	}
	return res
}

// StoreUp reports whether all servers of Redis are up for an operation.
func (b *Broker) StoreUp(t *testing.T, operation string) bool {
	t.Helper()
	values := b.StoreHealth(t, operation)
	return len(values) > 0 && !slices.Contains(slices.Collect(maps.Values(values)), 0)
}

// StoreHealth is the metric of each server of Redis, by its name.
func (b *Broker) StoreHealth(t *testing.T, operation string) map[string]float64 {
	t.Helper()
	found := map[string]float64{}
	for line := range strings.Lines(b.Metrics(t)) {
		rest, is := strings.CutPrefix(line, `tokenbroker_store_up{operation="`+operation+`",shard="`)
		if shard, value, cut := strings.Cut(rest, `"} `); is && cut {
			number, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			found[shard] = number
		}
	}
	return found
}

// Bring pipes a secret into a command.
func (b *Broker) Bring(t *testing.T, secret string, args ...string) Result {
	t.Helper()
	return b.Command(secret+"\n").Run(t, args...)
}

// Rotate rotates the secret of "orders", which must succeed.
func (b *Broker) Rotate(t *testing.T, secret string, args ...string) Result {
	t.Helper()
	res := b.Bring(t, secret, append([]string{"secret", "rotate", "orders"}, args...)...)
	if res.Code != 0 {
		t.Fatalf("secret rotate: %v", res)
	}
	return res
}

// Client is what the replica says of a client.
func (b *Broker) Client(t *testing.T, name string) *tokenbrokerv1.Client {
	t.Helper()
	res := b.Run(t, "clients", name, "--json")
	if res.Code != 0 {
		t.Fatalf("clients: %v", res)
	}
	var c tokenbrokerv1.Client
	if err := protojson.Unmarshal([]byte(res.Stdout), &c); err != nil {
		t.Fatal(err)
	}
	return &c
}

// Metrics is what the replica tells of itself.
func (b *Broker) Metrics(t *testing.T) string {
	t.Helper()
	response, err := Fetch(t, &http.Client{Timeout: Patience}, http.MethodGet, "http://"+b.Ops+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	if err != nil || response.Body.Close() != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Metric is the value of a series, such as name{label="value"}.
func (b *Broker) Metric(t *testing.T, series string) float64 {
	t.Helper()
	for line := range strings.Lines(b.Metrics(t)) {
		if text, found := strings.CutPrefix(line, series+" "); found {
			value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("there is no metric %s", series)
	return 0
}

// Logged reports whether the replica has logged a line that holds all words.
func (b *Broker) Logged(words ...string) bool {
	for line := range strings.Lines(b.Process.Output.String()) {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			return true
		}
	}
	return false
}
