package fleet

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// The recordings replay faster than they were made: a scrape every 2 s becomes one
// every 15 s, the usual interval of Prometheus.
const (
	recordInterval = 2 * time.Second
	replayInterval = 15 * time.Second
	// replayStart is when the recording begins in the replay, so that times before its
	// beginning are not negative.
	replayStart = time.Hour
)

const (
	rulesFile     = "../../../deploy/prometheus/tokenbroker.rules.yaml"
	recordingsDir = "../../../deploy/prometheus/tests"
)

// recordVariable has TestRecordFaults run. Its value is a regular expression for the
// names of recordings.
const recordVariable = "TOKENBROKER_RECORD"

// scene is a fleet that a fault befalls while its metrics are recorded.
type scene struct {
	*Fleet

	redis  *redistest.Server
	idp    *harness.CountingIdP
	secret string // path of the file
	dir    string // for other files of the fault
	tape   *tape
}

// drama is one recording.
type drama struct {
	name    string
	alerts  []string // that fire at any time, and no others
	healthy time.Duration
	faulty  time.Duration
	mended  time.Duration
	// start starts the fleet in another way.
	start     func(t *testing.T, s *scene)
	more      func(t *testing.T, s *scene) string // configuration
	strike    func(t *testing.T, s *scene)
	mend      func(t *testing.T, s *scene)
	tokenLife time.Duration // default: an hour
	without   bool          // without load
}

var dramas = []drama{
	{name: "healthy-hour", healthy: 8 * time.Minute, tokenLife: time.Minute},
	{name: "rolling-restart", mended: 90 * time.Second, strike: func(t *testing.T, s *scene) {
		for _, r := range s.Replicas {
			r.Process.Stop(t, syscall.SIGTERM)
			r.Launch(t, "broker")
			r.Await(t)
			r.Connect(t)
			rest(t, 2*recordInterval)
		}
	}},
	{
		name: "redis-away", alerts: []string{"TokenbrokerStoreAway"},
		strike: func(_ *testing.T, s *scene) { s.redis.Kill() }, mend: func(_ *testing.T, s *scene) { s.redis.Restart() },
	},
	{
		name: "redis-read-only", alerts: []string{"TokenbrokerStoreTakesNoWrites"},
		strike: func(_ *testing.T, s *scene) { s.redis.CLI("replicaof", "127.0.0.1", "1") },
		mend:   func(_ *testing.T, s *scene) { s.redis.CLI("replicaof", "no", "one") },
	},
	{
		name: "idp-down", alerts: []string{"TokenbrokerIdPFailing"},
		strike: func(_ *testing.T, s *scene) { s.idp.SetDown(true) }, mend: func(_ *testing.T, s *scene) { s.idp.SetDown(false) },
	},
	{
		name: "token-runs-out", alerts: []string{"TokenbrokerIdPFailing", "TokenbrokerTokenRunsOut"}, tokenLife: 30 * time.Second,
		strike: func(_ *testing.T, s *scene) { s.idp.SetDown(true) }, mend: func(_ *testing.T, s *scene) { s.idp.SetDown(false) },
	},
	{
		name: "idp-refusing", alerts: []string{"TokenbrokerIdPRefusesRequests"},
		strike: func(_ *testing.T, s *scene) { s.idp.SetAnswer(refusing(http.StatusBadRequest, "invalid_scope")) },
		mend:   func(_ *testing.T, s *scene) { s.idp.SetAnswer(nil) },
	},
	{
		name: "idp-throttling", alerts: []string{"TokenbrokerIdPThrottles"},
		strike: func(_ *testing.T, s *scene) { s.idp.SetAnswer(refusing(http.StatusTooManyRequests, "slow_down")) },
		mend:   func(_ *testing.T, s *scene) { s.idp.SetAnswer(nil) },
	},
	{
		name: "wrong-secret", alerts: []string{"TokenbrokerSecretRefused"},
		strike: func(t *testing.T, s *scene) { testkit.WriteFile(t, s.secret, "wrong") },
		mend:   func(t *testing.T, s *scene) { testkit.WriteFile(t, s.secret, "right") },
	},
	{
		name: "certificate-ends", alerts: []string{"TokenbrokerCertificateEnds"}, without: true, start: startEncrypted,
		strike: func(t *testing.T, s *scene) { writeCertificate(t, s.dir, 6*24*time.Hour) },
		mend:   func(t *testing.T, s *scene) { writeCertificate(t, s.dir, 80*24*time.Hour) },
	},
	{
		name: "certificate-not-renewed", alerts: []string{"TokenbrokerCertificateReloadFailing"}, without: true, start: startEncrypted,
		strike: func(t *testing.T, s *scene) {
			testkit.WriteFile(t, filepath.Join(s.dir, "broker.crt"), "not a certificate")
		},
		mend: func(t *testing.T, s *scene) { writeCertificate(t, s.dir, 80*24*time.Hour) },
	},
	{
		name: "foreign-certificate", alerts: []string{"TokenbrokerConnectionsRefused"}, without: true, start: startEncrypted,
		strike: connectAsStranger,
	},
	{
		name: "audit-disk-full", alerts: []string{"TokenbrokerAuditFailing"},
		more: func(t *testing.T, s *scene) string {
			mountSmall(t, s.dir)
			return fmt.Sprintf("audit: {file: %q}\n", filepath.Join(s.dir, "audit.jsonl"))
		},
		strike: func(t *testing.T, s *scene) { fillDisk(t, filepath.Join(s.dir, "ballast")) },
		mend: func(t *testing.T, s *scene) {
			if err := os.Remove(filepath.Join(s.dir, "ballast")); err != nil {
				t.Fatal(err)
			}
		},
	},
	{
		name: "replica-lost", alerts: []string{"TokenbrokerReplicaLost"},
		strike: func(t *testing.T, s *scene) { s.Replicas[2].Process.Stop(t, syscall.SIGKILL) },
		mend: func(t *testing.T, s *scene) {
			s.Replicas[2].Launch(t, "broker")
			s.Replicas[2].Await(t)
		},
	},
	{
		name: "reload-failing", alerts: []string{"TokenbrokerConfigReloadFailing"},
		strike: func(t *testing.T, s *scene) { replaceIn(t, s.Replicas[0].File, "clients:", "clientz:") },
		mend:   func(t *testing.T, s *scene) { replaceIn(t, s.Replicas[0].File, "clientz:", "clients:") },
	},
	{
		name: "revocations-not-loaded", alerts: []string{"TokenbrokerVerifiesNothing"}, faulty: 90 * time.Second,
		strike: joinWithoutKey,
	},
}

