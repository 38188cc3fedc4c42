package fleet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

const (
	// soakVariable is the length of the soak test, and soakDefault its default.
	soakVariable = "TOKENBROKER_SOAK"
	soakDefault  = 10 * time.Minute
	// soakFile is where the test writes its record, with TOKENBROKER_SIZING.
	soakFile = "testdata/soak.json"
	// soakInterval is the time between two samples.
	soakInterval = 3 * time.Second
	// soakHeap is the plateau: the most that a replica keeps after a garbage collection,
	// beside the 32 MiB that each broker reserves.
	soakHeap = 16.
	// reservedHeap is that reserve.
	reservedHeap = 32.
)

// soak is a fleet in which everything happens at once.
type soak struct {
	*Fleet

	t         *testing.T
	dir       string // of the certificates
	authority *devca.Authority
	redis     *redistest.Server
	idp       *harness.CountingIdP // of the client whose secret is in a file
	managed   *harness.CountingIdP // of the client whose secret operators bring
	callers   []*client.Client     // one for each replica
	version   int                  // of the secret
	round     int
}

// Everything happens at once: refreshes, watches, verifications of good, bad and revoked
// tokens, purges, revocations, rotations, reloads, renewed certificates and restarts of
// Redis. No call fails, and memory, goroutines, descriptors and keys stay flat.
func TestSoak(t *testing.T) {
	long(t)
	lasts := soakDefault
	if text := os.Getenv(soakVariable); text != "" {
		lasts = harness.Must(time.ParseDuration(text))
	}
	s := startSoak(t)
	loads := s.startLoads()
	ends := time.Now().Add(lasts)
	ctx, stop := context.WithDeadline(t.Context(), ends)
	defer stop()
	record := make(chan soakRecord, 1)
	go func() { record <- s.sample(ctx) }()
	done := map[string]int{}
	for time.Now().Before(ends) {
		for _, one := range s.changes() {
			if time.Now().Before(ends) {
				one.make()
				done[one.name]++
				rest(t, time.Second)
			}
		}
	}
	got := <-record
	for _, load := range loads {
		load.end(t)
	}
	t.Logf("%v: %v", lasts, done)
	got.check(t)
	if os.Getenv("TOKENBROKER_SIZING") != "" {
		text := harness.Must(json.Marshal(got))
		if err := os.WriteFile(soakFile, append(text, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func startSoak(t *testing.T) *soak {
	t.Helper()
	s := &soak{t: t, dir: t.TempDir(), authority: harness.Must(devca.New("an authority")), Fleet: &Fleet{}}
	s.idp, s.managed = harness.SimpleIdP(t, 20*time.Second), harness.SimpleIdP(t, 20*time.Second)
	options := redisOptions()
	options.AppendOnly = true
	options.Password = "not-used" // Redis reads its append-only file as the default user, which must be on
	s.redis = redistest.Start(t, options)
	s.writeCertificate("caller", &x509.Certificate{DNSNames: []string{"everybody.example.com"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	s.renewCertificate()
	if _, err := s.authority.Write(s.dir, "ca"); err != nil {
		t.Fatal(err)
	}
	// The cache of verified tokens keeps expired ones until it is full, which takes a minute here.
	config := "server: {pprof: true}\naudit: {file: /dev/null}\nverification: {cache_mib: 2}\n" + redisConfig(t, "", s.redis.Addr()) +
		fmt.Sprintf("issuers: [{issuer: %q, audiences: [%q]}]\n", s.idp.Issuer(), s.idp.Client.Audiences[0]) +
		s.managed.Managed("orders") + "  files: " + s.idp.Config(t) + "\n"
	for range 3 {
		s.add(config)
	}
	s.managed.Takes("secret-0")
	s.operate("secret-0", "secret", "rotate", "orders")
	testkit.Eventually(t, "the replicas know the revocations", func() bool {
		return !slices.ContainsFunc(s.callers, func(c *client.Client) bool { return s.verify(c, s.mint("alice"), true) != nil })
	})
	s.revoke("revoked", s.mint("revoked"), time.Hour)
	return s
}

// add starts a replica that identifies callers by certificate.
func (s *soak) add(config string) {
	s.t.Helper()
	b := harness.NewBroker(s.t, config)
	file := func(name string) string { return filepath.Join(s.dir, name) }
	replaceIn(s.t, b.File, fmt.Sprintf("grpc: {address: %q, caller: everybody}", b.Grpc),
		fmt.Sprintf("grpc: %q, tls: {cert: %q, key: %q, client_ca: %q}", b.Grpc, file("broker.crt"), file("broker.key"), file("ca.crt")))
	replaceIn(s.t, b.File, "name: everybody,", "name: everybody, dns_san: everybody.example.com,")
	b.Env = []string{"TOKENBROKER_CA=" + file("ca.crt"), "TOKENBROKER_CERT=" + file("caller.crt"), "TOKENBROKER_KEY=" + file("caller.key")}
	b.Launch(s.t, "broker")
	b.Await(s.t)
	s.Replicas = append(s.Replicas, &Replica{Broker: b})
	s.callers = append(s.callers, newClient(s.t, b.Grpc, client.WithTLS(s.identity())))
}

func (s *soak) identity() *tls.Config {
	s.t.Helper()
	own, err := tls.LoadX509KeyPair(filepath.Join(s.dir, "caller.crt"), filepath.Join(s.dir, "caller.key"))
	if err != nil {
		s.t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{own}, RootCAs: s.authority.Pool(), MinVersion: tls.VersionTLS13}
}

// writeCertificate writes a new certificate and returns it.
func (s *soak) writeCertificate(name string, template *x509.Certificate) *x509.Certificate {
	s.t.Helper()
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(30*24*time.Hour)
	pair := harness.Must(s.authority.Issue(template))
	if _, _, err := pair.Write(s.dir, name); err != nil {
		s.t.Fatal(err)
	}
	return pair.Certificate()
}

func (s *soak) renewCertificate() *x509.Certificate {
	return s.writeCertificate("broker", &x509.Certificate{DNSNames: []string{"broker.example.com"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
}

// mint makes a token of a subject that no replica has seen.
func (s *soak) mint(subject string) string {
	now := time.Now()
	return s.idp.Mint(map[string]any{
		"iss": s.idp.Issuer(), "sub": subject, "client_id": "shop", "jti": strconv.FormatUint(rand.Uint64(), 36), "aud": s.idp.Client.Audiences[0], "scope": "read",
		"iat": now.Unix(), "exp": now.Add(20 * time.Second).Unix(),
	}).Reveal()
}

// verify returns an error unless a token is accepted, or rejected.
func (s *soak) verify(by *client.Client, token string, accepted bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience)
	defer cancel()
	_, err := by.Verify(ctx, token)
	if _, rejected := err.(*client.RejectedError); err != nil && !rejected || rejected == accepted { //nolint:errorlint // as documented
		return fmt.Errorf("accepted should be %v: %w", accepted, err)
	}
	return nil
}

// startLoads starts the callers. Each call goes to any replica.
func (s *soak) startLoads() []*callLoad {
	anyone := func() *client.Client { return s.callers[rand.N(len(s.callers))] }
	audiences := s.idp.Client.Audiences
	known := s.mint("bob")
	const pause = 25 * time.Millisecond
	return []*callLoad{
		startCallsEvery("GetToken, secret in a file", pause, func(ctx context.Context) error {
			_, err := anyone().Token(ctx, "files", client.WithAudience(audiences[rand.N(len(audiences))]))
			return err
		}),
		startCallsEvery("GetToken, managed secret", pause, func(ctx context.Context) error { _, err := anyone().Token(ctx, "orders"); return err }),
		startCallsEvery("tokens of watches", pause, func(ctx context.Context) error {
			_, err := anyone().TokenSource("files", client.WithAudience(audiences[rand.N(5)])).Token(ctx)
			return err
		}),
		startCallsEvery("VerifyToken of new tokens", pause, func(context.Context) error { return s.verify(anyone(), s.mint("alice"), true) }),
		startCallsEvery("VerifyToken of revoked tokens", pause, func(context.Context) error { return s.verify(anyone(), s.mint("revoked"), false) }),
		startCallsEvery("VerifyToken of a forged token", pause, func(context.Context) error { return s.verify(anyone(), known[:len(known)-8]+"AAAAAAAA", false) }),
	}
}

// soakChange is a change to the fleet.
type soakChange struct {
	name string
	make func()
}

func (s *soak) changes() []soakChange {
	return []soakChange{
		{"purges", func() { s.operate("", "purge", []string{"orders", "files"}[rand.N(2)], "--reason", "soak") }},
		{"revocations", func() {
			s.round++
			subject := fmt.Sprintf("subject-%d", s.round)
			s.revoke(subject, s.mint(subject), time.Minute)
		}},
		{"rotations", s.rotate},
		{"reloads", s.reload},
		{"certificates", s.renew},
		{"restarts of Redis", s.restartRedis},
	}
}

// operate runs a command of an operator at any replica. While the store does not confirm
// it, on a busy machine, the command is repeated, as its message says.
func (s *soak) operate(input string, args ...string) {
	s.t.Helper()
	testkit.Succeeds(s.t, strings.Join(args, " "), func() error {
		res := s.Replicas[rand.N(len(s.Replicas))].Bring(s.t, input, args...)
		if res.Code == 0 {
			return nil
		}
		if !strings.Contains(res.Stderr, "STORE_UNAVAILABLE") {
			s.t.Fatalf("%s: %v", strings.Join(args, " "), res)
		}
		return errors.New(res.String())
	})
}

// revoke revokes the tokens of a subject, which all replicas then reject.
func (s *soak) revoke(subject, token string, lasts time.Duration) {
	s.t.Helper()
	s.operate("", "revocations", "add", "--issuer", s.idp.Issuer(), "--subject", subject, "--for", lasts.String())
	for _, c := range s.callers {
		testkit.Eventually(s.t, "a replica rejects a revoked token", func() bool { return s.verify(c, token, false) == nil })
	}
}

func (s *soak) rotate() {
	s.t.Helper()
	before := fmt.Sprintf("secret-%d", s.version)
	s.version++
	after := fmt.Sprintf("secret-%d", s.version)
	s.managed.Takes(before, after)
	old := current(s.Replicas[0].Client(s.t, "orders"))
	s.operate(after, "secret", "rotate", "orders", "--request-id", "to "+after)
	for _, r := range s.Replicas {
		testkit.Eventually(s.t, "the new secret is current", func() bool { return current(r.Client(s.t, "orders")) != old })
	}
	rest(s.t, time.Second) // no fetch with the old one is left
	s.managed.Takes(after)
}

// reload changes the configuration of all replicas.
func (s *soak) reload() {
	s.t.Helper()
	s.round++
	for _, r := range s.Replicas {
		text := string(harness.Must(os.ReadFile(r.File)))
		text = regexp.MustCompile(`(?m)^# round .*\n`).ReplaceAllString(text, "")
		if strings.Contains(text, "  extra: ") {
			text = regexp.MustCompile(`(?m)^  extra: .*\n`).ReplaceAllString(text, "")
		} else {
			text = strings.Replace(text, "clients:\n", "clients:\n  extra: {token_url: \"https://127.0.0.1:1/token\", client_id: abc, secret: managed}\n", 1)
		}
		testkit.WriteFile(s.t, r.File, text+fmt.Sprintf("# round %d\n", s.round))
	}
	extra := strings.Contains(string(harness.Must(os.ReadFile(s.Replicas[0].File))), "  extra: ")
	for _, r := range s.Replicas {
		testkit.Eventually(s.t, "the new configuration is active", func() bool {
			return strings.Contains(s.list(r), "extra") == extra
		})
	}
}

func (s *soak) list(r *Replica) string {
	s.t.Helper()
	return r.Run(s.t, "clients").Stdout
}

// renew renews the certificate of the listeners.
func (s *soak) renew() {
	s.t.Helper()
	renewed := s.renewCertificate()
	for _, r := range s.Replicas {
		testkit.Eventually(s.t, "new connections get the new certificate", func() bool {
			conn, err := (&tls.Dialer{Config: s.identity()}).DialContext(s.t.Context(), "tcp", r.Grpc)
			if err != nil {
				return false
			}
			defer func() { _ = conn.Close() }()
			return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Equal(renewed)
		})
	}
}

// restartRedis restarts Redis, and waits until all replicas use it again.
func (s *soak) restartRedis() {
	s.t.Helper()
	s.redis.Restart()
	for _, r := range s.Replicas {
		for _, operation := range []string{"read", "write"} {
			testkit.Eventually(s.t, "Redis is back", func() bool { return r.StoreUp(s.t, operation) })
		}
	}
	rest(s.t, 2*time.Second) // two probes, which notice a restart that was too short to be seen
}

// soakRecord is what the plots show.
type soakRecord struct {
	Replicas []string     `json:"replicas"`
	Samples  []soakSample `json:"samples"`
}

type soakSample struct {
	Seconds     float64   `json:"seconds"`
	HeapMiB     []float64 `json:"heap_mib"`
	Goroutines  []float64 `json:"goroutines"`
	Descriptors []float64 `json:"descriptors"`
	// Keys in Redis, but those of requests to purge, which live for a day.
	Keys  float64        `json:"keys"`
	Kinds map[string]int `json:"-"`
}

// sample measures the fleet until ctx ends.
func (s *soak) sample(ctx context.Context) (record soakRecord) {
	for i := range s.Replicas {
		record.Replicas = append(record.Replicas, fmt.Sprintf("replica %d", i+1))
	}
	begun := time.Now()
	for wait(ctx, soakInterval) {
		if one, ok := s.measure(); ok {
			one.Seconds = float64(time.Since(begun).Round(100*time.Millisecond)) / float64(time.Second)
			record.Samples = append(record.Samples, one)
		}
	}
	return record
}

// measure returns false while Redis restarts.
func (s *soak) measure() (one soakSample, ok bool) {
	for _, r := range s.Replicas {
		// The first request makes the replica collect its garbage.
		if _, err := read("http://" + r.Ops + "/debug/pprof/heap?gc=1"); err != nil {
			return one, false
		}
		text, err := read("http://" + r.Ops + "/metrics")
		if err != nil {
			return one, false
		}
		one.HeapMiB = append(one.HeapMiB, rounded(series(text, "go_memstats_heap_alloc_bytes")/(1<<20)-reservedHeap))
		one.Goroutines = append(one.Goroutines, series(text, "go_goroutines"))
		one.Descriptors = append(one.Descriptors, series(text, "process_open_fds"))
	}
	keys, err := s.redis.TryCLI("--scan")
	if err != nil {
		return one, false
	}
	one.Kinds = kindsOf(strings.Fields(keys))
	for _, n := range one.Kinds {
		one.Keys += float64(n)
	}
	return one, true
}

func read(address string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(response.Body)
	return string(text), errors.Join(err, response.Body.Close())
}

func rounded(value float64) float64 { return float64(int(value*10+0.5)) / 10 }

// series returns the value of a series in the text of metrics.
func series(text, name string) float64 {
	for line := range strings.Lines(text) {
		if value, found := strings.CutPrefix(line, name+" "); found {
			return harness.Must(strconv.ParseFloat(strings.TrimSpace(value), 64))
		}
	}
	return 0
}

// kindsOf counts keys by what follows the last hash in their names.
func kindsOf(keys []string) map[string]int {
	kinds := map[string]int{}
	for _, key := range keys {
		_, kind, _ := strings.Cut(key, "}")
		if !strings.HasPrefix(kind, "purge:") {
			kinds[regexp.MustCompile(`[A-Za-z0-9_-]{22,}`).ReplaceAllString(kind, "*")]++
		}
	}
	return kinds
}

// check compares the last third with the middle one.
func (r soakRecord) check(t *testing.T) {
	t.Helper()
	if len(r.Samples) < 12 {
		t.Fatalf("only %d samples", len(r.Samples))
	}
	third := len(r.Samples) / 3
	middle, last := r.Samples[third:2*third], r.Samples[2*third:]
	flat := func(what string, share, more float64, of func(soakSample) float64) {
		before, after := mean(middle, of), mean(last, of)
		t.Logf("%s: %.1f in the middle third, %.1f in the last", what, before, after)
		if after > before*(1+share)+more {
			t.Errorf("%s grows: %.1f in the middle third, %.1f in the last", what, before, after)
		}
	}
	for i, name := range r.Replicas {
		flat("heap of "+name, 0.1, 1, func(s soakSample) float64 { return s.HeapMiB[i] })
		flat("goroutines of "+name, 0.05, 5, func(s soakSample) float64 { return s.Goroutines[i] })
		flat("descriptors of "+name, 0.05, 3, func(s soakSample) float64 { return s.Descriptors[i] })
		if most := slices.MaxFunc(last, func(a, b soakSample) int { return int(a.HeapMiB[i]*10 - b.HeapMiB[i]*10) }).HeapMiB[i]; most > soakHeap {
			t.Errorf("the heap of %s reaches %.1f MiB, over the plateau of %.0f", name, most, soakHeap)
		}
	}
	flat("keys", 0.05, 10, func(s soakSample) float64 { return s.Keys })
	for _, at := range []soakSample{middle[0], last[len(last)-1]} {
		var kinds []string
		for _, kind := range slices.Sorted(maps.Keys(at.Kinds)) {
			kinds = append(kinds, fmt.Sprintf("%s %d", kind, at.Kinds[kind]))
		}
		t.Logf("keys after %.0f s: %s", at.Seconds, strings.Join(kinds, ", "))
	}
}

func mean(samples []soakSample, of func(soakSample) float64) (sum float64) {
	for _, one := range samples {
		sum += of(one)
	}
	return sum / float64(len(samples))
}
