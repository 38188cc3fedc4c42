package fleet

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
)

// startRefused has a broker started that must refuse to, with exit code 1 and a
// line that has all words.
func startRefused(t *testing.T, what, config string, words ...string) {
	t.Helper()
	b := harness.NewBroker(t, config)
	res := harness.Run(t, "serve", "--config", b.File)
	said := ""
	for line := range strings.Lines(res.Stderr) {
		if rest, found := strings.CutPrefix(line, "broker: "); found {
			said += rest
		}
	}
	if res.Code != 1 || res.Stdout != "" || said == "" {
		t.Errorf("%s: %v", what, res)
	}
	for _, word := range words {
		if !strings.Contains(said, word) {
			t.Errorf("%s: it does not say %q: %s", what, word, said)
		}
	}
	if strings.Contains(res.Stderr, redisPassword) {
		t.Errorf("%s: it shows the password", what)
	}
}

// What a person must mend stops the start, with a sentence that says what to do.
func TestStart_invalidStore(t *testing.T) {
	t.Parallel()
	clients := harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": harness.SimpleIdP(t, time.Hour)})
	plain := redistest.Start(t, redisOptions())
	good := redisConfig(t, "", plain.Addr()) + clients
	replaced := func(old, replacement string) string {
		t.Helper()
		changed := strings.Replace(good, old, replacement, 1)
		if changed == good {
			t.Fatalf("%q is not in %s", old, good)
		}
		return changed
	}

	password := regexp.MustCompile(`password: "file:([^"]*)"`).FindStringSubmatch(good)[1]
	startRefused(t, "a wrong password", replaced(password, harness.WriteFile(t, "wrong", "wrong")), `user "tokenbroker"`, "the password is wrong")
	startRefused(t, "no password", replaced(` username: tokenbroker, password: "file:`+password+`",`, ""), "set password")

	secured := redisOptions()
	secured.Certificates = redistest.NewCertificates(t)
	encrypted := redistest.Start(t, secured)
	own := fmt.Sprintf("cert: %q, key: %q", secured.Certificates.ClientCert, secured.Certificates.ClientKey)
	withTLS := func(address, settings string) string {
		return redisConfig(t, "tls: {"+settings+"},", address) + clients
	}
	startRefused(t, "an unknown CA", withTLS(encrypted.Addr(), fmt.Sprintf("ca: %q, %s", redistest.NewCertificates(t).CA, own)), "authority that is not trusted", "tls.ca")
	startRefused(t, "no client certificate", withTLS(encrypted.Addr(), fmt.Sprintf("ca: %q", secured.Certificates.CA)), "client certificate", "tls.cert")
	startRefused(t, "TLS towards plaintext", withTLS(plain.Addr(), ""), "does not speak TLS", "leave out tls")
	startRefused(t, "plaintext towards TLS", redisConfig(t, "", encrypted.Addr())+clients, "speaks TLS", "set tls")

	for missing, word := range map[string]string{"+publish": "PUBLISH", "~tb1:*": "keys tb1:*", "&tb1:*": "channel tb1:ev", "+evalsha": "EVALSHA"} {
		options := redisOptions()
		options.ACL[0] = strings.Replace(options.ACL[0], " "+missing, "", 1)
		narrow := redistest.Start(t, options)
		startRefused(t, "an ACL without "+missing, redisConfig(t, "", narrow.Addr())+clients, "too narrow", word, "user tokenbroker on", missing)
	}

	options := redisOptions()
	options.Config = []string{"cluster-enabled yes"}
	node := redistest.Start(t, options)
	startRefused(t, "a Cluster taken for a single server", redisConfig(t, "", node.Addr())+clients, "node of a Cluster", "cluster: true")
	startRefused(t, "a single server taken for a Cluster", redisConfig(t, "cluster: true,", plain.Addr())+clients, "not a node of a Cluster", "cluster: true")
	open := redistest.Start(t, redistest.Options{}) // sentinels rarely ask for a login
	startRefused(t, "a server taken for a sentinel", redisConfig(t, "sentinel_master: main,", open.Addr())+clients, "not a sentinel", "sentinel_master")
}

func TestStart_invalidRing(t *testing.T) {
	t.Parallel()
	clients := harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": harness.SimpleIdP(t, time.Hour)})
	dir := t.TempDir()
	withRing := func(path string) string {
		return fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(dir, "broker.db"), "file:"+path) + clients
	}
	startRefused(t, "no ring in the configuration", fmt.Sprintf("store: {bolt: %q}\n", filepath.Join(dir, "broker.db"))+clients, "sealing_keys", "broker ring new")
	startRefused(t, "a ring that is not there", withRing(filepath.Join(dir, "none.json")), "none.json", "does not exist", "broker ring new")
	startRefused(t, "a ring that is a directory", withRing(dir), dir, "directory")
	startRefused(t, "an empty ring", withRing(harness.WriteFile(t, "empty.json", "")), "empty.json", "empty", "broker ring new")
	startRefused(t, "a ring with a key too short", withRing(harness.WriteFile(t, "short.json",
		`{"names": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "primary": "0a1b2c3d", "keys": {"0a1b2c3d": "c2hvcnQ="}}`)), "short.json", "0a1b2c3d", "5 bytes", "32")
	if os.Geteuid() != 0 { // who may read everything
		unreadable := makeRing(t)
		if err := os.Chmod(unreadable, 0); err != nil {
			t.Fatal(err)
		}
		startRefused(t, "a ring that may not be read", withRing(unreadable), "may not be read", "user that the broker runs as")
	}

	ring := makeRing(t)
	first := harness.StartBroker(t, withRing(ring))
	startRefused(t, "a file that another broker has open", withRing(ring), "broker.db", "in use", "another broker")
	if first.Get(t, "orders").Origin != "fetched" {
		t.Error("the broker that has the file open does not serve")
	}
}

// Redis that is merely away stops nobody: the fault "refused" of
// TestRedisFailureFailsNoCall goes on from here.
func TestStart_withoutRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redisOptions())
	config := redisConfig(t, "", server.Addr()) + harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": harness.SimpleIdP(t, time.Hour)})
	for what, strike := range map[string]func(){"refused": server.Kill, "hung": func() { server.Restart(); server.Stop() }} {
		strike()
		begun := time.Now()
		b := harness.StartBroker(t, config)
		t.Logf("Redis %s: ready after %v", what, time.Since(begun).Round(time.Millisecond))
		if !b.Logged(`"WARN"`, "the store does not respond", "starts without it") {
			t.Errorf("Redis %s: the log does not say so", what)
		}
		if got := b.Get(t, "orders"); got.Origin != "fetched" {
			t.Errorf("Redis %s: origin %s", what, got.Origin)
		}
	}
	server.Cont()
}