func refusing(status int, code string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Retry-After", "20")
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"error":%q}`, code)
		return true
	}
}

func replaceIn(t *testing.T, path, before, after string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	testkit.WriteFile(t, path, strings.ReplaceAll(string(text), before, after))
}

func mountSmall(t *testing.T, dir string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("a small file system cannot be mounted here (it takes root): %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}

// fillDisk writes until the disk has no room.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	for {
		if _, err := file.Write(make([]byte, 512)); err != nil {
			return
		}
	}
}

// startEncrypted starts the fleet with certificates of its own.
func startEncrypted(t *testing.T, s *scene) {
	t.Helper()
	writeCertificate(t, s.dir, 80*24*time.Hour)
	for range 3 {
		r := &Replica{Broker: harness.NewBroker(t, s.Config)}
		replaceIn(t, r.File, fmt.Sprintf("grpc: {address: %q, caller: everybody}", r.Grpc),
			fmt.Sprintf("grpc: %q, tls: {cert: %[2]s/broker.crt, key: %[2]s/broker.key, client_ca: %[2]s/ca.crt}", r.Grpc, s.dir))
		replaceIn(t, r.File, "name: everybody,", "name: everybody, dns_san: everybody.example.com,")
		r.Launch(t, "broker")
		s.Replicas = append(s.Replicas, r)
	}
	for _, r := range s.Replicas {
		r.Await(t)
	}
}

func writeCertificate(t *testing.T, dir string, lasts time.Duration) {
	t.Helper()
	authority, err := devca.New("an authority")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Issue(&x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "broker"}, DNSNames: []string{"broker.example.com"},
		NotAfter: time.Now().Add(lasts), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := pair.Write(dir, "broker"); err != nil {
		t.Fatal(err)
	}
	if _, err := authority.Write(dir, "ca"); err != nil {
		t.Fatal(err)
	}
}

// connectAsStranger connects with a certificate of another authority.
func connectAsStranger(t *testing.T, s *scene) {
	t.Helper()
	files := redistest.NewCertificates(t)
	own, err := tls.LoadX509KeyPair(files.ClientCert, files.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil },
		InsecureSkipVerify:   true, // the broker's certificate does not matter here
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", s.Replicas[1].Grpc)
	if err != nil {
		return // refused in the handshake
	}
	_, _ = conn.Read(make([]byte, 1))
	_ = conn.Close()
}

// joinWithoutKey gives the fleet a new sealing key, revokes something and starts a
// replica whose ring lacks that key.
func joinWithoutKey(t *testing.T, s *scene) {
	t.Helper()
	ring := regexp.MustCompile(`sealing_keys: "file:([^"]+)"`).FindStringSubmatch(s.Config)[1]
	text, err := os.ReadFile(ring)
	if err != nil {
		t.Fatal(err)
	}
	old := harness.WriteFile(t, "ring.json", string(text))
	added := harness.Run(t, "ring", "add", ring)
	key := ringKeyID.FindStringSubmatch(added.Stderr)[1]
	rest(t, 12*time.Second) // replicas read their rings every 10 s
	promoted := harness.Run(t, "ring", "promote", ring, key)
	if added.Code != 0 || promoted.Code != 0 {
		t.Fatalf("ring: %v, %v", added, promoted)
	}
	rest(t, 12*time.Second)
	if res := s.Replicas[0].Run(t, "revocations", "add", "--issuer", s.idp.Issuer(), "--client-id", "other", "--reason", "a test"); res.Code != 0 {
		t.Fatalf("revocations add: %v", res)
	}
	r := &Replica{Broker: harness.NewBroker(t, strings.ReplaceAll(s.Config, ring, old))}
	r.Launch(t, "broker")
	r.Await(t)
	s.tape.add(r)
}

