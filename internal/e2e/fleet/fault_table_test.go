package fleet

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// TestFaults injects each fault of the table into a fleet under load, and checks the calls
// that succeed, the errors of the others, the requests to the IdP and the metrics that
// change. After the fault, everything must work again.
func TestFaults(t *testing.T) {
	t.Parallel()
	for _, row := range faultRows {
		t.Run(row.fault, func(t *testing.T) {
			t.Parallel()
			if !row.short {
				long(t)
			}
			row.check(t)
		})
	}
}

// faultFleet is a fleet with parts that can fail.
type faultFleet struct {
	*Fleet

	redis    *redistest.Server
	sentinel *redistest.Sentinel
	cluster  *redistest.Cluster
	dead     *redistest.Server // the server that shard returned
	proxy    *proxy            // to Redis or to the IdP
	idp      *harness.CountingIdP
	front    *tlsFront
	names    *hostNames

	store    string // the section of the configuration; empty: redis
	tokenURL string
	client   string // more keys of the client
	binary   string
	apis     []tokenbrokerv1.TokenBrokerServiceClient
	audience int // the last one that was requested
}

func (row faultRow) check(t *testing.T) {
	t.Helper()
	f := row.start(t)
	held := f.hold(t)
	hits := f.startCalls(t, func(i int) string { return f.get(t, i, held.audience) })
	verifications := f.startCalls(t, func(i int) string { return f.verify(t, i, held.token) })
	before, requests := f.counters(t), f.idp.Calls()
	seen := f.watchGauges(t)

	row.strike(t, f)
	var failed []string
	for range tokenFaultRounds {
		audience := f.nextAudience()
		for _, outcome := range slices.Concat(f.getAll(t, audience), f.getAll(t, audience)) {
			if outcome != row.miss {
				t.Errorf("a request for a new token ends with %q, want %q", outcome, row.miss)
			}
		}
		failed = append(failed, audience)
	}
	if got := f.idp.Calls() - requests; got < row.calls.least || got > row.calls.most {
		t.Errorf("the IdP got %d requests for %d tokens, want %d to %d", got, tokenFaultRounds, row.calls.least, row.calls.most)
	}
	row.checkMetrics(t, f, before, seen)

	if row.mend != nil {
		row.mend(t, f)
	}
	f.recovers(t)
	for _, audience := range failed {
		if row.lasting && !harness.IsLong() {
			break
		}
		f.eventually(t, 3*time.Minute, "the request that failed succeeds", func() bool {
			return !slices.ContainsFunc(f.getAll(t, audience), func(outcome string) bool { return outcome != "OK" })
		})
	}
	hits.only(t, "requests for a token that is held", row.hit)
	verifications.only(t, "verifications", row.verify)
}

// start starts a fleet that is ready for the fault.
func (row faultRow) start(t *testing.T) *faultFleet {
	t.Helper()
	f := &faultFleet{binary: "broker"}
	f.idp = harness.StartIdP(t, time.Hour, devidp.Client{
		ID: "abc", Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read", "write"}, Audiences: harness.Audiences(1000),
	})
	f.tokenURL = f.idp.TokenEndpoint()
	if row.setup != nil {
		row.setup(t, f)
	}
	if f.store == "" {
		f.redis = redistest.Start(t, redisOptions())
		f.store = redisConfig(t, "", f.redis.Addr())
	}
	f.Fleet = &Fleet{Config: f.store + fmt.Sprintf("clients:\n  orders: {token_url: %q, client_id: abc, secret: %q, audience: %q, scopes: [read, write]%s}\n",
		f.tokenURL, "file:"+harness.WriteFile(t, "secret", "right"), f.idp.Client.Audiences[0], f.client) +
		fmt.Sprintf("issuers: [{issuer: %q, audiences: [%q]}]\n", f.idp.Issuer(), f.idp.Client.Audiences[0])}
	f.Add(t, tokenFaultReplicas, f.binary, 0)
	for _, r := range f.Replicas {
		f.apis = append(f.apis, tokenbrokerv1.NewTokenBrokerServiceClient(r.API(t)))
		testkit.Eventually(t, "the replica knows the revocations and the keys", func() bool {
			return r.Metric(t, "tokenbroker_revocations_usable") == 1 &&
				r.Metric(t, fmt.Sprintf("tokenbroker_jwks_last_success_timestamp_seconds{issuer=%q}", f.idp.Issuer())) > 0
		})
	}
	return f
}

type heldToken struct{ audience, token string }

