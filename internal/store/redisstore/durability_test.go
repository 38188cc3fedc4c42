package redisstore_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
)

// confirmed puts a value and returns how safe it is.
func confirmed(t *testing.T, r *redisstore.Store, number uint64) store.Safety {
	t.Helper()
	put := store.Put{Key: "{client}secrets", Number: number, Value: []byte("value")}
	if applied, err := r.Apply(t.Context(), store.Change{Puts: []store.Put{put}}); err != nil || !applied[0] {
		t.Fatalf("%v, %v", applied, err)
	}
	return r.Confirm(t.Context(), put.Key)
}

const (
	noFileNoReplica = "Redis keeps no append-only file and has no replica: if it restarts while no broker runs, it is lost; set appendonly yes"
	mayNotAsk       = "it is unknown how safely Redis keeps it, because the user \"tokenbroker\" may not run INFO or WAIT: allow it " + redisstore.ACLConfirm
)

func TestRedisDurability(t *testing.T) {
	server := redistest.Start(t, redistest.Options{ACL: []string{aclLine(redisstore.ACLConfirm)}})
	r := openPatient(t, userOf(t, server.Addr()))
	number := uint64(0)
	check := func(name string, want store.Safety) {
		t.Helper()
		number++
		if got := confirmed(t, r, number); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	check("in memory alone", store.Safety{Doubt: noFileNoReplica})
	server.CLI("config", "set", "appendonly", "yes")
	check("an append-only file", store.Safety{Doubt: "Redis writes it to its append-only file, but before version 7.2 does not report when it is on disk"})
	server.CLI("config", "set", "maxmemory-policy", "allkeys-lfu")
	check("evicting", store.Safety{Doubt: "Redis may evict it, because its maxmemory-policy is allkeys-lfu: set it to volatile-ttl or volatile-lru"})
	server.CLI("config", "set", "maxmemory-policy", "noeviction")
	server.CLI("acl", "setuser", "tokenbroker", "-info")
	check("may not ask", store.Safety{Doubt: mayNotAsk})
}

func TestRedisConfirmation_replicas(t *testing.T) {
	sentinel := redistest.StartSentinel(t, redistest.Options{ACL: []string{aclLine(redisstore.ACLConfirm)}})
	config := userOf(t, sentinel.Addrs()...)
	config.SentinelMaster = redistest.MasterName
	r := openPatient(t, config)
	const noFile = "Redis keeps no append-only file: if all its servers restart while no broker runs, it is lost; set appendonly yes"
	if got := confirmed(t, r, 1); got != (store.Safety{Replicas: 1, Doubt: noFile}) || got.String() != "on 1 replica" {
		t.Errorf("%+v", got)
	}
	sentinel.Replica.Stop()
	if got := confirmed(t, r, 2); got != (store.Safety{Doubt: noFileNoReplica}) || got.String() != "" {
		t.Errorf("with a replica that hangs: %+v", got)
	}
	sentinel.Replica.Cont()
}

func TestRedisConfirmation_cluster(t *testing.T) {
	cluster := redistest.StartCluster(t, redistest.Options{ACL: []string{aclLine(redisstore.ACLCluster, redisstore.ACLConfirm)}})
	config := userOf(t, cluster.Addrs()...)
	config.Cluster = true
	r := openPatient(t, config)
	for i := range 8 { // on all masters
		put := store.Put{Key: fmt.Sprintf("{client%d}secrets", i), Number: 1, Value: []byte("value")}
		if _, err := r.Apply(t.Context(), store.Change{Puts: []store.Put{put}}); err != nil {
			t.Fatal(err)
		}
		if got := r.Confirm(t.Context(), put.Key); got.Replicas != 1 || !strings.Contains(got.Doubt, "no append-only file") {
			t.Errorf("%s: %+v", put.Key, got)
		}
	}
}

// Redis 7.2 is not at hand. What it answers is in its documentation.
func TestRedisConfirmation_disk(t *testing.T) {
	info := "redis_version:7.4.1\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\nconnected_slaves:2\r\n"
	answers := map[string]string{
		"hello":   "%3\r\n+server\r\n+redis\r\n+version\r\n+7.4.1\r\n+mode\r\n+standalone\r\n",
		"info":    fmt.Sprintf("$%d\r\n%s\r\n", len(info), info),
		"set":     "+OK\r\n",
		"wait":    ":2\r\n",
		"waitaof": "*2\r\n:1\r\n:0\r\n",
	}
	r := openPatient(t, redisstore.Config{Addresses: []string{scriptedServer(t, answers)}})
	if got := r.Confirm(t.Context(), "{client}secrets"); got != (store.Safety{Disk: true, Replicas: 2}) || got.String() != "on disk and on 2 replicas" {
		t.Errorf("%+v", got)
	}
	answers["waitaof"] = "*2\r\n:0\r\n:0\r\n"
	slow := openPatient(t, redisstore.Config{Addresses: []string{scriptedServer(t, answers)}})
	if got := slow.Confirm(t.Context(), "{client}secrets"); got.Disk || got.Doubt != "Redis had not written it to its append-only file within a second" {
		t.Errorf("a slow disk: %+v", got)
	}
}

func TestRedisConfirmation_unreachable(t *testing.T) {
	server := redistest.Start(t, redistest.Options{Password: testPassword})
	r := openPatient(t, redisstore.Config{Addresses: []string{server.Addr()}, Password: passwordSource(t, testPassword)})
	server.Kill()
	got := r.Confirm(t.Context(), "{client}secrets")
	if got.Disk || got.Replicas > 0 || !strings.HasPrefix(got.Doubt, "it is unknown how safely Redis keeps it: ") {
		t.Errorf("%+v", got)
	}
	showsNothing(t, got.Doubt)
}

func TestRedisThatEvictsSecretsIsRefused(t *testing.T) {
	server := redistest.Start(t, redistest.Options{ACL: []string{aclLine("+info")}})
	config := userOf(t, server.Addr())
	config.KeepsSecrets = true
	checkAll(t, []mend{{"no append-only file", config, "Redis: IT KEEPS NO APPEND-ONLY FILE, and the secrets of managed clients are nowhere else: if it restarts while no broker runs they are lost; set appendonly yes, and keep what `broker secret export` writes"}})
	server.CLI("config", "set", "maxmemory-policy", "allkeys-lru")
	checkAll(t, []mend{{"evicts", config, "Redis: maxmemory-policy allkeys-lru may evict the secrets of managed clients, which are nowhere else: set it to volatile-ttl or volatile-lru, or keep the secrets in files"}})
}

func TestRedisKeepingIsThatOfTheWorstServer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.Options{AppendOnly: true, ACL: []string{aclLine("+info")}})
	r := openPatient(t, userOf(t, server.Addr()))
	keeping := func(want redisstore.Keeping, wantErr error) {
		t.Helper()
		if got, err := r.Keeping(t.Context()); got != want || !errors.Is(err, wantErr) {
			t.Errorf("%+v, %v; want %+v, %v", got, err, want, wantErr)
		}
	}
	keeping(redisstore.Keeping{Durable: true}, nil)
	server.CLI("config", "set", "maxmemory-policy", "allkeys-lru")
	keeping(redisstore.Keeping{Durable: true, Evicts: true}, nil)
	server.CLI("config", "set", "appendonly", "no")
	keeping(redisstore.Keeping{Evicts: true}, nil)
	server.CLI("acl", "setuser", "tokenbroker", "-info")
	keeping(redisstore.Keeping{}, redisstore.ErrNoInfo)
	server.Kill()
	keeping(redisstore.Keeping{}, store.ErrAway)

	cluster := redistest.StartCluster(t, redistest.Options{ACL: []string{aclLine(redisstore.ACLCluster, "+info")}})
	config := userOf(t, cluster.Addrs()...)
	config.Cluster = true
	r = openPatient(t, config)
	keeping(redisstore.Keeping{}, nil)
	cluster.Master("{client1}x").CLI("config", "set", "maxmemory-policy", "allkeys-lfu")
	keeping(redisstore.Keeping{Evicts: true}, nil)
}
