package fleet

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// scene is a fleet that a fault befalls. Its replicas have the same configuration, byte
// for byte, as in a real fleet; the files that it names are in the directory of each.
type scene struct {
	*Fleet

	redis     *redistest.Server
	cluster   *redistest.Cluster // in place of redis
	idp       *harness.CountingIdP
	dir       string           // for files that all replicas share
	tape      *tape            // while the scene is recorded
	authority *devca.Authority // of certificates, if there are any
	struck    time.Time
	ids       []string // of the replicas, each with a name for documents

	mu        sync.Mutex
	addresses []string // of the ops listeners
}

// drama is a fault and what must come of it.
type drama struct {
	name    string
	alerts  []string // that fire at any time, and no others
	healthy time.Duration
	faulty  time.Duration
	mended  time.Duration
	// reported is how the fault must show; nil: TestEachFaultIsReported leaves it out.
	reported *reported
	// clustered: the store is a Cluster of three masters.
	clustered bool
	// start starts the fleet in another way.
	start     func(t *testing.T, s *scene)
	more      func(t *testing.T, s *scene) string // configuration
	strike    func(t *testing.T, s *scene)
	mend      func(t *testing.T, s *scene)
	tokenLife time.Duration // default: an hour
	without   bool          // without load
}

// reported is how a fault shows. Its first alert is that of the drama.
type reported struct {
	fault    string   // in words
	findings []string // the first must be there, the others may be
	log      []string // words of a line
	lasting  bool     // the finding lasts longer than the fault
}

