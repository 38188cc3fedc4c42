package fleet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// Redis comes back empty right after a rotation. The replicas put back what they
// know, and those that start afterwards have the new secret.
func TestRotationOutlivesTheLossOfRedis(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, 5*time.Second)
	redis := redistest.Start(t, redisOptions())
	f := startFleet(t, 3, redisConfig(t, "", redis.Addr())+idp.Managed("orders"))
	idp.Takes("first")
	f.Replicas[0].Rotate(t, "first")
	idp.Takes("first", "second")
	load := startLoad(t, f.Replicas, 5, 20*time.Millisecond, "orders")
	f.Replicas[0].Rotate(t, "second")
	want := f.Replicas[0].Client(t, "orders")
	redis.RestartEmpty()
	emptied := time.Now()
	idp.Takes("second")
	testkit.Eventually(t, "the secret is back", func() bool {
		return strings.Contains(redis.CLI("--scan"), "secrets")
	})
	back := time.Since(emptied)
	late := f.Add(t, 1, "broker", 0)[0]
	if got := late.Client(t, "orders"); current(got) != current(want) || states(got) != "current previous" {
		t.Errorf("a replica that is new has %s, want %s", states(got), states(want))
	}
	late.Get(t, "orders")
	load.Good(t, "load")
	t.Logf("the secret was back after %v; %v", back.Round(10*time.Millisecond), load.Took)
	if got := idp.Refused("first"); got != 0 {
		t.Errorf("the old secret was sent %d times", got)
	}

	// Now the other way round: all replicas end, and Redis goes on.
	for _, r := range f.Replicas {
		r.Process.Stop(t, os.Kill)
	}
	after := harness.StartBroker(t, f.Config)
	if got := after.Client(t, "orders"); current(got) != current(want) {
		t.Errorf("after all were killed: %s", states(got))
	}
	after.Get(t, "orders")
}

func TestRotationSurvivesOnBolt(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	config := fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(t.TempDir(), "broker.db"), "file:"+makeRing(t))
	b := harness.NewBroker(t, config+idp.Managed("orders"))
	idp.Takes("first", "second")
	b.Launch(t, "broker")
	b.Await(t)
	b.Rotate(t, "first")
	b.Rotate(t, "second")
	want := current(b.Client(t, "orders"))
	for range 3 {
		b.Process.Stop(t, os.Kill)
		b.Launch(t, "broker")
		b.Await(t)
		if got := b.Client(t, "orders"); current(got) != want || states(got) != "current previous" {
			t.Errorf("after a kill: %s", states(got))
		}
	}
	idp.Takes("second")
	b.Run(t, "purge", "orders")
	b.Get(t, "orders")
}

// A Redis that may evict secrets is refused, one that may lose them is told of.
func TestVolatileRedisIsReported(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	options := redisOptions()
	options.ACL[0] += " +info +wait"
	redis := redistest.Start(t, options)
	config := redisConfig(t, "", redis.Addr()) + idp.Managed("orders")
	b := harness.StartBroker(t, config)
	if !b.Logged("WARN", "IT KEEPS NO APPEND-ONLY FILE") {
		t.Error("a Redis that forgets is not told of")
	}
	idp.Takes("first")
	if res := b.Rotate(t, "first"); !strings.Contains(res.Stdout, "WARNING: Redis keeps no append-only file") {
		t.Errorf("the answer does not tell of it: %v", res)
	}
	redis.CLI("config", "set", "maxmemory-policy", "allkeys-lru")
	refused := harness.NewBroker(t, config)
	refused.Launch(t, "broker")
	<-refused.Process.Exited
	if refused.Process.Cmd.ProcessState.ExitCode() == 0 || !refused.Logged("maxmemory-policy allkeys-lru may evict the secrets") {
		t.Error("a Redis that may evict secrets is not refused")
	}
	memory := harness.WriteFile(t, "memory.yaml", idp.Managed("orders"))
	if res := harness.Run(t, "check-config", memory); res.Code == 0 || !strings.Contains(res.Stdout+res.Stderr, "the memory store loses it at exit") {
		t.Errorf("managed secrets in memory: %v", res)
	}
}

// Replicas with a file of their own each, as with Kubernetes Secrets: links are
// swapped one after the other, under load.
func TestSecretFilesChangeUnderLoad(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, 5*time.Second)
	redis := redistest.Start(t, redisOptions())
	store := redisConfig(t, "", redis.Addr())
	f := &Fleet{}
	var dirs []string
	for range 3 {
		dir := t.TempDir()
		swapTo(t, dir, "v1", "right")
		clients := strings.Replace(idp.Managed("orders"), "secret: managed", fmt.Sprintf("secret: %q", "file:"+filepath.Join(dir, "..data", "secret")), 1)
		f.AddWith(t, store+clients)
		dirs = append(dirs, dir)
	}
	load := startLoad(t, f.Replicas, 10, 20*time.Millisecond, "orders")
	rest(t, time.Second)
	before := current(f.Replicas[0].Client(t, "orders"))
	idp.Takes("right", "fresh")
	swapped := time.Now()
	for _, dir := range dirs {
		swapTo(t, dir, "v2", "fresh")
		rest(t, time.Second)
	}
	for _, r := range f.Replicas {
		testkit.Eventually(t, "the new secret is in force", func() bool { got := current(r.Client(t, "orders")); return got != "" && got != before })
	}
	took := time.Since(swapped)
	idp.Takes("fresh")
	rest(t, 11*time.Second) // all replicas have read their files twice, and tokens have ended
	load.Good(t, "load")
	if got := idp.Refused("right"); got > 1 {
		t.Errorf("the old secret was refused %d times", got)
	}
	t.Logf("in force on all replicas %v after the first swap; %v", took.Round(100*time.Millisecond), load.Took)
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
