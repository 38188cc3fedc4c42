package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// Redis comes back empty right after a rotation. The replicas put back what they
// know, and those that start afterwards have the new secret.
func TestARotationOutlivesTheLossOfRedis(t *testing.T) {
	t.Parallel()
	idp := simpleIdP(t, 5*time.Second)
	redis := redistest.Start(t, redisOptions())
	f := startFleet(t, 3, redisConfig(t, "", redis.Addr())+idp.managed("orders"))
	idp.takes("first")
	f.replicas[0].rotate(t, "first")
	idp.takes("first", "second")
	load := startLoad(t, f.replicas, 5, 20*time.Millisecond, "orders")
	f.replicas[0].rotate(t, "second")
	want := f.replicas[0].client(t, "orders")
	redis.RestartEmpty()
	emptied := time.Now()
	idp.takes("second")
	testkit.Eventually(t, "the secret is back", func() bool {
		return strings.Contains(redis.CLI("--scan"), "secrets")
	})
	back := time.Since(emptied)
	late := f.add(t, 1, "broker", 0)[0]
	if got := late.client(t, "orders"); current(got) != current(want) || states(got) != "current previous" {
		t.Errorf("a replica that is new has %s, want %s", states(got), states(want))
	}
	late.get(t, "orders")
	load.good(t, "load")
	t.Logf("the secret was back after %v; %v", back.Round(10*time.Millisecond), load.took)
	if got := idp.refused("first"); got != 0 {
		t.Errorf("the old secret was sent %d times", got)
	}

	// Now the other way round: all replicas end, and Redis goes on.
	for _, r := range f.replicas {
		r.process.stop(t, os.Kill)
	}
	after := startBroker(t, f.config)
	if got := after.client(t, "orders"); current(got) != current(want) {
		t.Errorf("after all were killed: %s", states(got))
	}
	after.get(t, "orders")
}

func TestARotationOutlivesABrokerOnBolt(t *testing.T) {
	t.Parallel()
	idp := simpleIdP(t, time.Hour)
	config := fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(t.TempDir(), "broker.db"), "file:"+makeRing(t))
	b := newBroker(t, config+idp.managed("orders"))
	idp.takes("first", "second")
	b.launch(t, "broker")
	b.await(t)
	b.rotate(t, "first")
	b.rotate(t, "second")
	want := current(b.client(t, "orders"))
	for range 3 {
		b.process.stop(t, os.Kill)
		b.launch(t, "broker")
		b.await(t)
		if got := b.client(t, "orders"); current(got) != want || states(got) != "current previous" {
			t.Errorf("after a kill: %s", states(got))
		}
	}
	idp.takes("second")
	b.run(t, "purge", "orders")
	b.get(t, "orders")
}

// A Redis that may evict secrets is refused, one that may lose them is told of.
func TestVolatileRedisIsRefusedOrToldOf(t *testing.T) {
	t.Parallel()
	idp := simpleIdP(t, time.Hour)
	options := redisOptions()
	options.ACL[0] += " +info +wait"
	redis := redistest.Start(t, options)
	config := redisConfig(t, "", redis.Addr()) + idp.managed("orders")
	b := startBroker(t, config)
	if !b.logged("WARN", "IT KEEPS NO APPEND-ONLY FILE") {
		t.Error("a Redis that forgets is not told of")
	}
	idp.takes("first")
	if res := b.rotate(t, "first"); !strings.Contains(res.stdout, "WARNING: Redis keeps no append-only file") {
		t.Errorf("the answer does not tell of it: %v", res)
	}
	redis.CLI("config", "set", "maxmemory-policy", "allkeys-lru")
	refused := newBroker(t, config)
	refused.launch(t, "broker")
	<-refused.process.exited
	if refused.process.cmd.ProcessState.ExitCode() == 0 || !refused.logged("maxmemory-policy allkeys-lru may evict the secrets") {
		t.Error("a Redis that may evict secrets is not refused")
	}
	memory := writeFile(t, "memory.yaml", idp.managed("orders"))
	if res := run(t, "check-config", memory); res.code == 0 || !strings.Contains(res.stdout+res.stderr, "nothing outlives the process in memory") {
		t.Errorf("managed secrets in memory: %v", res)
	}
}

// Replicas with a file of their own each, as with Kubernetes Secrets: links are
// swapped one after the other, under load.
func TestFilesAreSwappedUnderLoad(t *testing.T) {
	t.Parallel()
	idp := simpleIdP(t, 5*time.Second)
	redis := redistest.Start(t, redisOptions())
	store := redisConfig(t, "", redis.Addr())
	f := &fleet{}
	var dirs []string
	for range 3 {
		dir := t.TempDir()
		swapTo(t, dir, "v1", "right")
		clients := strings.Replace(idp.managed("orders"), "secret: managed", fmt.Sprintf("secret: %q", "file:"+filepath.Join(dir, "..data", "secret")), 1)
		f.addWith(t, store+clients)
		dirs = append(dirs, dir)
	}
	load := startLoad(t, f.replicas, 10, 20*time.Millisecond, "orders")
	rest(t, time.Second)
	before := current(f.replicas[0].client(t, "orders"))
	idp.takes("right", "fresh")
	swapped := time.Now()
	for _, dir := range dirs {
		swapTo(t, dir, "v2", "fresh")
		rest(t, time.Second)
	}
	for _, r := range f.replicas {
		testkit.Eventually(t, "the new secret is in force", func() bool { got := current(r.client(t, "orders")); return got != "" && got != before })
	}
	took := time.Since(swapped)
	idp.takes("fresh")
	rest(t, 11*time.Second) // all replicas have read their files twice, and tokens have ended
	load.good(t, "load")
	if got := idp.refused("right"); got > 1 {
		t.Errorf("the old secret was refused %d times", got)
	}
	t.Logf("in force on all replicas %v after the first swap; %v", took.Round(100*time.Millisecond), load.took)
}

// swapTo lets ..data lead to a new directory with the secret, as the kubelet does.
func swapTo(t *testing.T, dir, name, secret string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
		t.Fatal(err)
	}
	testkit.WriteFile(t, filepath.Join(dir, name, "secret"), secret)
	if err := os.Symlink(name, filepath.Join(dir, "..data_tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
}
