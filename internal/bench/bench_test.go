package main

import (
	"context"
	"crypto/rand"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

func TestCPUTimeIsReadPastAnyProgramName(t *testing.T) {
	const rest = " S 1 2 3 0 -1 4194560 10 20 30 40 123 77 5 6 20 0 9 0"
	for _, name := range []string{"(broker)", "(a b) c)", "(()"} {
		if got, err := parseCPU([]byte("42 " + name + rest)); err != nil || got != 2*time.Second {
			t.Errorf("%s: %v, %v, want 2s", name, got, err)
		}
	}
	for _, stat := range []string{"", "42 (broker) S 1", "42 (broker) S 1 2 3 0 -1 4194560 10 20 30 40 x 77"} {
		if got, err := parseCPU([]byte(stat)); err == nil {
			t.Errorf("%q: %v without an error", stat, got)
		}
	}
}

func TestCPUTimeOfAThreadIsItsFirstField(t *testing.T) {
	if got, err := parseSchedStat([]byte("1234567890 42 7\n")); err != nil || got != 1234567890 {
		t.Errorf("%v, %v", got, err)
	}
	for _, text := range []string{"", "x 42 7"} {
		if got, err := parseSchedStat([]byte(text)); err == nil {
			t.Errorf("%q: %v without an error", text, got)
		}
	}
}

func TestCPUTimeGrowsWithWork(t *testing.T) {
	self := &process{pid: os.Getpid()}
	exact, err := self.cpu()
	if err != nil {
		t.Fatal(err)
	}
	inTicks, err := self.cpuInTicks()
	if err != nil || inTicks < exact-time.Second || inTicks > exact+time.Second {
		t.Errorf("%v, and %v in ticks, %v", exact, inTicks, err)
	}
	testkit.Eventually(t, "the CPU time grows", func() bool {
		for i := range 1 << 16 {
			runtime.KeepAlive(i)
		}
		later, err := self.cpu()
		return err == nil && later > exact
	})
}

func TestMemoryIsReadByName(t *testing.T) {
	const text = "Name:\tbroker\nVmHWM:\t    4096 kB\nVmRSS:\t    2048 kB\nThreads:\t9\n"
	if got, err := parseMemory(text, "VmRSS"); err != nil || got != 2 {
		t.Errorf("VmRSS: %v MiB, %v, want 2", got, err)
	}
	if got, err := parseMemory(text, "VmSwap"); err == nil {
		t.Errorf("VmSwap: %v without an error", got)
	}
}

func TestQuantilesAreOfTheSortedTimes(t *testing.T) {
	var times []time.Duration
	for i := range 200 {
		times = append(times, time.Duration(i+1)*time.Microsecond)
	}
	for q, want := range map[float64]float64{0: 1, 0.5: 100, 0.99: 198, 1: 200} {
		if got := quantile(times, q); got != want {
			t.Errorf("%v: %v, want %v", q, got, want)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

func TestMedianLeavesItsValuesInOrder(t *testing.T) {
	odd, even := []float64{3, 1, 2}, []float64{4, 1, 3, 2}
	if median(odd) != 2 || median(even) != 2.5 {
		t.Errorf("odd %v, even %v", median(odd), median(even))
	}
	if !slices.Equal(odd, []float64{3, 1, 2}) {
		t.Errorf("reordered: %v", odd)
	}
}

func TestRatioIsTheMedianOverRounds(t *testing.T) {
	c := &contest{label: caseGet, echo: []sample{{cpu: 10}, {cpu: 40}, {cpu: 20}}, broker: []sample{{cpu: 11}, {cpu: 60}, {cpu: 24}}}
	if text := table(c); !strings.Contains(text, "1.20 (rounds: 1.10 to 1.50)") {
		t.Error(text)
	}
}

func TestBrokerAcceptsItsConfiguration(t *testing.T) {
	idp, err := startProvider(t.Context(), t.TempDir(), "EdDSA", clients(4), way{})
	if err != nil {
		t.Fatal(err)
	}
	defer idp.close()
	for _, with := range []setting{
		{idp: idp, clients: 3},
		{idp: idp, clients: 3, proof: proof{dir: "/proof"}},
		{idp: idp, clients: 3, proof: proof{dir: "/proof"}, http: "127.0.0.1:3"},
		{idp: idp, clients: 3, http: "127.0.0.1:3"},
		{idp: idp, clients: 3, profiled: true, redis: &redisServer{address: "127.0.0.1:3", ring: "/ring.json"}},
	} {
		config, err := config.Parse("bench", []byte(with.config("127.0.0.1:1", "127.0.0.1:2")))
		if err != nil {
			t.Fatal(err)
		}
		if len(config.Clients) != 3 || config.Clients[clientName(2)].ClientID != clientName(2) {
			t.Errorf("clients: %+v", config.Clients)
		}
		if (config.Listen.TLS != nil) != (with.proof.dir != "") || len(config.Warnings) > 0 {
			t.Errorf("listen %+v, warnings %v", config.Listen, config.Warnings)
		}
		if config.Server.Pprof != with.profiled || (config.Store.Redis != nil) != (with.redis != nil) {
			t.Errorf("server %+v, store %+v", config.Server, config.Store)
		}
	}
}

func TestTokenHasAbout900Bytes(t *testing.T) {
	single, err := startProvider(t.Context(), t.TempDir(), "RS256", clients(1), way{})
	if err != nil {
		t.Fatal(err)
	}
	defer single.close()
	many, err := questionProvider(t.Context(), t.TempDir(), way{})
	if err != nil {
		t.Fatal(err)
	}
	defer many.close()
	now := time.Now().Unix()
	for _, of := range []struct {
		idp                     *provider
		client, audience, scope string
	}{
		{single, clientName(0), audience, "read write"},
		{many, questioner, questionAudience(7), questionScope(7)},
	} {
		token := of.idp.Mint(map[string]any{
			"iss": of.idp.Issuer(), "sub": of.client, "client_id": of.client, "aud": of.audience,
			"iat": now, "exp": now + 3600, "jti": rand.Text(), "scope": of.scope,
		})
		if n := len(token.Reveal()); n < 850 || n > 950 {
			t.Errorf("%.20s: %d bytes", of.client, n)
		}
	}
}

func TestRequestsAreDistinctAndValid(t *testing.T) {
	seen := map[string]bool{}
	for i := range maxQuestions {
		q := question(questioner, i)
		seen[q.GetAudience()+" "+q.GetScopes()[0]] = true
	}
	if len(seen) != maxQuestions {
		t.Errorf("%d of %d are distinct", len(seen), maxQuestions)
	}
	if n := len(questioner); n > 128 {
		t.Errorf("the client's name has %d bytes, more than a broker takes", n)
	}
}

func TestOptionsOutOfBoundsAreRefused(t *testing.T) {
	if o, err := parseOptions(nil); err != nil || o != (options{6, 3 * time.Second, 20, 100_000, 20_000, "", "", ""}) {
		t.Errorf("without flags: %+v, %v", o, err)
	}
	for _, args := range [][]string{
		{"-rounds", "0"}, {"-rounds", "101"}, {"-seconds", "0.01"}, {"-replicas", "0"}, {"-replicas", "101"},
		{"-questions", "0"}, {"-questions", "160001"}, {"-tokens", "0"}, {"-tokens", "100001"}, {"-only", "everything"}, {"something"},
	} {
		if o, err := parseOptions(args); err == nil {
			t.Errorf("%v: %+v", args, o)
		}
	}
}

func TestNumbersAreReadByTheirPrefix(t *testing.T) {
	const text = "# Memory\r\nused_memory:1053736\r\nused_memory_human:1.00M\r\ntrips_total 1.5e+06\n"
	for prefix, want := range map[string]float64{"used_memory:": 1053736, "trips_total ": 1.5e6} {
		if got, err := parseNumber(text, prefix); err != nil || got != want {
			t.Errorf("%s %v, %v, want %v", prefix, got, err, want)
		}
	}
	for _, prefix := range []string{"used:", "used_memory_human:"} {
		if got, err := parseNumber(text, prefix); err == nil {
			t.Errorf("%s %v without an error", prefix, got)
		}
	}
}

func TestTripsOfAnIdleBrokerAreSubtracted(t *testing.T) {
	text := tripsOf(&contest{
		echo:   []sample{{calls: 5000, trips: 1}, {calls: 5000, trips: 2}},
		broker: []sample{{calls: 1000, trips: 2}, {calls: 1000, trips: 51}},
	})
	if !strings.Contains(text, "53 during 2000 hits, 3 in as much time without any; 0.0250 per hit") {
		t.Error(text)
	}
}

// flaky fails every third call and rejects every token.
type flaky struct {
	tokenbrokerv1.UnimplementedTokenBrokerServiceServer

	calls atomic.Int64
}

func (f *flaky) GetToken(context.Context, *tokenbrokerv1.GetTokenRequest) (*tokenbrokerv1.GetTokenResponse, error) {
	if f.calls.Add(1)%3 == 0 {
		return nil, status.Error(codes.Unavailable, "on purpose")
	}
	return &tokenbrokerv1.GetTokenResponse{AccessToken: "canary"}, nil
}

func (f *flaky) VerifyToken(context.Context, *tokenbrokerv1.VerifyTokenRequest) (*tokenbrokerv1.VerifyTokenResponse, error) {
	f.calls.Add(1)
	return &tokenbrokerv1.VerifyTokenResponse{Rejection: &tokenbrokerv1.Rejection{Message: "on purpose"}}, nil
}

func TestLoadCountsCallsAndFailures(t *testing.T) {
	server := &flaky{}
	brokers := brokersOf(t, server)
	const length = 50 * time.Millisecond
	got := load(t.Context(), brokers, getToken(anything), length)
	calls := int(server.calls.Load())
	if got.Calls != calls || got.Failed != calls/3 || calls < callers {
		t.Errorf("%d calls and %d failures of %d", got.Calls, got.Failed, calls)
	}
	if !strings.Contains(got.Error, "on purpose") || got.Seconds < length.Seconds() || got.P50 <= 0 || got.P99 < got.P50 || got.Max < got.P99 {
		t.Errorf("outcome: %+v", got)
	}
}

func anything() *tokenbrokerv1.GetTokenRequest { return &tokenbrokerv1.GetTokenRequest{} }

func TestBurstCountsCallsAndFailures(t *testing.T) {
	server := &flaky{}
	const each = 30
	brokers, hangUp, err := dialAll(t.Context(), []string{serve(t, server), serve(t, server)}, each)
	if err != nil {
		t.Fatal(err)
	}
	defer hangUp()
	got, err := atOnce(t.Context(), brokers, func(int) *tokenbrokerv1.GetTokenRequest { return anything() })
	if err != nil {
		t.Fatal(err)
	}
	if got.Calls != 2*each || got.Failed != 2*each/3 || !strings.Contains(got.Error, "on purpose") {
		t.Errorf("%d calls and %d failures of %d", got.Calls, got.Failed, 2*each)
	}
	if got.P50 <= 0 || got.P99 < got.P50 || got.Max < got.P99 || got.CPU <= 0 || got.check("the burst") == nil {
		t.Errorf("outcome: %+v", got)
	}
}

func TestRejectedTokenIsAFailedCall(t *testing.T) {
	server := &flaky{}
	brokers := brokersOf(t, server)
	var got outcome
	testkit.Eventually(t, "a call is made", func() bool { // a busy machine may make none within the time
		got = load(t.Context(), brokers, verifyToken(func() (string, error) { return "a", nil }), time.Millisecond)
		return got.Calls > 0
	})
	if got.Failed != got.Calls || !strings.Contains(got.Error, "on purpose") {
		t.Errorf("outcome: %+v", got)
	}
}

func TestEchoRepeatsTheResponse(t *testing.T) {
	want := &fixed{
		token:    &tokenbrokerv1.GetTokenResponse{AccessToken: "canary"},
		verified: &tokenbrokerv1.VerifyTokenResponse{Active: true, Subject: "somebody"},
	}
	got, err := learn(t.Context(), serve(t, want), proof{}, "client")
	if err != nil {
		t.Fatal(err)
	}
	if got.token.GetAccessToken() != "canary" || got.verified.GetSubject() != "somebody" {
		t.Error("it learned something else")
	}
}

func brokersOf(t *testing.T, service tokenbrokerv1.TokenBrokerServiceServer) []tokenbrokerv1.TokenBrokerServiceClient {
	t.Helper()
	brokers, hangUp, err := dial(serve(t, service), proof{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(hangUp)
	return brokers
}

// serve serves service on loopback until the test is over.
func serve(t *testing.T, service tokenbrokerv1.TokenBrokerServiceServer) (address string) {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	tokenbrokerv1.RegisterTokenBrokerServiceServer(server, service)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}
