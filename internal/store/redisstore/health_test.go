package redisstore_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// writeFault keeps a server from writing, and not from reading.
type writeFault struct {
	name   string
	strike func(*redistest.Server)
	mend   func(*redistest.Server)
	// says is what operators are to read.
	says    string
	refusal store.Refusal
	// used: it shows only where a change is told.
	used bool
}

func writeFaults() []writeFault {
	set := func(name, value string) func(*redistest.Server) {
		return func(s *redistest.Server) { s.CLI("config", "set", name, value) }
	}
	user := func(rule string) func(*redistest.Server) {
		return func(s *redistest.Server) { s.CLI("acl", "setuser", "tokenbroker", rule) }
	}
	return []writeFault{
		{"out of memory", set("maxmemory", "1"), set("maxmemory", "0"), "to SET: OOM command not allowed when used memory > 'maxmemory'", store.OutOfMemory, false},
		{
			"a replica", func(s *redistest.Server) { s.CLI("replicaof", "127.0.0.1", "1") }, func(s *redistest.Server) { s.CLI("replicaof", "no", "one") },
			"to SET: READONLY You can't write against a read only replica", store.ReadOnly, false,
		},
		{"without the right to set", user("-set"), user("+set"), "to SET: ERR The user executing the script can't run this command", store.NoRights, false},
		{"without the right to publish", user("-publish"), user("+publish"), "to PUBLISH: ERR The user executing the script can't run this command", store.NoRights, true},
		{"too few replicas", set("min-replicas-to-write", "1"), set("min-replicas-to-write", "0"), "to SET: NOREPLICAS Not enough good replicas to write", store.FewReplicas, false},
		{"it cannot save", func(s *redistest.Server) {
			dump := filepath.Join(s.Dir(), "dump.rdb")
			_ = os.Remove(dump)
			_ = os.Mkdir(dump, 0o700) // a file cannot take its place
			s.CLI("config", "set", "save", "3600 1000000")
			s.CLI("bgsave")
		}, set("save", ""), "to SET: MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk", store.DiskFailed, false},
	}
}

func TestReadOnlyRedis(t *testing.T) {
	t.Parallel()
	for _, fault := range writeFaults() {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			doesNotWrite(t, fault)
		})
	}
}

func doesNotWrite(t *testing.T, fault writeFault) {
	server := redistest.Start(t, redistest.Options{ACL: []string{aclLine()}})
	var log, quietLog testkit.Log
	config, quietConfig := userOf(t, server.Addr()), userOf(t, server.Addr())
	config.Logger, quietConfig.Logger = slog.New(slog.NewTextHandler(&log, nil)), slog.New(slog.NewTextHandler(&quietLog, nil))
	r, quiet := open(t, config), open(t, quietConfig) // quiet is not called
	testkit.Eventually(t, "it works", func() bool { return works(t, r) })
	if _, err := r.Apply(t.Context(), store.Change{Puts: []store.Put{testPut(1)}}); err != nil {
		t.Fatal(err)
	}
	fault.strike(server)
	testkit.Eventually(t, "a write is refused", func() bool { return !works(t, r) })

	trips := r.Trips()
	for range 1000 {
		_, err := r.Acquire(t.Context(), testClaim())
		if !errors.Is(err, store.ErrNoWrites) || !errors.Is(err, store.ErrAway) || !strings.Contains(err.Error(), fault.says) {
			t.Fatalf("a write: %v", err)
		}
		showsNothing(t, err.Error())
	}
	if r.Trips() != trips {
		t.Errorf("writes that are known to be in vain took %d trips", r.Trips()-trips)
	}
	testkit.Eventually(t, "one that is not called notices it", func() bool {
		return !quiet.Health()[0].Writes || fault.used && !works(t, quiet)
	})
	for range 40 { // some probes long
		if err := look(t, r); err != nil {
			t.Errorf("a read: %v", err)
		}
		want := store.Health{Shard: server.Addr(), Reads: true, Refusal: fault.refusal}
		if got := r.Health(); len(got) != 1 || got[0] != want || quiet.Health()[0] != want {
			t.Fatalf("the health is %+v and %+v", got, quiet.Health())
		}
		time.Sleep(100 * time.Millisecond)
	}
	fault.mend(server)
	testkit.Eventually(t, "it takes writes again", func() bool { return isUp(r) && isUp(quiet) && works(t, r) })
	for _, text := range []string{log.String(), quietLog.String()} {
		if strings.Count(text, "\n") != 2 || !strings.Contains(text, "msg=\"Redis takes no writes") || !strings.Contains(text, fault.says) ||
			!strings.Contains(text, "msg=\"Redis takes writes again\"") {
			t.Errorf("the log says:\n%s", text)
		}
		showsNothing(t, text)
	}
}

