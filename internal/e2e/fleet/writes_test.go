package fleet

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// While Redis reads but does not write, no call for a token fails, each replica
// fetches once for itself, the metric and the log say so and stay, and a purge is
// refused with the cause.
func TestReadOnlyRedisFailsNoCall(t *testing.T) {
	t.Parallel()
	set := func(args ...string) func(*redistest.Server) {
		return func(s *redistest.Server) { s.CLI(args...) }
	}
	for _, f := range []struct {
		name, cause  string
		strike, mend func(*redistest.Server)
	}{
		{"out of memory", "OOM", set("config", "set", "maxmemory", "1"), set("config", "set", "maxmemory", "0")},
		{"read-only", "READONLY", set("replicaof", "127.0.0.1", "1"), set("replicaof", "no", "one")},
		{"without the right", "to SET: ", set("acl", "setuser", "tokenbroker", "-set"), set("acl", "setuser", "tokenbroker", "+set")},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			const replicas = 3
			idp := harness.SimpleIdP(t, time.Hour)
			server := redistest.Start(t, redisOptions())
			fleet := startFleet(t, replicas, redisConfig(t, "", server.Addr())+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}))
			askAll(t, fleet.Replicas, 1, "orders").Good(t, "a token to hold")
			demand := startLoad(t, fleet.Replicas, 2, 20*time.Millisecond, "orders")
			f.strike(server)
			for _, r := range fleet.Replicas {
				testkit.Eventually(t, "the metric shows it", func() bool { return !r.StoreUp(t, "write") })
			}
			for i := range 3 {
				before := idp.Calls()
				took := askAll(t, fleet.Replicas, 20, "orders", client.WithAudience(idp.Client.Audiences[i+1])).Good(t, "cold callers").Took()
				if got := idp.Calls() - before; got != replicas {
					t.Errorf("%d replicas called the IdP %d times", replicas, got)
				}
				t.Logf("cold callers: %v", took)
				for _, r := range fleet.Replicas {
					if r.StoreUp(t, "write") || !r.StoreUp(t, "read") {
						t.Errorf("the metric: %v, %v", r.StoreHealth(t, "read"), r.StoreHealth(t, "write"))
					}
				}
				rest(t, time.Second)
			}
			purgeFails(t, fleet.Replicas[0], "orders", f.cause)
			f.mend(server)
			for _, r := range fleet.Replicas {
				testkit.Eventually(t, "the metric shows the end", func() bool { return r.StoreUp(t, "write") })
				for _, line := range []string{`"Redis takes no writes: each`, `"Redis takes writes again"`} {
					if got := strings.Count(r.Process.Output.String(), line); got != 1 {
						t.Errorf("the log has %d lines with %s", got, line)
					}
				}
			}
			before := idp.Calls()
			askAll(t, fleet.Replicas, 20, "orders", client.WithAudience(idp.Client.Audiences[9])).Good(t, "afterwards").OneToken(t, "afterwards")
			if got := idp.Calls() - before; got != 1 {
				t.Errorf("afterwards a miss cost %d calls", got)
			}
			demand.Good(t, "callers all the while")
		})
	}
}

// purgeFails makes a purge that the store refuses.
func purgeFails(t *testing.T, r *Replica, name, cause string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	_, err := tokenbrokerv1.NewAdminServiceClient(r.API(t)).PurgeTokens(ctx, &tokenbrokerv1.PurgeTokensRequest{ClientName: name, RequestId: "refused"})
	if status.Code(err) != codes.Unavailable || !strings.Contains(status.Convert(err).Message(), cause) {
		t.Errorf("a purge that the store refused: %v", err)
	}
}

// One dead shard of a Cluster concerns the clients alone whose keys are there.
func TestDeadShardFailsNoCall(t *testing.T) {
	t.Parallel()
	const replicas, clients = 3, 12
	cluster := redistest.StartMasters(t, redisOptions())
	idps := map[string]*harness.CountingIdP{}
	for i := range clients {
		idps[fmt.Sprintf("client%d", i)] = harness.SimpleIdP(t, time.Hour)
	}
	fleet := startFleet(t, replicas, redisConfig(t, "cluster: true,", cluster.Addrs()...)+harness.ClientsConfig(t, idps))
	// The master of a client is the one that gets the keys of its token.
	masterOf := map[string]*redistest.Server{}
	for name := range idps {
		before := map[*redistest.Server]int{}
		for _, server := range cluster.Servers {
			before[server] = len(tokenKeys(server))
		}
		askAll(t, fleet.Replicas, 1, name).Good(t, "a token to hold").OneToken(t, name)
		for _, server := range cluster.Servers {
			if len(tokenKeys(server)) > before[server] {
				masterOf[name] = server
			}
		}
	}
	dead := masterOf["client0"]
	demand := startLoad(t, fleet.Replicas, 2, 20*time.Millisecond, "client0")
	dead.Kill()
	for _, r := range fleet.Replicas {
		testkit.Eventually(t, "the metric shows it", func() bool { return r.StoreHealth(t, "read")[dead.Addr()] == 0 })
	}
	healthy := 0
	for name, idp := range idps {
		before := idp.Calls()
		all := askAll(t, fleet.Replicas, 10, name, client.WithAudience(idp.Client.Audiences[1])).Good(t, "cold callers")
		calls := idp.Calls() - before
		switch {
		case masterOf[name] == dead && calls != replicas:
			t.Errorf("%s, of the dead shard, cost %d calls", name, calls)
		case masterOf[name] != dead:
			healthy++
			if all.OneToken(t, name); calls != 1 {
				t.Errorf("%s, of another shard, cost %d calls", name, calls)
			}
		}
	}
	if healthy == 0 {
		t.Error("all clients are on one shard, so this says little")
	}
	for _, r := range fleet.Replicas {
		for shard, up := range r.StoreHealth(t, "write") {
			if (shard != dead.Addr()) != (up == 1) {
				t.Errorf("the metric of %s: %v", shard, up)
			}
		}
	}
	dead.Restart()
	for _, r := range fleet.Replicas {
		testkit.Eventually(t, "the metric shows the end", func() bool { return r.StoreUp(t, "read") && r.StoreUp(t, "write") })
	}
	demand.Good(t, "callers all the while")
}
