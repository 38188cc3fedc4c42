package fleet

import (
	"slices"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// fault is something that befalls Redis.
type fault struct {
	name string
	// before: Redis is in this state before the fleet starts.
	before bool
	// during: it happens while the IdP is asked for the cold token.
	during bool
	// proxied: between Redis and the fleet there is a proxy.
	proxied bool
	strike  func(*redistest.Server, *proxy)
	mend    func(*redistest.Server, *proxy)
}

var faults = []fault{
	{name: "refused", before: true,
		strike: func(s *redistest.Server, _ *proxy) { s.Kill() },
		mend:   func(s *redistest.Server, _ *proxy) { s.Restart() }},
	{name: "hung",
		strike: func(s *redistest.Server, _ *proxy) { s.Stop() },
		mend:   func(s *redistest.Server, _ *proxy) { s.Cont() }},
	{name: "slow", proxied: true,
		strike: func(_ *redistest.Server, p *proxy) { p.delay(2 * time.Second) },
		mend:   func(_ *redistest.Server, p *proxy) { p.restore() }},
	{name: "killed during a fetch", during: true,
		strike: func(s *redistest.Server, _ *proxy) { s.Kill() },
		mend:   func(s *redistest.Server, _ *proxy) { s.Restart() }},
	{name: "flushed during a fetch", during: true,
		strike: func(s *redistest.Server, _ *proxy) { s.CLI("flushall") },
		mend:   func(*redistest.Server, *proxy) {}},
	{name: "restarted empty during a fetch", during: true,
		strike: func(s *redistest.Server, _ *proxy) { s.RestartEmpty() },
		mend:   func(*redistest.Server, *proxy) {}},
}

// Whatever befalls Redis, no caller fails, nothing costs more than one call of
// each replica, hits do not notice, and nobody has to do anything afterwards.
func TestRedisFailureFailsNoCall(t *testing.T) {
	t.Parallel()
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			f.befalls(t)
		})
	}
}

const faultReplicas = 5

func (f fault) befalls(t *testing.T) {
	const life = 10 * time.Second // refreshed after 7 to 8 s
	held, cold, later := harness.SimpleIdP(t, time.Hour), harness.SimpleIdP(t, life), harness.SimpleIdP(t, time.Hour)
	server, address, proxy := f.redis(t)
	if f.before {
		f.strike(server, proxy)
	}
	fleet := startFleet(t, faultReplicas, redisConfig(t, "", address)+
		harness.ClientsConfig(t, map[string]*harness.CountingIdP{"held": held, "cold": cold, "later": later}))
	askAll(t, fleet.Replicas, 1, "held").Good(t, "a token to hold")

	// Cold, while it happens.
	if !f.before && !f.during {
		f.strike(server, proxy)
	}
	asking := make(chan AnswerList)
	if f.during {
		cold.SetDelay(1500 * time.Millisecond)
	}
	go func() { asking <- askAll(t, fleet.Replicas, 20, "cold") }()
	if f.during {
		testkit.Eventually(t, "the IdP is asked", func() bool { return cold.Calls() > 0 })
		rest(t, 200*time.Millisecond)
		f.strike(server, proxy)
	}
	all := (<-asking).Good(t, "cold callers")
	coldCalls := cold.Calls()
	t.Logf("cold callers: %v; %d calls at the IdP", all.Took(), coldCalls)
	if coldCalls > faultReplicas {
		t.Errorf("%d replicas called the IdP %d times", faultReplicas, coldCalls)
	}
	cold.SetDelay(0)

	// Hits, meanwhile.
	t.Logf("hits, meanwhile: %v", hitsOf(t, fleet, "held"))

	// Afterwards, by itself: the next miss and the next refresh are one call.
	f.mend(server, proxy)
	for _, r := range fleet.Replicas {
		testkit.Eventually(t, "Redis is back", func() bool { return r.StoreUp(t, "read") && r.StoreUp(t, "write") })
	}
	askAll(t, fleet.Replicas, 20, "later").Good(t, "the next miss").OneToken(t, "the next miss")
	if got := later.Calls(); got != 1 {
		t.Errorf("afterwards a miss cost %d calls", got)
	}
	t.Logf("hits, undisturbed: %v", hitsOf(t, fleet, "held"))
	demand := startLoad(t, fleet.Replicas, 2, 20*time.Millisecond, "cold")
	testkit.Eventually(t, "the token of the cold callers is refreshed", func() bool { return cold.Calls() > coldCalls })
	rest(t, 4*time.Second) // by now all replicas have refreshed, and none a second time
	demand.Good(t, "callers during the refresh")
	if got := cold.Calls() - coldCalls; got != 1 {
		t.Errorf("afterwards a refresh cost %d calls", got)
	}
	if got := held.Calls(); got > faultReplicas || !f.before && got != 1 {
		t.Errorf("the token that was held cost %d calls", got)
	}
}