// A server at the edge of its memory takes some writes.
func TestRedisHealthDoesNotFlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log testkit.Log
		shard := redisstore.NewShard(slog.New(slog.NewTextHandler(&log, nil)))
		end := time.Now().Add(10 * time.Minute)
		for i := 0; time.Now().Before(end); i++ {
			shard.Probe(i%7 == 6)
			time.Sleep(time.Second)
		}
		if downs := strings.Count(log.String(), "msg=\"Redis takes no writes"); downs < 1 || downs > 4 {
			t.Errorf("in 10 minutes it went down %d times", downs)
		}
	})
}

// keyOnEach returns a key for each of the servers of a Cluster.
func keyOnEach(t *testing.T, cluster *redistest.Cluster) map[*redistest.Server]string {
	t.Helper()
	keys := map[*redistest.Server]string{cluster.Master("tb1:" + testKey): testKey}
	for i := 0; len(keys) < 3 && i < 1000; i++ {
		key := fmt.Sprintf("{tag%d}key", i)
		if at := cluster.Master("tb1:" + key); keys[at] == "" {
			keys[at] = key
		}
	}
	return keys
}

func TestRedisCluster_deadShard(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]struct{ strike, mend func(*redistest.Server) }{
		"killed": {(*redistest.Server).Kill, (*redistest.Server).Restart},
		"hung":   {(*redistest.Server).Stop, (*redistest.Server).Cont},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := redistest.StartMasters(t, redistest.Options{ACL: []string{aclLine(redisstore.ACLCluster)}})
			var log testkit.Log
			config := userOf(t, cluster.Addrs()...)
			config.Cluster, config.Logger = true, slog.New(slog.NewTextHandler(&log, nil))
			losesAShard(t, open(t, config), cluster, fault.strike, fault.mend)
			if text := log.String(); strings.Count(text, "msg=\"Redis is away") != 1 || strings.Count(text, "msg=\"Redis is back") != 1 {
				t.Errorf("the log says:\n%s", text)
			}
			showsNothing(t, log.String())
		})
	}
}

func losesAShard(t *testing.T, r *redisstore.Store, cluster *redistest.Cluster, strike, mend func(*redistest.Server)) {
	keys := keyOnEach(t, cluster)
	dead := cluster.Master("tb1:" + testKey) // to which the channel belongs as well
	put := func(key string, number uint64) error {
		_, err := r.Apply(t.Context(), store.Change{Puts: []store.Put{{Key: key, Number: number, Value: []byte(testValue)}}})
		return err
	}
	events := r.Subscribe(t.Context())
	all := []string{keys[dead]}
	for server, key := range keys {
		testkit.Eventually(t, "it works", func() bool { return put(key, 1) == nil })
		if server != dead {
			all = append(all, key)
		}
	}
	strike(dead)
	testkit.Eventually(t, "the shard is away", func() bool { return errors.Is(put(keys[dead], 2), store.ErrAway) })
	trips := r.Trips()
	for number := range uint64(100) {
		for server, key := range keys {
			if err := put(key, number+2); server == dead && !errors.Is(err, store.ErrAway) || server != dead && err != nil {
				t.Fatalf("a write: %v", err)
			}
		}
		entries, err := r.Get(t.Context(), all...)
		if unread, some := errors.AsType[*store.UnreadError](err); !some || !errors.Is(unread, store.ErrAway) || store.WasRead(err, 0) {
			t.Fatalf("a read of all: %v", err)
		}
		for i, entry := range entries[1:] {
			if !store.WasRead(err, i+1) || entry.Number != number+2 {
				t.Fatalf("a read of all: %+v, %v", entries, err)
			}
		}
	}
	if trips = r.Trips() - trips; trips != 400 {
		t.Errorf("100 times two writes and two reads took %d trips", trips)
	}
	for _, health := range r.Health() {
		if down := health.Shard == dead.Addr(); health.Reads == down || health.Writes == down {
			t.Errorf("the health: %+v", health)
		}
	}
	number := uint64(1000)
	testkit.Eventually(t, "events flow", func() bool {
		number++
		if err := put(all[1], number); err != nil {
			t.Fatalf("a write: %v", err)
		}
		select {
		case <-events:
			return true
		case <-time.After(200 * time.Millisecond):
			return false
		}
	})
	mend(dead)
	testkit.Eventually(t, "all is well", func() bool { return isUp(r) && len(r.Health()) == 3 })
}

