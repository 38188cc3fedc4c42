package app_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	brokerclient "github.com/cezzis/tokenbroker/client"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// reloadable is a broker that runs on a file, in which its test changes what
// follows the listeners.
type reloadable struct {
	*app.App

	t      *testing.T
	file   string
	listen string
	hangup chan os.Signal
	log    *testkit.Log
	client *brokerclient.Client
	secret string
}

func startReloadable(t *testing.T, idp *devidp.Server, rest string) *reloadable {
	t.Helper()
	return startListening(t, idp, `grpc: {address: "127.0.0.1:0", caller: everybody}`, rest)
}

// startListening is startReloadable with a listener of another kind.
func startListening(t *testing.T, idp *devidp.Server, listen, rest string) *reloadable {
	t.Helper()
	r := &reloadable{t: t, file: filepath.Join(t.TempDir(), "broker.yaml"), listen: listen, hangup: make(chan os.Signal, 1), log: &testkit.Log{}, secret: filepath.Join(t.TempDir(), "secret")}
	testkit.WriteFile(t, r.secret, "right")
	r.write(rest)
	config, err := config.Load(r.file)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(r.log, nil))
	r.App, err = app.New(config, app.Options{Logger: log, Transport: idp.RoundTripper(), File: r.file, Hangup: r.hangup})
	if err != nil {
		t.Fatal(err)
	}
	r.client, err = brokerclient.New(r.GRPCAddr(), brokerclient.WithPlaintext())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		_ = r.client.Close()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return r
}

// write writes the file anew. SECRET in it is the path of the secret.
func (r *reloadable) write(rest string) {
	r.t.Helper()
	text := "listen: {" + r.listen + ", ops: \"127.0.0.1:0\"}\n" + strings.ReplaceAll(rest, "SECRET", r.secret)
	next := r.file + ".next"
	testkit.WriteFile(r.t, next, text)
	if err := os.Rename(next, r.file); err != nil {
		r.t.Fatal(err)
	}
}

// apply writes the file, asks for it to be read, and waits until the log has a line
// more with said.
func (r *reloadable) apply(rest, said string) {
	r.t.Helper()
	before := strings.Count(r.log.String(), said)
	r.write(rest)
	r.hangup <- syscall.SIGHUP
	r.await(said, before+1)
}

