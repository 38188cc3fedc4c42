package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// While Redis reads but does not write, no call for a token fails, each replica
// fetches once for itself, the metric and the log say so and stay, and a purge is
// refused with the cause.
func TestNoCallerNoticesARedisThatDoesNotWrite(t *testing.T) {
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
			idp := simpleIdP(t, time.Hour)
			server := redistest.Start(t, redisOptions())
			fleet := startFleet(t, replicas, redisConfig(t, "", server.Addr())+clientsConfig(t, map[string]*countingIdP{"orders": idp}))
			everybody(t, fleet.replicas, 1, "orders").good(t, "a token to hold")
			demand := startLoad(t, fleet.replicas, 2, 20*time.Millisecond, "orders")
			f.strike(server)
			for _, r := range fleet.replicas {
				testkit.Eventually(t, "the metric shows it", func() bool { return !r.storeUp(t, "write") })
			}
			for i := range 3 {
				before := idp.calls()
				took := everybody(t, fleet.replicas, 20, "orders", client.WithAudience(idp.client.Audiences[i+1])).good(t, "cold callers").took()
				if got := idp.calls() - before; got != replicas {
					t.Errorf("%d replicas called the IdP %d times", replicas, got)
				}
				t.Logf("cold callers: %v", took)
				for _, r := range fleet.replicas {
					if r.storeUp(t, "write") || !r.storeUp(t, "read") {
						t.Errorf("the metric: %v, %v", r.storeHealth(t, "read"), r.storeHealth(t, "write"))
					}
				}
				rest(t, time.Second)
			}
			fleet.replicas[0].purgeFails(t, "orders", f.cause)
			f.mend(server)
			for _, r := range fleet.replicas {
				testkit.Eventually(t, "the metric shows the end", func() bool { return r.storeUp(t, "write") })
				for _, line := range []string{`"Redis takes no writes: each`, `"Redis takes writes again"`} {
					if got := strings.Count(r.process.output.String(), line); got != 1 {
						t.Errorf("the log has %d lines with %s", got, line)
					}
				}
			}
			before := idp.calls()
			everybody(t, fleet.replicas, 20, "orders", client.WithAudience(idp.client.Audiences[9])).good(t, "afterwards").oneToken(t, "afterwards")
			if got := idp.calls() - before; got != 1 {
				t.Errorf("afterwards a miss cost %d calls", got)
			}
			demand.good(t, "callers all the while")
		})
	}
}

// purgeFails makes a purge that the store refuses.
func (r *replica) purgeFails(t *testing.T, name, cause string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := tokenbrokerv1.NewAdminServiceClient(r.api(t)).PurgeTokens(ctx, &tokenbrokerv1.PurgeTokensRequest{ClientName: name, RequestId: "refused"})
	if status.Code(err) != codes.Unavailable || !strings.Contains(status.Convert(err).Message(), cause) {
		t.Errorf("a purge that the store refused: %v", err)
	}
}

// One dead shard of a Cluster concerns the clients alone whose keys are there.
func TestNoCallerNoticesADeadShard(t *testing.T) {
	t.Parallel()
	const replicas, clients = 3, 12
	cluster := redistest.StartMasters(t, redisOptions())
	idps := map[string]*countingIdP{}
	for i := range clients {
		idps[fmt.Sprintf("client%d", i)] = simpleIdP(t, time.Hour)
	}
	fleet := startFleet(t, replicas, redisConfig(t, "cluster: true,", cluster.Addrs()...)+clientsConfig(t, idps))
	// The master of a client is the one that gets the keys of its token.
	masterOf := map[string]*redistest.Server{}
	for name := range idps {
		before := map[*redistest.Server]int{}
		for _, server := range cluster.Servers {
			before[server] = len(tokenKeys(server))
		}
		everybody(t, fleet.replicas, 1, name).good(t, "a token to hold").oneToken(t, name)
		for _, server := range cluster.Servers {
			if len(tokenKeys(server)) > before[server] {
				masterOf[name] = server
			}
		}
	}
	dead := masterOf["client0"]
	demand := startLoad(t, fleet.replicas, 2, 20*time.Millisecond, "client0")
	dead.Kill()
	for _, r := range fleet.replicas {
		testkit.Eventually(t, "the metric shows it", func() bool { return r.storeHealth(t, "read")[dead.Addr()] == 0 })
	}
	healthy := 0
	for name, idp := range idps {
		before := idp.calls()
		all := everybody(t, fleet.replicas, 10, name, client.WithAudience(idp.client.Audiences[1])).good(t, "cold callers")
		calls := idp.calls() - before
		switch {
		case masterOf[name] == dead && calls != replicas:
			t.Errorf("%s, of the dead shard, cost %d calls", name, calls)
		case masterOf[name] != dead:
			healthy++
			if all.oneToken(t, name); calls != 1 {
				t.Errorf("%s, of another shard, cost %d calls", name, calls)
			}
		}
	}
	if healthy == 0 {
		t.Error("all clients are on one shard, so this says little")
	}
	for _, r := range fleet.replicas {
		for shard, up := range r.storeHealth(t, "write") {
			if (shard != dead.Addr()) != (up == 1) {
				t.Errorf("the metric of %s: %v", shard, up)
			}
		}
	}
	dead.Restart()
	for _, r := range fleet.replicas {
		testkit.Eventually(t, "the metric shows the end", func() bool { return r.storeUp(t, "read") && r.storeUp(t, "write") })
	}
	demand.good(t, "callers all the while")
}
