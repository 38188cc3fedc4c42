package redisstore_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
	"github.com/cezzis/tokenbroker/internal/store/storetest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// testPassword is what no error and no log line may show.
const testPassword = "canary-password-of-redis"

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// aclLine is the line of the documentation, with what is to be filled in.
func aclLine(more ...string) string {
	line := strings.Replace(redisstore.ACLExample, "PASSWORD", testPassword, 1)
	return strings.Join(append([]string{line}, more...), " ")
}

// passwordSource holds a password as an operator would give it.
func passwordSource(t *testing.T, password string) *secret.Source {
	t.Helper()
	file := filepath.Join(t.TempDir(), "password")
	testkit.WriteFile(t, file, password)
	return openSecret(t, file)
}

func openSecret(t *testing.T, file string) *secret.Source {
	t.Helper()
	parsed, err := secret.ParseRef("file:" + file)
	if err != nil {
		t.Fatal(err)
	}
	source, err := secret.Open(parsed)
	if err != nil {
		t.Fatal(err)
	}
	return source
}

// open opens a store for a test that is about time.
func open(t *testing.T, config redisstore.Config) *redisstore.Store {
	t.Helper()
	r, err := redisstore.New(config)
	return opened(t, r, err)
}

// openPatient opens a store for any other test.
func openPatient(t *testing.T, config redisstore.Config) *redisstore.Store {
	t.Helper()
	r, err := redisstore.NewPatient(config)
	return opened(t, r, err)
}

func opened(t *testing.T, r *redisstore.Store, err error) *redisstore.Store {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return r
}

// userOf is the configuration of the user of aclLine.
func userOf(t *testing.T, addresses ...string) redisstore.Config {
	t.Helper()
	return redisstore.Config{Addresses: addresses, Username: "tokenbroker", Password: passwordSource(t, testPassword)}
}

// fleet is a way of running Redis.
type fleet struct {
	name string
	// start returns how to reach it, with no rights but those of the
	// documentation.
	start func(t *testing.T) redisstore.Config
}

func fleets() []fleet {
	return []fleet{
		{"single", func(t *testing.T) redisstore.Config {
			server := redistest.Start(t, redistest.Options{Password: testPassword})
			return redisstore.Config{Addresses: []string{server.Addr()}, Password: passwordSource(t, testPassword), DB: 3}
		}},
		{"ACL, TLS and client certificates", func(t *testing.T) redisstore.Config {
			server := redistest.Start(t, redistest.Options{ACL: []string{aclLine()}, Certificates: redistest.NewCertificates(t)})
			config := userOf(t, server.Addr())
			config.TLS = server.TLS()
			return config
		}},
		{"Cluster", func(t *testing.T) redisstore.Config {
			cluster := redistest.StartCluster(t, redistest.Options{ACL: []string{aclLine(redisstore.ACLCluster)}})
			config := userOf(t, cluster.Addrs()[:2]...)
			config.Cluster = true
			return config
		}},
		{"Sentinel", func(t *testing.T) redisstore.Config {
			sentinel := redistest.StartSentinel(t, redistest.Options{ACL: []string{aclLine()}})
			config := userOf(t, sentinel.Addrs()...)
			config.SentinelMaster = redistest.MasterName
			return config
		}},
	}
}

func TestRedis(t *testing.T) {
	t.Parallel()
	// The suites wait for real time to pass, mostly. They do so at once, all
	// four, and not as many as there are processors.
	var suites sync.WaitGroup
	defer suites.Wait()
	for _, fleet := range fleets() {
		config := fleet.start(t)
		suites.Go(func() {
			t.Run(fleet.name, func(t *testing.T) {
				warnings, err := openPatient(t, config).Check(t.Context())
				if err != nil || len(warnings) != 1 {
					t.Errorf("with the rights of the documentation: %q, %v", warnings, err)
				}
				var opened atomic.Int32
				storetest.Run(t, storetest.Harness{
					Open: func(t *testing.T) storetest.Store {
						return suiteStore(t, config, opened.Add(1))
					},
					Advance:  time.Sleep,
					RealTime: true,
				})
			})
		})
	}
}

// suiteStore opens an empty store for the conformance suite, in keys of its own.
func suiteStore(t *testing.T, config redisstore.Config, number int32) storetest.Store {
	t.Helper()
	config.Prefix = fmt.Sprintf("tb1:%d:", number)
	r, err := redisstore.NewPatient(config)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