// TestRecordFaults records the metrics of a fleet during faults, for the tests of the
// alerts. It runs on request, because it takes minutes and replaces files.
func TestRecordFaults(t *testing.T) {
	chosen := os.Getenv(recordVariable)
	if chosen == "" {
		t.Skipf("records the faults anew: set %s to a regular expression for their names", recordVariable)
	}
	for _, d := range dramas {
		if !regexp.MustCompile(chosen).MatchString(d.name) {
			continue
		}
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			d.record(t)
		})
	}
}

func (d drama) record(t *testing.T) {
	if d.strike != nil && d.healthy == 0 {
		d.healthy = 20 * time.Second
	}
	if d.mend != nil && d.mended == 0 {
		d.mended = 40 * time.Second
	}
	if d.strike != nil && d.faulty == 0 && d.mended != 90*time.Second {
		d.faulty = time.Minute
	}
	if d.tokenLife == 0 {
		d.tokenLife = time.Hour
	}
	s := &scene{redis: redistest.Start(t, redisOptions()), idp: harness.SimpleIdP(t, d.tokenLife), dir: t.TempDir(), Fleet: &Fleet{}}
	s.secret = harness.WriteFile(t, "secret", "right")
	s.Config = redisConfig(t, "", s.redis.Addr()) + fmt.Sprintf(
		"clients:\n  orders: {token_url: %q, client_id: abc, secret: %q, audience: %q, scopes: [read, write]}\nissuers: [{issuer: %q, audiences: [%q]}]\n",
		s.idp.Issuer()+"/token", "file:"+s.secret, s.idp.Client.Audiences[0], s.idp.Issuer(), s.idp.Client.Audiences[0])
	if d.more != nil {
		s.Config += d.more(t, s)
	}
	if d.start != nil {
		d.start(t, s)
	} else {
		s.Add(t, 3, "broker", 0)
	}
	testkit.Eventually(t, "the fleet knows the revocations and the keys", func() bool {
		return !slices.ContainsFunc(s.Replicas, func(r *Replica) bool {
			return r.Metric(t, "tokenbroker_revocations_usable") == 0 || r.Metric(t, fmt.Sprintf("tokenbroker_jwks_last_success_timestamp_seconds{issuer=%q}", s.idp.Issuer())) == 0
		})
	})
	if !d.without {
		startLoad(t, s.Replicas, 1, 100*time.Millisecond, "orders")
		go s.wantMore(t)
	}
	s.tape = newTape(t, s.Replicas)
	s.tape.record(d.healthy)
	if d.strike != nil {
		struck := make(chan struct{})
		go func() {
			defer close(struck)
			d.strike(t, s)
		}()
		s.tape.recordUntil(struck)
		s.tape.record(d.faulty)
	}
	if d.mend != nil {
		d.mend(t, s)
	}
	s.tape.record(d.mended)
	renamed := []string{s.redis.Addr(), "redis:6379", s.idp.Issuer(), "https://idp.example.com"}
	path := filepath.Join(recordingsDir, d.name+".yaml")
	if err := os.WriteFile(path, []byte(s.tape.test(d, strings.NewReplacer(renamed...))), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := promtool(t, "test", "rules", path); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// wantMore requests tokens for one more audience each second, so that the IdP gets
// requests while the fleet holds its usual token.
func (s *scene) wantMore(t *testing.T) {
	for i := 0; wait(t.Context(), time.Second); i++ {
		audience := s.idp.Client.Audiences[1+i%(len(s.idp.Client.Audiences)-1)]
		replica := s.Replicas[i%2]
		replica.Ask(t, "orders", client.WithAudience(audience))
	}
}

// tape is the recorded series of a fleet.
type tape struct {
	t        *testing.T
	replicas []*Replica
	names    *regexp.Regexp // of the metrics that the rules use
	begun    time.Time
	ticks    int
	series   map[string][]string // samples by tick; empty: there was none
}

func newTape(t *testing.T, replicas []*Replica) *tape {
	t.Helper()
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`\b(tokenbroker|grpc)_\w+`).FindAllString(string(rules), -1)
	slices.Sort(names)
	return &tape{
		t: t, replicas: slices.Clone(replicas), series: map[string][]string{}, begun: time.Now(),
		names: regexp.MustCompile(`^(` + strings.Join(slices.Compact(names), "|") + `)(?:\{(.*)\})? (\S+)$`),
	}
}

func (p *tape) add(r *Replica) { p.replicas = append(p.replicas, r) }

func (p *tape) record(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		p.tick()
	}
}

