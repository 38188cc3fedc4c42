package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/client/brokertest"
)

func TestMain(m *testing.M) {
	if os.Getenv("RUN_THE_PROGRAM") != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

func TestProgramFailsIfItCannotStart(t *testing.T) {
	program := exec.CommandContext(t.Context(), os.Args[0])
	program.Env = []string{"RUN_THE_PROGRAM=1", "TOKENBROKER_CA=" + filepath.Join(t.TempDir(), "none")}
	output, err := program.CombinedOutput()
	if err == nil || program.ProcessState.ExitCode() != 1 || !strings.Contains(string(output), "no such file") {
		t.Errorf("%v: %s", err, output)
	}
}

const (
	ordersAudience  = "https://orders.example.com"
	billingAudience = "https://billing.example.com"
)

// startBilling is the API that the service calls, which may refuse the tokens that
// it is presented with.
func startBilling(t *testing.T, broker *brokertest.Broker, refused *atomic.Value) string {
	t.Helper()
	verified := client.HTTPMiddleware(broker.Client().Verifier(client.RequireAudience(billingAudience), client.RequireScopes("invoices:read")))
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, _ := client.ClaimsFromContext(r.Context())
		_, _ = io.WriteString(w, "a bill for "+caller.ClientID)
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if token := r.Header.Get("Authorization"); refused.CompareAndSwap("the next", token) || refused.Load() == token {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		verified(answer).ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return server.URL
}

// get asks the service as somebody with this token.
func get(t *testing.T, url, token string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(text))
}

func TestClientIsNotTheUserOfItsName(t *testing.T) {
	for subjectType, want := range map[client.SubjectType]int{client.SubjectSub: 200, client.SubjectClientID: 403} {
		ctx := client.ContextWithClaims(t.Context(), &client.Claims{Subject: "alice", SubjectType: subjectType})
		answer := httptest.NewRecorder()
		listOrders(answer, httptest.NewRequestWithContext(ctx, http.MethodGet, "/orders", http.NoBody))
		if answer.Code != want {
			t.Errorf("%s: %d, want %d", subjectType, answer.Code, want)
		}
	}
}

// From a caller's token to another API and back, through whatever happens.
func TestServiceEndToEnd(t *testing.T) {
	broker := brokertest.New(t, brokertest.WithClients(
		brokertest.Client{Name: "orders-api", Audiences: []string{ordersAudience}},
		brokertest.Client{Name: "billing-api", Audiences: []string{billingAudience}, Scopes: []string{"invoices:read", "invoices:write"}},
	))
	var refused atomic.Value
	refused.Store("")
	service := httptest.NewServer(newHandler(broker.Client(), startBilling(t, broker, &refused)))
	t.Cleanup(service.Close)

	alice := broker.Mint(brokertest.Claims{Subject: "alice", Scopes: []string{"read"}})
	step := func(what, path, token string, status int, body string) {
		t.Helper()
		if got, text := get(t, service.URL+path, token); got != status || !strings.Contains(text, body) {
			t.Errorf("%s: %d %q", what, got, text)
		}
	}
	step("a good token", "/orders", alice, 200, "the orders of alice")
	step("a call of another API", "/bill", alice, 200, "a bill for billing-api")
	step("no token", "/orders", "", 401, "")
	step("a token for others", "/orders", broker.Mint(brokertest.Claims{Audience: []string{billingAudience}}), 401, "")
	step("an expired token", "/orders", broker.Mint(brokertest.Claims{Lifetime: -time.Minute}), 401, "")
	step("a token without the scope", "/bill", broker.Mint(brokertest.Claims{Subject: "bob"}), 403, "read")

	refused.Store("the next") // token that is presented, from then on
	step("the API refuses our token", "/bill", alice, 200, "a bill for billing-api")
	if n := broker.IdPRequests(); n != 2 {
		t.Errorf("%d tokens were fetched, want the first and its replacement", n)
	}

	broker.Kill()
	step("no broker, a caller that is known", "/bill", alice, 200, "a bill for billing-api")
	step("no broker, a caller that is not", "/orders", broker.Mint(brokertest.Claims{Subject: "carol"}), 503, "")
}