var dramas = []drama{
	{name: "healthy-hour", healthy: 8 * time.Minute, tokenLife: time.Minute},
	{name: "rolling-restart", mended: 90 * time.Second, strike: func(t *testing.T, s *scene) {
		for i, r := range s.Replicas {
			r.Process.Stop(t, syscall.SIGTERM)
			s.launch(t, i, "broker")
			r.Connect(t)
			rest(t, 2*recordInterval)
		}
	}},
	{
		name: "redis-away", alerts: []string{"TokenbrokerStoreAway"},
		reported: &reported{fault: "Redis is away", findings: []string{"store-away"}, log: []string{"Redis is away"}},
		strike:   func(_ *testing.T, s *scene) { s.redis.Kill() }, mend: func(_ *testing.T, s *scene) { s.redis.Restart() },
	},
	{
		name: "redis-read-only", alerts: []string{"TokenbrokerStoreTakesNoWrites"},
		reported: &reported{fault: "Redis is read-only", findings: []string{"store-read-only"}, log: []string{"Redis takes no writes"}},
		strike:   func(_ *testing.T, s *scene) { s.redis.CLI("replicaof", "127.0.0.1", "1") },
		mend:     func(_ *testing.T, s *scene) { s.redis.CLI("replicaof", "no", "one") },
	},
	{
		name: "redis-out-of-memory", alerts: []string{"TokenbrokerStoreTakesNoWrites"},
		reported: &reported{fault: "Redis is out of memory", findings: []string{"store-full"}, log: []string{"Redis takes no writes"}},
		strike:   func(_ *testing.T, s *scene) { s.redis.CLI("config", "set", "maxmemory", "1") },
		mend:     func(_ *testing.T, s *scene) { s.redis.CLI("config", "set", "maxmemory", "0") },
	},
	{
		name: "redis-shard-away", alerts: []string{"TokenbrokerStoreAway"}, clustered: true,
		reported: &reported{fault: "One shard of a Redis Cluster is away", findings: []string{"store-shard-away"}, log: []string{"Redis is away"}},
		strike:   func(_ *testing.T, s *scene) { s.cluster.Servers[2].Kill() },
		mend:     func(_ *testing.T, s *scene) { s.cluster.Servers[2].Restart() },
	},
	{
		name: "idp-down", alerts: []string{"TokenbrokerIdPFailing"},
		reported: &reported{fault: "The IdP is down", findings: []string{"idp-down"}, log: []string{"no token from the IdP"}},
		strike:   func(_ *testing.T, s *scene) { s.idp.SetDown(true) }, mend: func(_ *testing.T, s *scene) { s.idp.SetDown(false) },
	},
	{
		name: "token-runs-out", alerts: []string{"TokenbrokerIdPFailing", "TokenbrokerTokenRunsOut"}, tokenLife: 30 * time.Second,
		strike: func(_ *testing.T, s *scene) { s.idp.SetDown(true) }, mend: func(_ *testing.T, s *scene) { s.idp.SetDown(false) },
	},
	{
		name: "idp-refusing", alerts: []string{"TokenbrokerIdPRefusesRequests"},
		reported: &reported{fault: "The IdP refuses the client", findings: []string{"idp-refuses"}, log: []string{"no token from the IdP", "invalid_scope"}},
		strike:   func(_ *testing.T, s *scene) { s.idp.SetAnswer(refusing(http.StatusBadRequest, "invalid_scope")) },
		mend:     func(_ *testing.T, s *scene) { s.idp.SetAnswer(nil) },
	},
	{
		name: "idp-throttling", alerts: []string{"TokenbrokerIdPThrottles"},
		reported: &reported{fault: "The IdP throttles the client", findings: []string{"idp-throttles"}, log: []string{"no token from the IdP", "429"}},
		strike:   func(_ *testing.T, s *scene) { s.idp.SetAnswer(refusing(http.StatusTooManyRequests, "slow_down")) },
		mend:     func(_ *testing.T, s *scene) { s.idp.SetAnswer(nil) },
	},
	{
		name: "wrong-secret", alerts: []string{"TokenbrokerSecretRefused"},
		reported: &reported{fault: "The file of a secret has the wrong content", findings: []string{"secret-refused"}, log: []string{"the IdP refuses a secret", "invalid_client"}},
		strike:   func(t *testing.T, s *scene) { s.writeAll(t, "secret", "wrong") },
		mend:     func(t *testing.T, s *scene) { s.writeAll(t, "secret", "right") },
	},
	{
		name: "other-ring", alerts: []string{"TokenbrokerRingsDiffer"}, faulty: 90 * time.Second,
		reported: &reported{fault: "A replica has another ring of sealing keys", findings: []string{"ring-differs"}, log: []string{"finding:", "ring-differs"}},
		strike:   func(t *testing.T, s *scene) { joinWithoutKey(t, s, false) },
		mend:     func(t *testing.T, s *scene) { s.copyRing(t, 3) },
	},
	{
		name: "clock-off", alerts: []string{"TokenbrokerClocksDiffer"}, faulty: 90 * time.Second,
		reported: &reported{fault: "The clock of a replica is 2 minutes ahead", findings: []string{"clock-differs"}, log: []string{"finding:", "clock-differs"}},
		strike: func(t *testing.T, s *scene) {
			binary := clockBroker(t)
			s.Replicas[2].Process.Stop(t, syscall.SIGTERM)
			s.struck = time.Now()
			s.launch(t, 2, binary, clockVariable+"=120")
		},
		mend: func(t *testing.T, s *scene) {
			s.Replicas[2].Process.Stop(t, syscall.SIGTERM)
			s.launch(t, 2, "broker")
		},
	},
	{
		name: "certificate-ends", alerts: []string{"TokenbrokerCertificateEnds"}, without: true, start: startEncrypted,
		reported: &reported{fault: "The certificate of a listener ends in 6 days", findings: []string{"certificate-ending"}, log: []string{"finding:", "certificate-ending"}},
		strike:   func(t *testing.T, s *scene) { s.writeCertificate(t, 6*24*time.Hour) },
		mend:     func(t *testing.T, s *scene) { s.writeCertificate(t, 80*24*time.Hour) },
	},
	{
		name: "certificate-not-renewed", alerts: []string{"TokenbrokerCertificateReloadFailing"}, without: true, start: startEncrypted,
		strike: func(t *testing.T, s *scene) {
			testkit.WriteFile(t, filepath.Join(s.dir, "broker.crt"), "not a certificate")
		},
		mend: func(t *testing.T, s *scene) { s.writeCertificate(t, 80*24*time.Hour) },
	},
	{
		name: "foreign-certificate", alerts: []string{"TokenbrokerConnectionsRefused"}, without: true, start: startEncrypted,
		strike: connectAsStranger,
	},
	{
		name: "audit-disk-full", alerts: []string{"TokenbrokerAuditFailing"},
		reported: &reported{fault: "The disk of the audit log is full", findings: []string{"audit-failing", "audit-lost"}, log: []string{"the audit cannot be written"}, lasting: true},
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
		reported: &reported{fault: "A replica is lost", findings: []string{"replica-lost"}, log: []string{"finding:", "replica-lost"}},
		strike:   func(t *testing.T, s *scene) { s.Replicas[2].Process.Stop(t, syscall.SIGKILL) },
		mend:     func(t *testing.T, s *scene) { s.launch(t, 2, "broker") },
	},
	{
		name: "reload-failing", alerts: []string{"TokenbrokerConfigReloadFailing"},
		strike: func(t *testing.T, s *scene) { replaceIn(t, s.Replicas[0].File, "clients:", "clientz:") },
		mend:   func(t *testing.T, s *scene) { replaceIn(t, s.Replicas[0].File, "clientz:", "clients:") },
	},
	{
		name: "config-differs", alerts: []string{"TokenbrokerConfigsDiffer"}, faulty: 170 * time.Second,
		reported: &reported{fault: "The configuration of a replica differs", findings: []string{"config-differs"}, log: []string{"finding:", "config-differs"}},
		strike:   func(t *testing.T, s *scene) { replaceIn(t, s.Replicas[2].File, "[read, write]", "[read]") },
		mend: func(t *testing.T, s *scene) {
			replaceIn(t, s.Replicas[2].File, "scopes: [read]", "scopes: [read, write]")
		},
	},
	{
		name: "revocations-not-loaded", alerts: []string{"TokenbrokerVerifiesNothing", "TokenbrokerRingsDiffer"}, faulty: 90 * time.Second,
		reported: &reported{fault: "A replica cannot load the revocations", findings: []string{"revocations-not-loaded", "ring-differs"}, log: []string{"tokens are not verified, because this replica may have missed revocations"}},
		strike:   func(t *testing.T, s *scene) { joinWithoutKey(t, s, true) },
		mend:     func(t *testing.T, s *scene) { s.copyRing(t, 3) },
	},
	{
		name: "caller-limited", alerts: []string{"TokenbrokerCallerLimited"},
		strike: func(t *testing.T, s *scene) { s.replaceAll(t, "per_second: 0", "per_second: 2") },
		mend:   func(t *testing.T, s *scene) { s.replaceAll(t, "per_second: 2", "per_second: 0") },
	},
	{
		name: "secret-missing", alerts: []string{"TokenbrokerFinding"}, faulty: 80 * time.Second,
		strike: func(t *testing.T, s *scene) { s.replaceAll(t, `secret: "file:secret"`, "secret: managed") },
		mend:   func(t *testing.T, s *scene) { s.replaceAll(t, "secret: managed", `secret: "file:secret"`) },
	},
	{
		name: "traces-lost", alerts: []string{"TokenbrokerTracesLost"}, healthy: time.Minute,
		more: func(t *testing.T, _ *scene) string {
			return fmt.Sprintf("tracing: {endpoint: \"http://%s\", sample: 1}\n", harness.FreeAddress(t))
		},
	},
}