func (p *tape) recordUntil(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		default:
			p.tick()
		}
	}
}

// tick scrapes all replicas once, in time.
func (p *tape) tick() {
	rest(p.t, time.Until(p.begun.Add(time.Duration(p.ticks)*recordInterval)))
	for i, r := range p.replicas {
		instance := fmt.Sprintf(`instance="broker-%d:9090",job="tokenbroker"`, i+1)
		text, up := scrape(p.t, r)
		p.put("up{"+instance+"}", up)
		for line := range strings.Lines(text) {
			sample := p.names.FindStringSubmatch(strings.TrimSpace(line))
			if sample == nil || strings.HasPrefix(sample[1], "grpc_") && !strings.Contains(sample[2], `grpc_service="tokenbroker`) {
				continue
			}
			labels := instance
			if sample[2] != "" {
				labels = sample[2] + "," + instance
			}
			p.put(sample[1]+"{"+labels+"}", p.rebased(sample[1], sample[3]))
		}
	}
	p.ticks++
}

// scrape returns the metrics of a replica, or an empty text if it does not answer.
func scrape(t *testing.T, r *Replica) (text, up string) {
	t.Helper()
	quick := &http.Client{Timeout: recordInterval / 2, Transport: &http.Transport{DisableKeepAlives: true}}
	if !harness.Answers(t, quick, "http://"+r.Ops+"/livez") {
		return "", "0"
	}
	return r.Metrics(t), "1"
}