func (r *reloadable) await(said string, times int) {
	r.t.Helper()
	deadline := time.After(60 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for strings.Count(r.log.String(), said) < times {
		select {
		case <-tick.C:
		case <-deadline:
			r.t.Fatalf("the log does not say %q %d times:\n%s", said, times, r.log)
		}
	}
}

const (
	applied = "a new configuration is active"
	refused = "is not applied"

	ordersClient = `
clients:
  orders: {issuer: "` + idpIssuer + `", client_id: abc, secret: "file:SECRET", audience: "https://orders.example.com", scopes: [read]}
issuers: [{issuer: "` + idpIssuer + `", audiences: ["https://orders.example.com"]}]
callers: [{name: everybody, roles: [all], limits: {per_second: 0, concurrent: 0, watches: 0}}]
`
	getAndVerify = ordersClient + `roles: {all: {get: [{client: orders}], verify: [{issuer: "*"}]}}` + "\n"
	verifyOnly   = ordersClient + `roles: {all: {verify: [{issuer: "*"}]}}` + "\n"
)

func TestReload_replacesEachPart(t *testing.T) {
	idp := devIDP(t)
	r := startReloadable(t, idp, getAndVerify)
	token, err := r.client.Token(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Verify(t.Context(), token.AccessToken()); err != nil {
		t.Fatal(err)
	}
	keys, fetched := idp.Requests(devidp.JWKSPath), idp.Requests(devidp.TokenPath)

	r.apply(verifyOnly, applied)
	if _, err := r.client.Token(t.Context(), "orders"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("after the grant was taken away: %v", err)
	}
	r.apply(strings.Replace(getAndVerify, "  orders:", "  other: {issuer: \""+idpIssuer+"\", client_id: abc, secret: \"file:SECRET\"}\n  orders:", 1), applied)
	again, err := r.client.Token(t.Context(), "orders")
	if err != nil || again.AccessToken() != token.AccessToken() || again.Origin() != "memory" {
		t.Errorf("a client that did not change lost its token: %v", err)
	}
	if _, err := r.client.Verify(t.Context(), token.AccessToken()); err != nil {
		t.Errorf("Verify: %v", err)
	}
	if k, f := idp.Requests(devidp.JWKSPath), idp.Requests(devidp.TokenPath); k != keys || f != fetched {
		t.Errorf("reloads that changed neither client nor issuer cost %d fetches of keys and %d of tokens", k-keys, f-fetched)
	}

	r.apply(strings.Replace(getAndVerify, `audiences: ["https://orders.example.com"]`, `audiences: ["https://billing.example.com"]`, 1), applied)
	if _, err := r.client.Verify(t.Context(), token.AccessToken()); err == nil || !strings.Contains(err.Error(), "wrong_audience") {
		t.Errorf("after the issuer's audiences changed: %v", err)
	}
	r.apply(strings.Replace(getAndVerify, "scopes: [read]", "scopes: [zebra]", 1), applied)
	if _, err := r.client.Token(t.Context(), "orders"); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("after the client's scopes changed to one that the IdP does not know: %v", err)
	}
	r.apply(getAndVerify, applied)
	if _, err := r.client.Token(t.Context(), "orders"); err != nil {
		t.Errorf("after the client was as before: %v", err)
	}
}

func TestReload_failureChangesNothing(t *testing.T) {
	r := startReloadable(t, devIDP(t), getAndVerify)
	for name, text := range map[string]string{
		"not YAML":            "clients: [",
		"an unknown key":      getAndVerify + "zebra: 1\n",
		"an unreadable one":   strings.Replace(getAndVerify, "file:SECRET", "file:/nowhere", 1),
		"a role that is gone": ordersClient,
	} {
		r.apply(text, refused)
		if _, err := r.client.Token(t.Context(), "orders"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A file may be refused twice: when it is told of, and when it is found.
	_, metrics := read(t, "http://"+r.OpsAddr()+"/metrics")
	if said := strings.Count(r.log.String(), refused); said < 4 || !strings.Contains(metrics, fmt.Sprintf(`tokenbroker_config_reloads_total{result="refused"} %d`, said)) ||
		!strings.Contains(metrics, `tokenbroker_config_reloads_total{result="applied"} 0`) {
		t.Errorf("%d refusals are in the log, and the metrics say otherwise", said)
	}
}

func TestReload_failingIsAMetric(t *testing.T) {
	r := startReloadable(t, devIDP(t), getAndVerify)
	expect := func(what string, want int) {
		t.Helper()
		testkit.Eventually(t, what, func() bool {
			_, metrics := read(t, "http://"+r.OpsAddr()+"/metrics")
			return strings.Contains(metrics, fmt.Sprintf("\ntokenbroker_config_reload_failing %d\n", want))
		})
	}
	expect("a good file is not failing", 0)
	r.write("clients: [")
	expect("a bad file is failing", 1)
	r.write(getAndVerify)
	expect("the good file is back", 0)
	if err := os.Rename(r.file, r.file+".away"); err != nil {
		t.Fatal(err)
	}
	expect("a missing file is failing", 1)
	if err := os.Rename(r.file+".away", r.file); err != nil {
		t.Fatal(err)
	}
	expect("the same file is back", 0)
}

func TestReload_changedFile(t *testing.T) {
	r := startReloadable(t, devIDP(t), getAndVerify)
	r.write(verifyOnly)
	r.await(applied, 1)
	if _, err := r.client.Token(t.Context(), "orders"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("after the grant was taken away: %v", err)
	}
}

func TestReload_namesKeysThatNeedARestart(t *testing.T) {
	r := startReloadable(t, devIDP(t), getAndVerify)
	r.apply(getAndVerify+"log: {level: debug}\nserver: {slow_call: 2s}\n", "take")
	r.await(`sections="server, log"`, 1)
}

// A watch goes on by the new configuration: it is not cut off while the caller may
// have the token, and ends when it may not.
func TestReload_authorizesWatchesAgain(t *testing.T) {
	r := startReloadable(t, devIDP(t), getAndVerify)
	stream := watchOrders(t, r.GRPCAddr(), insecure.NewCredentials())
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	r.apply(getAndVerify+"verification: {max_validity: 1m}\n", applied)
	r.apply(verifyOnly, applied)
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the watch: %v", err)
	}
}

func TestReload_underLoadFailsNoCall(t *testing.T) {
	r := startReloadable(t, devIDP(t), getAndVerify)
	if _, err := r.client.Token(t.Context(), "orders"); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	failures := make(chan error, 100)
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for ctx.Err() == nil {
				token, err := r.client.Token(t.Context(), "orders")
				if err == nil {
					_, err = r.client.Verify(t.Context(), token.AccessToken())
				}
				if err != nil {
					select {
					case failures <- err:
					default:
					}
				}
			}
		})
	}
	for i := range 100 {
		r.apply(getAndVerify+fmt.Sprintf("verification: {max_validity: %ds}\n", 60+i), applied)
	}
	stop()
	callers.Wait()
	if len(failures) > 0 {
		t.Errorf("%d calls failed, one with %v", len(failures), <-failures)
	}
}

func watchOrders(t *testing.T, addr string, transport credentials.TransportCredentials) grpc.ServerStreamingClient[tokenbrokerv1.WatchTokenResponse] {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(transport))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	stream, err := tokenbrokerv1.NewTokenBrokerServiceClient(conn).WatchToken(t.Context(), &tokenbrokerv1.WatchTokenRequest{ClientName: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	return stream
}