// begin starts the fleet of a drama, and waits until nothing is wrong with it.
func (d drama) begin(t *testing.T) *scene {
	t.Helper()
	life := d.tokenLife
	if life == 0 {
		life = time.Hour
	}
	s := &scene{idp: harness.SimpleIdP(t, life), dir: t.TempDir(), Fleet: &Fleet{}}
	var addresses, more string
	if d.clustered {
		s.cluster = redistest.StartMasters(t, redisOptions())
		addresses, more = strings.Join(s.cluster.Addrs(), `", "`), "cluster: true, "
	} else {
		s.redis = redistest.Start(t, redisOptions())
		addresses = s.redis.Addr()
	}
	s.Config = fmt.Sprintf("store:\n  redis: {%susername: tokenbroker, password: \"file:redis-password\", addresses: [\"%s\"]}\n  sealing_keys: \"file:ring.json\"\n", more, addresses) +
		fmt.Sprintf("clients:\n  orders: {issuer: %q, client_id: abc, secret: \"file:secret\", audience: %q, scopes: [read, write]}\nissuers: [{issuer: %q, audiences: [%q]}]\n",
			s.idp.Issuer(), s.idp.Client.Audiences[0], s.idp.Issuer(), s.idp.Client.Audiences[0])
	if d.more != nil {
		s.Config += d.more(t, s)
	}
	if d.start != nil {
		d.start(t, s)
	} else {
		ring := harness.Run(t, "ring", "new").Stdout
		for range 3 {
			s.join(t, s.Config, ring)
		}
	}
	testkit.Eventually(t, "the fleet knows the revocations and the keys", func() bool {
		return !slices.ContainsFunc(s.Replicas, func(r *Replica) bool {
			return r.Metric(t, "tokenbroker_revocations_usable") == 0 || r.Metric(t, fmt.Sprintf("tokenbroker_jwks_last_success_timestamp_seconds{issuer=%q}", s.idp.Issuer())) == 0
		})
	})
	if !d.without {
		for _, r := range s.Replicas {
			r.Connect(t)
		}
		startLoad(t, s.Replicas, 1, 100*time.Millisecond, "orders")
		go s.wantMore(t)
	}
	return s
}