// hold has all replicas hold a token.
func (f *faultFleet) hold(t *testing.T) heldToken {
	t.Helper()
	held := heldToken{audience: f.idp.Client.Audiences[0]}
	for i, r := range f.Replicas {
		response, err := f.apis[i].GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders", Audience: held.audience})
		if err != nil {
			t.Fatalf("replica %d: %v", i+1, err)
		}
		held.token = response.GetAccessToken()
		if outcome := f.verify(t, i, held.token); outcome != "OK" {
			t.Fatalf("replica %d: a verification ends with %s: %s", i+1, outcome, r.Process.Output.String())
		}
	}
	return held
}

func (f *faultFleet) nextAudience() string {
	f.audience++
	return f.idp.Client.Audiences[f.audience]
}

func (f *faultFleet) get(t *testing.T, replica int, audience string) string {
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	_, err := f.apis[replica].GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: "orders", Audience: audience})
	return outcomeOf(err)
}

// getAll requests a token at all replicas at once.
func (f *faultFleet) getAll(t *testing.T, audience string) []string {
	outcomes := make([]string, len(f.apis))
	var running sync.WaitGroup
	for i := range f.apis {
		running.Go(func() { outcomes[i] = f.get(t, i, audience) })
	}
	running.Wait()
	return outcomes
}

func (f *faultFleet) verify(t *testing.T, replica int, token string) string {
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	response, err := f.apis[replica].VerifyToken(ctx, &tokenbrokerv1.VerifyTokenRequest{Token: token})
	if err == nil && !response.GetActive() {
		return "rejected: " + response.GetRejection().String()
	}
	return outcomeOf(err)
}

// outcomeOf returns OK, or the code and the reason of an error.
func outcomeOf(err error) string {
	if err == nil {
		return "OK"
	}
	failure := status.Convert(err)
	text := code.Code(failure.Code()).String()
	for _, detail := range failure.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			text += " " + info.GetReason()
		}
	}
	return text
}

// outcomes counts how the calls of a load ended.
type outcomes struct {
	stop context.CancelFunc
	done sync.WaitGroup

	mu     sync.Mutex
	counts map[string]int
}

// startCalls makes calls at each replica, with a pause after each, until the load is ended.
func (f *faultFleet) startCalls(t *testing.T, call func(replica int) string) *outcomes {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	o := &outcomes{stop: cancel, counts: map[string]int{}}
	for i := range f.apis {
		o.done.Go(func() {
			for wait(ctx, 20*time.Millisecond) {
				outcome := call(i)
				o.mu.Lock()
				o.counts[outcome]++
				o.mu.Unlock()
			}
		})
	}
	t.Cleanup(o.end)
	return o
}

func (o *outcomes) end() {
	o.stop()
	o.done.Wait()
}

// only ends the load. All calls must have ended in one way.
func (o *outcomes) only(t *testing.T, what, want string) {
	t.Helper()
	o.end()
	if len(o.counts) != 1 || o.counts[want] == 0 {
		t.Errorf("%s end with %v, want only %s", what, o.counts, want)
	}
}

// metricsOf returns the sum of the series of a metric that have the labels, over the fleet,
// and whether any of them differs from normal. Some counters begin with their first event.
func (f *faultFleet) metricsOf(t *testing.T, series string, normal float64) (sum float64, differs bool, err error) {
	name, labels, _ := strings.Cut(strings.TrimSuffix(series, "}"), "{")
	for _, r := range f.Replicas {
		text, err := fetched(t, &http.Client{Timeout: harness.Patience}, "http://"+r.Ops+"/metrics")
		if err != nil {
			return 0, false, err
		}
		for line := range strings.Lines(text) {
			rest, ok := strings.CutPrefix(line, name)
			if !ok || rest[0] != '{' && rest[0] != ' ' || !strings.Contains(rest, labels) {
				continue
			}
			value, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndex(line, " ")+1:]), 64)
			if err != nil {
				return 0, false, err
			}
			sum += value
			differs = differs || value != normal
		}
	}
	return sum, differs, nil
}

func (f *faultFleet) counters(t *testing.T) map[string]float64 {
	t.Helper()
	values := map[string]float64{}
	for _, metric := range watchedMetrics {
		sum, _, err := f.metricsOf(t, metric.series, 0)
		if err != nil {
			t.Fatal(err)
		}
		values[metric.series] = sum
	}
	return values
}