func (f fault) redis(t *testing.T) (*redistest.Server, string, *proxy) {
	t.Helper()
	server := redistest.Start(t, redisOptions())
	if !f.proxied {
		return server, server.Addr(), nil
	}
	proxy := startProxy(t, server.Addr())
	return server, proxy.addr, proxy
}

// hits has callers ask many times for a token that is held. Redis must not
// notice: what trips there are is what each replica does every 5 s anyway, or to mend
// what Redis has lost.
func hitsOf(t *testing.T, f *Fleet, name string) Latencies {
	t.Helper()
	const rounds, each = 20, 10
	before, begun := f.Sum(t, "tokenbroker_redis_trips_total"), time.Now()
	var took Latencies
	for range rounds {
		all := askAll(t, f.Replicas, each, name).Good(t, "hits")
		for _, a := range all {
			if a.Token.Origin() != "memory" {
				t.Fatalf("a token that is held came from %s", a.Token.Origin())
			}
		}
		took = append(took, all.Took()...)
	}
	trips := f.Sum(t, "tokenbroker_redis_trips_total") - before
	polls := float64(len(f.Replicas)) * (10 + 3*time.Since(begun).Seconds()/5)
	if trips > polls {
		t.Errorf("%d hits took %v trips to Redis, while other things take %v at most", len(took), trips, polls)
	}
	return took
}

// A master is killed under demand for tokens that are about to be due.
func TestRedisFailoverFailsNoCall(t *testing.T) {
	t.Parallel()
	t.Run("of sentinels", func(t *testing.T) {
		t.Parallel()
		s := redistest.StartSentinel(t, redisOptions())
		config := redisConfig(t, "sentinel_master: "+redistest.MasterName+",", s.Addrs()...)
		failover(t, config, []*redistest.Server{s.Master}, func(string) *redistest.Server { return s.Master })
	})
	t.Run("of a cluster", func(t *testing.T) {
		t.Parallel()
		c := redistest.StartCluster(t, redisOptions())
		failover(t, redisConfig(t, "cluster: true,", c.Addrs()...), c.Servers, c.Master)
	})
}

// failover kills the master that has the tokens.
func failover(t *testing.T, config string, servers []*redistest.Server, masterOf func(key string) *redistest.Server) {
	const (
		life     = 20 * time.Second // longer than a failover
		soonest  = 14 * time.Second // that one is refreshed
		lasts    = 34 * time.Second
		replicas = 5
	)
	idp := harness.SimpleIdP(t, life)
	f := startFleet(t, replicas, config+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}))
	asked := idp.Client.Audiences[:3]
	var demands []*Load
	begun := time.Now()
	due := begun.Add(life)
	for _, audience := range asked {
		first := askAll(t, f.Replicas, 1, "orders", client.WithAudience(audience)).Good(t, "at first")[0]
		if first.Token.RefreshAt().Before(due) {
			due = first.Token.RefreshAt()
		}
		demands = append(demands, startLoad(t, f.Replicas, 3, 10*time.Millisecond, "orders", client.WithAudience(audience)))
	}
	rest(t, time.Until(due)-500*time.Millisecond) // so that one is due before there can be another master
	var keys []string
	for _, server := range servers {
		keys = append(keys, tokenKeys(server)...)
	}
	if len(keys) < len(asked) {
		t.Fatalf("%d tokens are asked for, and Redis has %d", len(asked), len(keys))
	}
	masterOf(keys[0]).Kill()
	rest(t, time.Until(begun.Add(lasts)))
	for i, demand := range demands {
		demand.Good(t, "callers during a failover")
		calls, late := 0, 0
		for _, request := range idp.TokenRequests() {
			if request.Audience == asked[i] {
				calls++
				if request.At.After(begun.Add(lasts - soonest)) {
					late++
				}
			}
		}
		t.Logf("%d calls at the IdP in %v, %d of them in the last %v; %d tokens seen; %v", calls, lasts, late, soonest, len(demand.Tokens), demand.Took)
		if most := 1 + int(lasts/soonest) + replicas; calls > most {
			t.Errorf("%d calls, which are more than refreshes and one of each replica: %d", calls, most)
		}
		if late > 2 {
			t.Errorf("%d calls in the last %v: the replicas still fetch each for itself", late, soonest)
		}
	}
	if !slices.ContainsFunc(f.Replicas, func(r *Replica) bool { return r.Logged("Redis is away") || r.Logged("Redis takes no writes") }) {
		t.Error("no replica noticed, so this says nothing")
	}
}