// join starts one more replica, with files of its own.
func (s *scene) join(t *testing.T, config, ring string) *Replica {
	t.Helper()
	r := &Replica{Broker: harness.NewBroker(t, config)}
	for _, address := range []string{r.Grpc, r.Ops} {
		replaceIn(t, r.File, address, "127.0.0.1:0") // so that the files are equal
	}
	for name, content := range map[string]string{"ring.json": ring, "secret": "right", "redis-password": redisPassword} {
		testkit.WriteFile(t, r.path(name), content)
	}
	s.Replicas = append(s.Replicas, r)
	s.launch(t, len(s.Replicas)-1, "broker")
	return r
}

// launch starts the process of a replica, or starts it again at other ports.
func (s *scene) launch(t *testing.T, i int, binary string, env ...string) {
	t.Helper()
	r := s.Replicas[i]
	r.Launch(t, binary, env...)
	testkit.Eventually(t, "the replica logs its addresses", func() bool {
		for line := range strings.Lines(r.Process.Output.String()) {
			var serving struct{ Msg, GRPC, Ops string }
			if json.Unmarshal([]byte(line), &serving) == nil && serving.Msg == "serving" {
				r.Grpc, r.Ops = serving.GRPC, serving.Ops
				return true
			}
		}
		return false
	})
	s.mu.Lock()
	if i == len(s.addresses) {
		s.addresses = append(s.addresses, "")
	}
	s.addresses[i] = r.Ops
	s.mu.Unlock()
	r.Await(t)
}

// targets returns the addresses for Prometheus.
func (s *scene) targets() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.addresses)
}

// path is that of a file of the replica.
func (r *Replica) path(name string) string { return filepath.Join(filepath.Dir(r.File), name) }

// writeAll writes a file of each replica.
func (s *scene) writeAll(t *testing.T, name, content string) {
	t.Helper()
	for _, r := range s.Replicas {
		testkit.WriteFile(t, r.path(name), content)
	}
}

// replaceAll changes the configuration of each replica.
func (s *scene) replaceAll(t *testing.T, before, after string) {
	t.Helper()
	for _, r := range s.Replicas {
		replaceIn(t, r.File, before, after)
	}
}

// copyRing gives a replica the ring of the first one.
func (s *scene) copyRing(t *testing.T, i int) {
	t.Helper()
	text, err := os.ReadFile(s.Replicas[0].path("ring.json"))
	if err != nil {
		t.Fatal(err)
	}
	testkit.WriteFile(t, s.Replicas[i].path("ring.json"), string(text))
}

