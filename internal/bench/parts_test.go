package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redistest"
)

// TestMain lets the parts start this binary again as the echo and as the load.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && slices.Contains([]string{echoCommand, driveCommand, burstCommand, bareCommand, requestCommand, plainCommand}, os.Args[1]) {
		main()
		return
	}
	os.Exit(runTests(m))
}

// brokerBinary builds the broker once for all tests.
var brokerBinary func() (string, error)

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "tokenbroker-bench-")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	brokerBinary = sync.OnceValues(func() (string, error) { return buildBroker(context.Background(), dir) })
	return m.Run()
}

// miniature is a bench whose parts take no time. Its numbers say nothing.
func miniature(t *testing.T) *bench {
	t.Helper()
	t.Setenv("GORACE", "atexit_sleep_ms=0") // else each load ends a second late
	opts := options{rounds: 2, length: 100 * time.Millisecond, replicas: 3, questions: 500, tokens: 100}
	binary, err := brokerBinary()
	if err != nil {
		t.Fatal(err)
	}
	b, err := setUp(t.Context(), opts, t.TempDir(), binary, opts.rounds+1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.idp.close)
	if b.broker, err = b.startBroker(t.Context(), setting{idp: b.idp, clients: 1}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.broker.stop)
	return b
}

func TestColdFleetIsMeasured(t *testing.T) {
	redistest.Need(t, redisCommand)
	b := miniature(t)
	got, err := b.measureFleet(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(got.rounds) != b.rounds || !slices.Equal(got.idpCalls, []int{1, 1}) {
		t.Errorf("%d rounds, IdP calls %v", len(got.rounds), got.idpCalls)
	}
	for i, round := range got.rounds {
		if round.Cold.Calls != b.replicas*callersEach || round.Warm.Calls != round.Cold.Calls {
			t.Errorf("round %d: %d and %d calls", i, round.Cold.Calls, round.Warm.Calls)
		}
		if round.Cold.P50 < float64(coldIdP.Microseconds()) {
			t.Errorf("round %d: half waited for only %v us", i, round.Cold.P50)
		}
	}
	if text := got.String(); !strings.Contains(text, "at most 1 IdP calls in each of 2 rounds") {
		t.Error(text)
	}
}

func TestHitsAreMeasured(t *testing.T) {
	redistest.Need(t, redisCommand)
	b, begun := miniature(t), time.Now()
	contests, err := b.measureHits(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(contests) != 3 || !contests[1].shared {
		t.Fatalf("%d contests, want three, and the second with Redis", len(contests))
	}
	for _, c := range contests {
		calls, trips := total(c.broker)
		if calls < callers || len(c.broker) != b.rounds || len(c.echo) != b.rounds {
			t.Errorf("%s: %d calls in %d rounds, %d of the echo", c.label, calls, len(c.broker), len(c.echo))
		}
		// Even without requests a broker reads the epochs every 5 s, and more on a busy
		// machine, where it takes Redis for away.
		if most := 5 + time.Since(begun).Seconds(); trips > most {
			t.Errorf("%s: %v trips to Redis, more than %v", c.label, trips, most)
		}
	}
	if _, err := contests[1].server.trips(t.Context()); err == nil {
		t.Error("the broker with Redis still runs")
	}
}

func TestHitsAreMeasuredOverTLS(t *testing.T) {
	b := miniature(t)
	contests, err := b.measureProved(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(contests) != 3 || !contests[2].jwt || contests[0].server.proof.dir == "" {
		t.Fatalf("%d contests, want three, all over TLS and the last by a JWT", len(contests))
	}
	for _, c := range contests {
		if calls, _ := total(c.broker); calls < callers || len(c.broker) != b.rounds || len(c.echo) != len(c.broker) {
			t.Errorf("%s: %d calls in %d rounds, %d of the echo", c.label, calls, len(c.broker), len(c.echo))
		}
	}
}

func TestGatewayRequestsAreMeasured(t *testing.T) {
	b := miniature(t)
	contests, err := b.measureGateways(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(contests) != 2 || contests[0].name != caseCheck || contests[1].name != caseForward {
		t.Fatalf("%d contests, want one for ext_authz and one for /verify", len(contests))
	}
	for _, c := range contests {
		if calls, _ := total(c.broker); calls < callers || len(c.broker) != b.rounds || len(c.echo) != len(c.broker) {
			t.Errorf("%s: %d calls in %d rounds, %d of the echo", c.label, calls, len(c.broker), len(c.echo))
		}
	}
}

func TestNewTokensAreMeasured(t *testing.T) {
	b := miniature(t)
	b.tokens = 50
	for algorithm, cases := range map[string][]string{"RS256": {caseVerify, caseCheck, caseForward}, "ES256": {caseVerify}, "EdDSA": {caseVerify}} {
		contests, err := b.measureUncached(t.Context(), algorithm)
		if err != nil {
			t.Fatal(algorithm, err)
		}
		var names []string
		for _, c := range contests {
			names = append(names, c.name)
			calls, _ := total(c.broker)
			bare, _ := total(c.echo)
			if most := b.rounds * b.tokens; calls != most || bare != most {
				t.Errorf("%s: %d calls and %d of the bare server, want %d", c.label, calls, bare, most)
			}
		}
		if !slices.Equal(names, cases) {
			t.Errorf("%s: %q, want %q", algorithm, names, cases)
		}
	}
}

// Another build takes the place of the echo, and of the bare server.
func TestBuildsAreCompared(t *testing.T) {
	b := miniature(t)
	b.rounds, b.beside = 1, b.binary
	contests, err := b.measureUncached(t.Context(), "RS256")
	if err != nil {
		t.Fatal(err)
	}
	gateways, err := b.measureGateways(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range append(contests, gateways...) {
		if calls, _ := total(c.echo); calls < callers || c.other != "other" {
			t.Errorf("%s: %d calls of %q", c.label, calls, c.other)
		}
	}
}

// The bare server has to verify, or the comparison with it says nothing.
func TestBareServerVerifiesSignatures(t *testing.T) {
	for _, algorithm := range []string{"RS256", "ES256", "EdDSA"} {
		idp, err := startProvider(t.Context(), t.TempDir(), algorithm, clients(1), way{})
		if err != nil {
			t.Fatal(err)
		}
		defer idp.close()
		bare, err := newChecker(t.Context(), idp.Issuer()+devidp.JWKSPath)
		if err != nil {
			t.Fatal(algorithm, err)
		}
		good, other := idp.mintFor(0), idp.mintFor(0)
		if err := bare.check(good); err != nil {
			t.Errorf("%s: %v", algorithm, err)
		}
		mixed := good[:strings.LastIndexByte(good, '.')] + other[strings.LastIndexByte(other, '.'):]
		for _, bad := range []string{mixed, good[1:], good + "A", "", "a"} {
			if bare.check(bad) == nil {
				t.Errorf("%s: %.20q... was accepted", algorithm, bad)
			}
		}
	}
	if (checker{}).check("anything") != nil {
		t.Error("an echo looks at tokens")
	}
}

func TestEachTokenIsPresentedOnce(t *testing.T) {
	next, presented := eachOnce([]string{"a", "b"}), ""
	for token, err := next(); err == nil; token, err = next() {
		presented += token
	}
	if _, err := next(); presented != "ab" || !errors.Is(err, errAllPresented) {
		t.Errorf("%s, %v", presented, err)
	}
}

func TestTripsToRedisAreCounted(t *testing.T) {
	redistest.Need(t, redisCommand)
	b := miniature(t)
	err := b.withRedis(t.Context(), setting{idp: b.idp, clients: 1}, func(broker *server, _ *redisServer) error {
		before, err := broker.trips(t.Context())
		if err != nil {
			return err
		}
		err = fetchAll(t.Context(), broker, 1, func(int) *tokenbrokerv1.GetTokenRequest {
			return &tokenbrokerv1.GetTokenRequest{ClientName: clientName(0)}
		})
		if err != nil {
			return err
		}
		after, err := broker.trips(t.Context())
		// It looks, claims the lease, and stores the token.
		if made := after - before; made < 3 {
			t.Errorf("%v trips for a token that nobody had", made)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPartsReportMissingRedis(t *testing.T) {
	b := miniature(t)
	b.rounds = 1
	t.Setenv("PATH", t.TempDir())
	for part, measure := range map[string]func(context.Context) (string, error){
		"GetToken, Redis: not measured": b.compare,
		"Redis              not meas":   b.manyQuestions,
		"a cold fleet: not measured":    b.coldFleet,
	} {
		text, err := measure(t.Context())
		if err != nil || strings.Count(text, part) != 1 || strings.Count(text, "apt-get install") != 1 {
			t.Errorf("%s: %q, %v", part, text, err)
		}
	}
}

func TestMissesAreMeasured(t *testing.T) {
	redistest.Need(t, redisCommand)
	b := miniature(t)
	b.rounds = 1
	contests, bursts, err := b.measureMisses(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(contests) != len(ways())+1 || len(bursts) != b.rounds {
		t.Fatalf("%d contests and %d bursts", len(contests), len(bursts))
	}
	for _, c := range contests {
		for _, s := range c.samples {
			if s.broker < 0 || s.echo < 0 || s.plain <= 0 || s.brokerRate <= 0 {
				t.Errorf("%s: %+v", c.label, s)
			}
		}
		if len(c.samples) != b.rounds {
			t.Errorf("%s: %d rounds", c.label, len(c.samples))
		}
	}
	for _, o := range bursts {
		if o.Calls != burstMisses {
			t.Errorf("%d calls at once", o.Calls)
		}
	}
	if text := burstRow(bursts); !strings.Contains(text, "1000 different requests at once") {
		t.Error(text)
	}
}

func TestManyTokensAreMeasured(t *testing.T) {
	b := miniature(t)
	idp, err := questionProvider(t.Context(), b.dir, way{})
	if err != nil {
		t.Fatal(err)
	}
	defer idp.close()
	held, hits, err := b.holdInMemory(t.Context(), idp)
	if err != nil {
		t.Fatal(err)
	}
	judge(t, held)
	if calls, _ := total(hits.broker); calls < callers || len(hits.echo) != b.rounds {
		t.Errorf("%d hits, %d rounds of the echo", calls, len(hits.echo))
	}
	// The one more is for the echo, which repeats the client's own token.
	if n := idp.Requests(devidp.TokenPath); n != b.questions+1 {
		t.Errorf("%d IdP calls for %d questions", n, b.questions)
	}
}

func TestManyTokensInRedisAreMeasured(t *testing.T) {
	redistest.Need(t, redisCommand)
	b := miniature(t)
	idp, err := questionProvider(t.Context(), b.dir, way{})
	if err != nil {
		t.Fatal(err)
	}
	defer idp.close()
	held, err := b.holdInRedis(t.Context(), idp)
	if err != nil {
		t.Fatal(err)
	}
	judge(t, held)
	if held.redis < 900 || held.redis > 9000 {
		t.Errorf("%.0f bytes in Redis for a token of 900", held.redis)
	}
	if n := idp.Requests(devidp.TokenPath); n != b.questions {
		t.Errorf("%d IdP calls for %d questions", n, b.questions)
	}
}

// judge judges what does not depend on the machine: a token of 900 bytes takes
// no less.
func judge(t *testing.T, held *holding) {
	t.Helper()
	if held.elapsed <= 0 || held.cpu <= 0 || held.heap < 900 || held.heap > 9000 {
		t.Errorf("%+v", held)
	}
}

func TestPeersAreMeasured(t *testing.T) {
	redistest.Need(t, "haproxy")
	b := miniature(t)
	text, err := b.comparePeers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range append([]string{"bare net/http", "broker, /verify"}, labels(programs())...) {
		if strings.Count(text, "\n"+want) != 1 {
			t.Errorf("no line about %s in\n%s", want, text)
		}
	}
}

func labels(programs []program) (all []string) {
	for _, p := range programs {
		all = append(all, p.label)
	}
	return all
}

// TestPeersRefuseAForgedToken keeps the comparison fair.
func TestPeersRefuseAForgedToken(t *testing.T) {
	b := miniature(t)
	p, err := b.startPeers(t.Context())
	t.Cleanup(p.stop)
	if err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(p.tokenFile())
	if err != nil {
		t.Fatal(err)
	}
	dot := bytes.LastIndexByte(token, '.')
	forged := string(token[:dot+1]) + strings.Repeat("A", len(token)-dot-1)
	for _, r := range p.rivals {
		err := get(t.Context(), patient(), r.url, forged)
		verifies := !strings.HasPrefix(r.label, "bare") && !strings.HasPrefix(r.label, "nginx")
		if refused := err != nil && strings.Contains(err.Error(), "401"); refused != verifies {
			t.Errorf("%s: %v", r.label, err)
		}
	}
}

func TestTokensOnBehalfAreMeasured(t *testing.T) {
	text, err := miniature(t).measureBehalf(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, "user's") || !strings.Contains(text, "CPU ratio") {
		t.Error(text)
	}
}