// A slot that is being moved is nothing that others notice, and can be read all
// the while.
func TestRedisCluster_movedSlot(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartMasters(t, redistest.Options{ACL: []string{aclLine(redisstore.ACLCluster)}})
	var log testkit.Log
	config := userOf(t, cluster.Addrs()...)
	config.Cluster, config.Logger = true, slog.New(slog.NewTextHandler(&log, nil))
	r := openPatient(t, config)
	const key, absent, lease, counter = "{moves}key", "{moves}absent", "{moves}lease", "{moves}counter"
	claim := store.Claim{Key: lease, Owner: testOwner, Counter: counter, TTL: time.Hour}
	acquire := func() error {
		held, _, err := claimLease(t.Context(), r, claim)
		if err == nil {
			_, err = r.Apply(t.Context(), store.Change{Puts: []store.Put{{Key: key, Number: held.Fence, Value: []byte(testValue)}}, Release: held})
		}
		return err
	}
	testkit.Eventually(t, "it works", func() bool { return acquire() == nil })
	from := cluster.Master("tb1:" + key)
	to := cluster.Servers[0]
	if from == to {
		to = cluster.Servers[1]
	}
	slot, fromID, toID := from.CLI("cluster", "keyslot", "tb1:"+key), from.CLI("cluster", "myid"), to.CLI("cluster", "myid")
	to.CLI("cluster", "setslot", slot, "importing", fromID)
	from.CLI("cluster", "setslot", slot, "migrating", toID)

	for range 10 {
		err := acquire() // the counter is here, the lease would be there: TRYAGAIN
		if !errors.Is(err, store.ErrAway) || errors.Is(err, store.ErrNoWrites) || !strings.Contains(err.Error(), "TRYAGAIN") {
			t.Fatalf("a write while the slot is moved: %v", err)
		}
		entries, err := r.Get(t.Context(), key, absent, counter, testKey)
		if err != nil || entries[0].Number == 0 || entries[1].Number != 0 || entries[2].Number == 0 {
			t.Fatalf("a read while the slot is moved: %+v, %v", entries, err)
		}
		if _, err := r.Raise(t.Context(), testCounter, 0, 1); err != nil {
			t.Fatalf("a write of another slot: %v", err)
		}
		if !isUp(r) {
			t.Fatalf("the health: %+v", r.Health())
		}
	}

	done := make(chan error, 1)
	go func() { done <- acquire() }()
	time.Sleep(20 * time.Millisecond)
	host, port, _ := strings.Cut(to.Addr(), ":")
	from.CLI("migrate", host, port, "", "0", "5000", "auth2", "redistest", "redistest", "keys", "tb1:"+key, "tb1:"+counter)
	for _, server := range cluster.Servers {
		server.CLI("cluster", "setslot", slot, "node", toID)
	}
	if err := <-done; err != nil && !errors.Is(err, store.ErrAway) {
		t.Errorf("a write at the end of the move: %v", err)
	}
	if err := acquire(); err != nil {
		t.Errorf("a write after the move: %v", err)
	}
	if entries, err := r.Get(t.Context(), key, absent, counter); err != nil || entries[0].Number < 2 {
		t.Errorf("after the move: %+v, %v", entries, err)
	}
	if log.String() != "" {
		t.Errorf("the log says:\n%s", log.String())
	}
}

// A Redis that is short of memory evicts first what would expire first. That must
// be tokens, which are fetched again, and not the leases by which each is fetched
// once.
func TestRedisEvictsLeasesLast(t *testing.T) {
	server := redistest.Start(t, redistest.Options{Config: []string{"maxmemory-policy volatile-ttl", "maxmemory-samples 64"}})
	r := openPatient(t, redisstore.Config{Addresses: []string{server.Addr()}})
	testkit.Eventually(t, "it works", func() bool { return works(t, r) })
	lease, acquired, err := claimLease(t.Context(), r, store.Claim{Key: testLease, Owner: testOwner, Counter: testCounter, TTL: time.Minute})
	if err != nil || !acquired {
		t.Fatal(acquired, err)
	}
	server.CLI("config", "set", "maxmemory", "4mb")
	for i := range 4000 {
		put := store.Put{Key: fmt.Sprintf("{tb1:ev}token%d", i), Number: 1, Value: make([]byte, 4096), TTL: time.Hour}
		if _, err := r.Apply(t.Context(), store.Change{Puts: []store.Put{put}}); err != nil {
			t.Fatalf("token %d: %v", i, err)
		}
	}
	if stats := server.CLI("info", "stats"); strings.Contains(stats, "evicted_keys:0\r") {
		t.Error("nothing was evicted, so this says nothing")
	}
	if held, err := r.Renew(t.Context(), lease, time.Minute); err != nil || !held {
		t.Errorf("the lease was evicted: %v, %v", held, err)
	}
}

// Those who wait for the lease of a fetch need not wait for its end where Redis
// has no room for the token.
func TestFullRedisReleasesLeases(t *testing.T) {
	server := redistest.Start(t, redistest.Options{})
	r := openPatient(t, redisstore.Config{Addresses: []string{server.Addr()}})
	testkit.Eventually(t, "it works", func() bool { return works(t, r) })
	lease, acquired, err := claimLease(t.Context(), r, testClaim())
	if err != nil || !acquired {
		t.Fatal(acquired, err)
	}
	server.CLI("config", "set", "maxmemory", "1")
	if _, err := r.Apply(t.Context(), store.Change{Puts: []store.Put{testPut(lease.Fence)}, Release: lease}); !errors.Is(err, store.ErrNoWrites) {
		t.Errorf("a put without room: %v", err)
	}
	if left := server.CLI("exists", "tb1:"+testLease); left != "0" {
		t.Error("the lease is still held")
	}
}