// renames are addresses of the test, each with that of a real fleet.
func (s *scene) renames() []string {
	names := []string{s.idp.Issuer(), "https://idp.example.com", s.dir, "/etc/tokenbroker"}
	if s.redis != nil {
		names = append(names, s.redis.Addr(), "redis:6379")
	} else {
		for i, server := range s.cluster.Servers {
			names = append(names, server.Addr(), fmt.Sprintf("redis-%d:6379", i+1))
		}
	}
	return names
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

// fetched returns the body of a response with the status 200.
func fetched(t *testing.T, with *http.Client, address string) (string, error) {
	t.Helper()
	response, err := harness.Fetch(t, with, http.MethodGet, address, nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", address, response.Status)
	}
	return string(text), err
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
	s.writeCertificate(t, 80*24*time.Hour)
	file := func(name string) string { return filepath.Join(s.dir, name) }
	ring := harness.Run(t, "ring", "new").Stdout
	for range 3 {
		r := s.join(t, s.Config, ring) // in plaintext
		r.Process.Stop(t, syscall.SIGTERM)
		replaceIn(t, r.File, `grpc: {address: "127.0.0.1:0", caller: everybody}`,
			fmt.Sprintf(`grpc: "127.0.0.1:0", tls: {cert: %q, key: %q, client_ca: %q}`, file("broker.crt"), file("broker.key"), file("ca.crt")))
		replaceIn(t, r.File, "name: everybody,", "name: everybody, dns_san: everybody.example.com,")
		r.Env = []string{"TOKENBROKER_CA=" + file("ca.crt"), "TOKENBROKER_CERT=" + file("caller.crt"), "TOKENBROKER_KEY=" + file("caller.key")}
		s.launch(t, len(s.Replicas)-1, "broker")
	}
}

// writeCertificate writes the certificates of the broker and of a caller.
func (s *scene) writeCertificate(t *testing.T, lasts time.Duration) {
	t.Helper()
	if s.authority == nil {
		s.authority = harness.Must(devca.New("an authority"))
	}
	for name, template := range map[string]*x509.Certificate{
		"broker": {DNSNames: []string{"broker.example.com"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: time.Now().Add(lasts), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		"caller": {DNSNames: []string{"everybody.example.com"}, NotAfter: time.Now().Add(24 * time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
	} {
		template.SerialNumber, template.Subject = big.NewInt(1), pkix.Name{CommonName: name}
		template.NotBefore = time.Now().Add(-60 * 24 * time.Hour) // so that 6 days are the end of its life
		pair, err := s.authority.Issue(template)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := pair.Write(s.dir, name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.authority.Write(s.dir, "ca"); err != nil {
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

// joinWithoutKey gives the fleet a new sealing key, and starts a replica whose ring lacks
// that key. On request it revokes something before, which that replica cannot read.
func joinWithoutKey(t *testing.T, s *scene, revoke bool) {
	t.Helper()
	ring := s.Replicas[0].path("ring.json")
	old, err := os.ReadFile(ring)
	if err != nil {
		t.Fatal(err)
	}
	changes := 0
	change := func(args ...string) string {
		res := harness.Run(t, append([]string{"ring"}, args...)...)
		if res.Code != 0 {
			t.Fatalf("ring %v: %v", args, res)
		}
		for i := range s.Replicas {
			s.copyRing(t, i)
		}
		changes++
		testkit.Eventually(t, "all replicas have read the ring", func() bool {
			return !slices.ContainsFunc(s.Replicas, func(r *Replica) bool {
				return strings.Count(r.Process.Output.String(), "new sealing keys are active") < changes
			})
		})
		rest(t, 12*time.Second) // each writes its status every 10 s
		return res.Stderr
	}
	key := ringKeyID.FindStringSubmatch(change("add", ring))[1]
	change("promote", ring, key)
	if revoke {
		if res := s.Replicas[0].Run(t, "revocations", "add", "--issuer", s.idp.Issuer(), "--client-id", "other", "--reason", "a test"); res.Code != 0 {
			t.Fatalf("revocations add: %v", res)
		}
	}
	s.struck = time.Now()
	s.join(t, s.Config, string(old))
}