// seenGauges are the gauges that were not normal.
type seenGauges struct {
	mu   sync.Mutex
	seen map[string]bool
}

// watchGauges looks at the gauges until the test ends.
func (f *faultFleet) watchGauges(t *testing.T) *seenGauges {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &seenGauges{seen: map[string]bool{}}
	var done sync.WaitGroup
	done.Go(func() {
		for wait(ctx, 100*time.Millisecond) {
			for _, metric := range watchedMetrics {
				if !metric.gauge {
					continue
				}
				_, differs, err := f.metricsOf(t, metric.series, metric.normal)
				s.mu.Lock()
				s.seen[metric.series] = s.seen[metric.series] || err == nil && differs
				s.mu.Unlock()
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	return s
}

func (s *seenGauges) has(series string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[series]
}

// checkMetrics checks that the metrics of the row have changed, and no others.
func (row faultRow) checkMetrics(t *testing.T, f *faultFleet, before map[string]float64, seen *seenGauges) {
	t.Helper()
	changed := func(series string, gauge bool) bool {
		if gauge {
			return seen.has(series)
		}
		sum, _, err := f.metricsOf(t, series, 0)
		return err == nil && sum > before[series]
	}
	for _, metric := range watchedMetrics {
		if slices.Contains(row.shows, metric.series) {
			testkit.Eventually(t, metric.series+" shows the fault", func() bool { return changed(metric.series, metric.gauge) })
		}
	}
	for _, metric := range watchedMetrics {
		if !slices.Contains(row.shows, metric.series) && changed(metric.series, metric.gauge) {
			t.Errorf("%s has changed", metric.series)
		}
	}
}

// recovers waits until new requests succeed and the gauges are normal, and then requires that
// a new token costs one request to the IdP.
func (f *faultFleet) recovers(t *testing.T) {
	t.Helper()
	f.eventually(t, 2*time.Minute, "requests for new tokens succeed", func() bool {
		audience := f.nextAudience()
		return !slices.ContainsFunc(f.getAll(t, audience), func(outcome string) bool { return outcome != "OK" })
	})
	f.eventually(t, 2*time.Minute, "the gauges are normal", func() bool {
		for _, metric := range watchedMetrics {
			if _, differs, err := f.metricsOf(t, metric.series, metric.normal); metric.gauge && (err != nil || differs) {
				return false
			}
		}
		return true
	})
	requests := f.idp.Calls()
	for i, outcome := range f.getAll(t, f.nextAudience()) {
		if outcome != "OK" {
			t.Errorf("after the fault, replica %d answers with %s", i+1, outcome)
		}
	}
	if got := f.idp.Calls() - requests; got != 1 {
		t.Errorf("after the fault, the IdP gets %d requests for one token", got)
	}
}

// eventually waits longer than testkit.Eventually.
func (f *faultFleet) eventually(t *testing.T, patience time.Duration, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); rest(t, 500*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

const (
	faultDocument = "../../../docs/consistency.md"
	// faultVariable has TestFaults_documentHasEachRow write the table into the document.
	faultVariable = "TOKENBROKER_FAULTS"
)

// TestFaults_documentHasEachRow compares the table in the document with the rows.
func TestFaults_documentHasEachRow(t *testing.T) {
	const begin, end = "<!-- faults -->\n\n", "\n<!-- end of the faults -->"
	var table strings.Builder
	table.WriteString("| fault | a token that is held | a new token | a verification | requests to the IdP | metrics |\n|---|---|---|---|---|---|\n")
	for _, row := range faultRows {
		shows := "none"
		if len(row.shows) > 0 {
			shows = "`" + strings.Join(row.shows, "`, `") + "`"
		}
		fmt.Fprintf(&table, "| %s | %s | %s | %s | %s | %s |\n", row.fault, inDocument(row.hit), inDocument(row.miss), inDocument(row.verify), row.calls.text, shows)
	}
	text, err := os.ReadFile(faultDocument)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no place for the table", faultDocument)
	}
	want := head + begin + table.String() + end + tail
	if os.Getenv(faultVariable) != "" {
		if err := os.WriteFile(faultDocument, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(text) != want {
		t.Errorf("%s has another table; %s=1 go test -run TestFaults_documentHasEachRow ./internal/e2e/fleet writes it", faultDocument, faultVariable)
	}
}

func inDocument(outcome string) string {
	if outcome == "OK" {
		return outcome
	}
	name, reason, _ := strings.Cut(outcome, " ")
	return name + " `" + reason + "`"
}
