package fleet

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/redact/redacttest"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// everythingIn is all that Redis shows and has on disk.
func everythingIn(t *testing.T, server *redistest.Server, monitored func() string) redacttest.Places {
	t.Helper()
	found := redacttest.Places{
		"MONITOR":     monitored(),
		"SLOWLOG":     server.CLI("slowlog", "get", "-1"),
		"CLIENT LIST": server.CLI("client", "list"),
		"keys":        server.CLI("--scan"),
	}
	for key := range strings.Lines(found["keys"]) {
		key = strings.TrimSuffix(key, "\n")
		if kind := server.CLI("type", key); kind != "string" && kind != "none" {
			t.Errorf("a key is a %s, which this does not read", kind)
		}
		found["values"] += server.CLI("get", key) + "\n"
	}
	err := filepath.WalkDir(filepath.Join(server.Dir(), "appendonlydir"), func(path string, file fs.DirEntry, err error) error {
		if err != nil || file.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		found["append-only file"] += string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// everythingOf is all that brokers tell of themselves.
func everythingOf(t *testing.T, replicas []*Replica) redacttest.Places {
	t.Helper()
	found := redacttest.Places{}
	for i, r := range replicas {
		found[fmt.Sprintf("metrics of replica %d", i)] = r.Metrics(t)
		found[fmt.Sprintf("log of replica %d", i)] = r.Process.Output.String()
	}
	return found
}

func TestRedisAndMetricsShowNoClient(t *testing.T) {
	t.Parallel()
	secret, name := redacttest.Canary("secret"), redacttest.Canary("client")
	registered := devidp.Client{
		ID: redacttest.Canary("id"), Secrets: []redact.String{redact.New(secret)},
		Scopes:    []string{redacttest.Canary("scope"), redacttest.Canary("scope")},
		Audiences: []string{"https://" + redacttest.Canary("audience"), "https://" + redacttest.Canary("audience")},
	}
	idp := harness.StartIdP(t, 6*time.Second, registered)
	options := redisOptions()
	options.AppendOnly = true
	options.Config = []string{"slowlog-log-slower-than 0", "slowlog-max-len 100000"}
	server := redistest.Start(t, options)
	monitored := server.Monitor()
	f := startFleet(t, 3, "log: {level: debug}\n"+redisConfig(t, "", server.Addr())+harness.ClientsConfig(t, map[string]*harness.CountingIdP{name: idp}))

	tokens := goThroughAllFlows(t, f, idp, name)

	inRedis, told := everythingIn(t, server, monitored), everythingOf(t, f.Replicas)
	secrets := []string{secret, registered.ID + ":" + secret}
	for token := range tokens {
		parts := strings.Split(token, ".")
		secrets = append(secrets, token, parts[1], parts[2])
	}
	private := slices.Concat(secrets, []string{name, registered.ID}, registered.Scopes, registered.Audiences)
	for _, text := range private {
		if found := inRedis.Of(text); found != nil {
			t.Errorf("Redis: %.30s... is in %v", text, found)
		}
	}
	for _, text := range secrets {
		if found := told.Of(text); found != nil {
			t.Errorf("brokers: a secret or a token is in %v", found)
		}
	}
	t.Logf("searched for %d texts, those of %d tokens among them, in %d bytes of Redis, which has %d keys, and %d of the brokers",
		len(private), len(tokens), inRedis.Size(), strings.Count(inRedis["keys"], "\n")+1, told.Size())

	// The search finds what there is.
	planted := redacttest.Canary("planted")
	server.CLI("set", "planted:"+planted, planted)
	testkit.Eventually(t, "MONITOR sees a canary", func() bool { return strings.Contains(monitored(), planted) })
	want := []string{"MONITOR", "SLOWLOG", "append-only file", "keys", "values"}
	if got := everythingIn(t, server, monitored).Of(planted); !slices.Equal(got, want) {
		t.Errorf("a canary in Redis was found in %v, want %v", got, want)
	}
	if !strings.Contains(inRedis["CLIENT LIST"], "user=tokenbroker") {
		t.Error("CLIENT LIST does not show the brokers")
	}
	if got := told.Of(name); !slices.Contains(got, "log of replica 0") || !slices.Contains(got, "metrics of replica 0") {
		t.Errorf("the client's name, which may be told, was found in %v only", got)
	}
}

// goThroughAllFlows does whatever touches the store, and returns all the tokens
// that were seen.
func goThroughAllFlows(t *testing.T, f *Fleet, idp *harness.CountingIdP, name string) map[string]bool {
	t.Helper()
	first, second := f.Replicas[0], f.Replicas[1]
	other, scope := client.WithAudience(idp.Client.Audiences[1]), client.WithScopes(idp.Client.Scopes[1])
	tokens := map[string]bool{}
	note := func(what string, all AnswerList) AnswerList {
		t.Helper()
		for _, a := range all.Good(t, what) {
			tokens[a.Token.AccessToken()] = true
		}
		return all
	}
	everyone := func(what string, options ...client.TokenOption) AnswerList {
		t.Helper()
		return note(what, askAll(t, f.Replicas, 5, name, options...))
	}
	failing := func(code codes.Code, options ...client.TokenOption) {
		t.Helper()
		if a := first.Ask(t, name, options...); status.Code(a.Err) != code {
			t.Errorf("want %v: %v", code, a.Err)
		}
	}

	watching := watch(t, second, name)
	held := everyone("the client's own token")[0]
	everyone("another audience", other)
	everyone("fewer scopes", scope)
	everyone("both", other, scope)
	note("a token that was rejected", AnswerList{first.Ask(t, name, client.WithRejected(held.Token))})
	failing(codes.FailedPrecondition, client.WithMinTTL(time.Hour))
	failing(codes.FailedPrecondition, client.WithAudience("https://"+redacttest.Canary("unknown")))
	second.Purge(t, name)
	everyone("after a purge")
	testkit.Eventually(t, "a refresh", func() bool {
		everyone("callers during a refresh")
		return len(tokens) >= 8
	})

	// What goes wrong is told to the fleet as well.
	for _, trouble := range []struct {
		status int
		oauth  string
		header http.Header
		ask    []client.TokenOption
		code   codes.Code
	}{
		{http.StatusServiceUnavailable, "", nil, []client.TokenOption{other}, codes.Unavailable},
		{http.StatusBadRequest, "invalid_scope", nil, []client.TokenOption{scope}, codes.FailedPrecondition},
		{http.StatusTooManyRequests, "", http.Header{"Retry-After": {"2"}}, []client.TokenOption{other, scope}, codes.ResourceExhausted},
		{http.StatusUnauthorized, "invalid_client", nil, nil, codes.FailedPrecondition},
	} {
		idp.FailNext(1<<30, trouble.status, trouble.oauth, trouble.header)
		first.Purge(t, name)
		testkit.Eventually(t, "a failure is told", func() bool {
			return status.Code(first.Ask(t, name, trouble.ask...).Err) == trouble.code && status.Code(second.Ask(t, name, trouble.ask...).Err) == trouble.code
		})
	}
	for _, token := range watching.tokens() {
		tokens[token] = true
	}
	return tokens
}