func (p *tape) put(series, value string) {
	samples := p.series[series]
	for len(samples) < p.ticks {
		samples = append(samples, "")
	}
	p.series[series] = append(samples, value)
}

// rebased moves times into the time of the replay. Times that are near move faster, like
// all that happens in it; ends of certificates do not. Keys are fetched every 5 minutes
// of real time, so their age stays what it was.
func (p *tape) rebased(name, value string) string {
	number, err := strconv.ParseFloat(value, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	if !strings.HasSuffix(name, "_timestamp_seconds") || number == 0 {
		return strconv.FormatFloat(number, 'f', -1, 64)
	}
	distance, from := number-seconds(p.begun), replayStart
	switch {
	case strings.HasPrefix(name, "tokenbroker_jwks_"):
		distance, from = number-seconds(time.Now()), replayStart+time.Duration(p.ticks)*replayInterval
	case math.Abs(distance) < (24 * time.Hour).Seconds():
		distance *= replayInterval.Seconds() / recordInterval.Seconds()
	}
	return strconv.FormatFloat(math.Round(distance+from.Seconds()), 'f', -1, 64)
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// test is the recording as a test for promtool. The fleet may raise the alerts of the
// drama at any time, and no others.
func (p *tape) test(d drama, renamed *strings.Replacer) string {
	var text strings.Builder
	fmt.Fprintf(&text, "# Recorded by TestRecordFaults from a fleet of real brokers, every %v of real time; replayed every %v.\n# Left out: metrics that no rule uses, and codes of gRPC that never occurred.\n", recordInterval, replayInterval)
	fmt.Fprintf(&text, "rule_files: [../tokenbroker.rules.yaml]\nevaluation_interval: %v\ntests:\n  - interval: %v\n    name: %s\n    input_series:\n", replayInterval, replayInterval, d.name)
	names := make([]string, 0, len(p.series))
	for name, samples := range p.series {
		if strings.HasPrefix(name, "grpc_") && !slices.ContainsFunc(samples, func(sample string) bool { return sample != "0" && sample != "" }) {
			continue // hundreds of series that say nothing
		}
		names = append(names, name)
	}
	slices.Sort(names)
	first := int(replayStart / replayInterval)
	for _, name := range names {
		fmt.Fprintf(&text, "      - series: '%s'\n        values: '_x%d %s'\n", renamed.Replace(name), first, notation(p.series[name], p.ticks))
	}
	end := replayStart + time.Duration(p.ticks)*replayInterval
	fmt.Fprintf(&text, "    promql_expr_test:\n      - expr: group by (alertname) (count_over_time(ALERTS{alertstate=\"firing\"}[%v]))\n        eval_time: %v\n        exp_samples:", end, end)
	if len(d.alerts) == 0 {
		text.WriteString(" []")
	}
	text.WriteString("\n")
	for _, alert := range d.alerts {
		fmt.Fprintf(&text, "          - {labels: '{alertname=%q}', value: 1}\n", alert)
	}
	return text.String()
}

// notation writes samples as promtool reads them.
func notation(samples []string, ticks int) string {
	for len(samples) < ticks {
		samples = append(samples, "")
	}
	var parts []string
	for at := 0; at < len(samples); {
		next := at + 1
		for next < len(samples) && samples[next] == samples[at] {
			next++
		}
		run, value := next-at, samples[at]
		switch {
		case value == "" && at > 0: // Prometheus ends the series of a target that does not answer
			parts = append(parts, "stale")
			if run > 1 {
				parts = append(parts, fmt.Sprintf("_x%d", run-1))
			}
		case value == "":
			parts = append(parts, fmt.Sprintf("_x%d", run))
		case run == 1:
			parts = append(parts, value)
		default:
			parts = append(parts, fmt.Sprintf("%s+0x%d", value, run-1))
		}
		at = next
	}
	return strings.Join(parts, " ")
}
