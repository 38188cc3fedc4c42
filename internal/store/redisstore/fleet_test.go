package redisstore_test

import (
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

func TestRedisSentinelsFindTheNewMaster(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	t.Run("", func(t *testing.T) {
		sentinel := redistest.StartSentinel(t, redistest.Options{ACL: []string{aclLine()}})
		config := userOf(t, sentinel.Addrs()...)
		config.SentinelMaster = redistest.MasterName
		survives(t, config, func() {
			sentinel.Sentinels[0].Kill()
			sentinel.Master.Kill()
		})
	})
	testkit.Eventually(t, "no goroutine is left", func() bool { return goleak.Find(leaks) == nil })
}

func TestRedisClusterFindsTheNewMaster(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	t.Run("", func(t *testing.T) {
		cluster := redistest.StartCluster(t, redistest.Options{ACL: []string{aclLine(redisstore.ACLCluster)}})
		config := userOf(t, cluster.Addrs()...)
		config.Cluster = true
		t.Run("slots move", func(t *testing.T) { followsSlots(t, config, cluster) })
		t.Run("a call is not repeated", func(t *testing.T) { isNotRepeated(t, config, cluster) })
		survives(t, config, func() { cluster.Master("tb1:" + testKey).Kill() })
	})
	testkit.Eventually(t, "no goroutine is left", func() bool { return goleak.Find(leaks) == nil })
}

// survives checks that calls and events go on by themselves.
func survives(t *testing.T, config redisstore.Config, fail func()) {
	t.Helper()
	var log testkit.Log
	config.Logger = slog.New(slog.NewTextHandler(&log, nil))
	r, quiet := open(t, config), open(t, config) // quiet does not subscribe
	events := r.Subscribe(t.Context())
	testkit.Eventually(t, "it works", func() bool { return works(t, quiet) && works(t, r) && hasEvent(t, events) })
	fail()
	if works(t, r) {
		t.Error("the master that was killed answers")
	}
	start := time.Now()
	testkit.Eventually(t, "calls succeed again", func() bool { return works(t, r) && works(t, quiet) })
	t.Logf("calls succeeded again after %v", time.Since(start))
	testkit.Eventually(t, "events flow again", func() bool { return works(t, r) && hasEvent(t, events) })
	t.Logf("events flowed again after %v", time.Since(start))
	showsNothing(t, log.String())
}

// followsSlots moves a slot while a client uses it.
func followsSlots(t *testing.T, config redisstore.Config, cluster *redistest.Cluster) {
	r := openPatient(t, config)
	const counter = "{moves}counter" // of another server than testKey
	count := func() uint64 {
		t.Helper()
		count, err := r.Raise(t.Context(), counter, 0, 1)
		if err != nil {
			t.Errorf("while its slot moves: %v", err)
		}
		return count
	}
	count()
	from, to := cluster.Master("tb1:"+counter), cluster.Master("tb1:"+testKey)
	if from == to {
		t.Fatal("the slot is where it is to move to")
	}
	slot := from.CLI("cluster", "keyslot", "tb1:"+counter)
	fromID, toID := from.CLI("cluster", "myid"), to.CLI("cluster", "myid")
	to.CLI("cluster", "setslot", slot, "importing", fromID)
	from.CLI("cluster", "setslot", slot, "migrating", toID)
	from.CLI("del", "tb1:"+counter) // as if it had moved already: its server says ASK
	if got := count(); got != 1 {
		t.Errorf("asked the old server: %d", got)
	}
	for _, server := range []*redistest.Server{to, from} {
		server.CLI("cluster", "setslot", slot, "node", toID)
	}
	to.CLI("script", "flush")
	if got := count(); got != 2 { // its server says MOVED
		t.Errorf("asked the old server: %d", got)
	}
	entries, err := r.Get(t.Context(), counter, testCounter, "{x}", "{y}", "{moves}", "{z}")
	if err != nil || entries[0].Number != 2 || entries[4].Number != 0 {
		t.Errorf("of several slots: %+v, %v", entries, err)
	}
}

// isNotRepeated has a server hang for longer than it takes to give up, and
// not as long as a second attempt would take.
func isNotRepeated(t *testing.T, config redisstore.Config, cluster *redistest.Cluster) {
	r := open(t, config)
	count := func() uint64 {
		t.Helper()
		var entries []store.Entry
		testkit.Eventually(t, "it works", func() bool {
			var err error
			entries, err = r.Get(t.Context(), testCounter)
			return err == nil
		})
		return entries[0].Number
	}
	testkit.Eventually(t, "it works", func() bool { return works(t, r) })
	master := cluster.Master("tb1:" + testKey)
	for range 20 {
		before := count()
		master.Stop()
		time.AfterFunc(350*time.Millisecond, master.Cont)
		if works(t, r) {
			t.Error("a call got an answer that was late")
		}
		count() // what was sent before is done when this is answered
		switch after := count(); after {
		case before: // on a slow machine it may give up before it has sent anything
		case before + 1:
			return
		default:
			t.Fatalf("one raise by 1 went from %d to %d", before, after)
		}
	}
	t.Error("no call was sent")
}
