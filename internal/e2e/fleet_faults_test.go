package e2e_test

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/client"
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
	strike  func(*redistest.Server, *redistest.Proxy)
	mend    func(*redistest.Server, *redistest.Proxy)
}

var faults = []fault{
	{name: "refused", before: true,
		strike: func(s *redistest.Server, _ *redistest.Proxy) { s.Kill() },
		mend:   func(s *redistest.Server, _ *redistest.Proxy) { s.Restart() }},
	{name: "hung",
		strike: func(s *redistest.Server, _ *redistest.Proxy) { s.Stop() },
		mend:   func(s *redistest.Server, _ *redistest.Proxy) { s.Cont() }},
	{name: "slow", proxied: true,
		strike: func(_ *redistest.Server, p *redistest.Proxy) { p.Latency(2 * time.Second) },
		mend:   func(_ *redistest.Server, p *redistest.Proxy) { p.Up() }},
	{name: "killed during a fetch", during: true,
		strike: func(s *redistest.Server, _ *redistest.Proxy) { s.Kill() },
		mend:   func(s *redistest.Server, _ *redistest.Proxy) { s.Restart() }},
	{name: "flushed during a fetch", during: true,
		strike: func(s *redistest.Server, _ *redistest.Proxy) { s.CLI("flushall") },
		mend:   func(*redistest.Server, *redistest.Proxy) {}},
	{name: "restarted empty during a fetch", during: true,
		strike: func(s *redistest.Server, _ *redistest.Proxy) { s.RestartEmpty() },
		mend:   func(*redistest.Server, *redistest.Proxy) {}},
}

// Whatever befalls Redis, no caller fails, nothing costs more than one call of
// each replica, hits do not notice, and nobody has to do anything afterwards.
func TestNoCallerNoticesWhatBefallsRedis(t *testing.T) {
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
	held, cold, later := simpleIdP(t, time.Hour), simpleIdP(t, life), simpleIdP(t, time.Hour)
	server, address, proxy := f.redis(t)
	if f.before {
		f.strike(server, proxy)
	}
	fleet := startFleet(t, faultReplicas, redisConfig(t, "", address)+
		clientsConfig(t, map[string]*countingIdP{"held": held, "cold": cold, "later": later}))
	everybody(t, fleet.replicas, 1, "held").good(t, "a token to hold")

	// Cold, while it happens.
	if !f.before && !f.during {
		f.strike(server, proxy)
	}
	asking := make(chan answerList)
	if f.during {
		cold.SetDelay(1500 * time.Millisecond)
	}
	go func() { asking <- everybody(t, fleet.replicas, 20, "cold") }()
	if f.during {
		testkit.Eventually(t, "the IdP is asked", func() bool { return cold.calls() > 0 })
		rest(t, 200*time.Millisecond)
		f.strike(server, proxy)
	}
	all := (<-asking).good(t, "cold callers")
	coldCalls := cold.calls()
	t.Logf("cold callers: %v; %d calls at the IdP", all.took(), coldCalls)
	if coldCalls > faultReplicas {
		t.Errorf("%d replicas called the IdP %d times", faultReplicas, coldCalls)
	}
	cold.SetDelay(0)

	// Hits, meanwhile.
	t.Logf("hits, meanwhile: %v", fleet.hits(t, "held"))

	// Afterwards, by itself: the next miss and the next refresh are one call.
	f.mend(server, proxy)
	for _, r := range fleet.replicas {
		testkit.Eventually(t, "Redis is back", func() bool { return r.storeUp(t, "read") && r.storeUp(t, "write") })
	}
	everybody(t, fleet.replicas, 20, "later").good(t, "the next miss").oneToken(t, "the next miss")
	if got := later.calls(); got != 1 {
		t.Errorf("afterwards a miss cost %d calls", got)
	}
	t.Logf("hits, undisturbed: %v", fleet.hits(t, "held"))
	demand := startLoad(t, fleet.replicas, 2, 20*time.Millisecond, "cold")
	testkit.Eventually(t, "the token of the cold callers is refreshed", func() bool { return cold.calls() > coldCalls })
	rest(t, 4*time.Second) // by now all replicas have refreshed, and none a second time
	demand.good(t, "callers during the refresh")
	if got := cold.calls() - coldCalls; got != 1 {
		t.Errorf("afterwards a refresh cost %d calls", got)
	}
	if got := held.calls(); got > faultReplicas || !f.before && got != 1 {
		t.Errorf("the token that was held cost %d calls", got)
	}
}

func (f fault) redis(t *testing.T) (*redistest.Server, string, *redistest.Proxy) {
	t.Helper()
	server := redistest.Start(t, redisOptions())
	if !f.proxied {
		return server, server.Addr(), nil
	}
	proxy := redistest.Toxiproxy(t, server.Addr())
	return server, proxy.Addr(), proxy
}

// hits has callers ask many times for a token that is held. Redis must not
// notice: what trips there are is what each replica does every 5 s anyway, or to mend
// what Redis has lost.
func (f *fleet) hits(t *testing.T, name string) latencies {
	t.Helper()
	const rounds, each = 20, 10
	before, begun := f.sum(t, "tokenbroker_redis_trips_total"), time.Now()
	var took latencies
	for range rounds {
		all := everybody(t, f.replicas, each, name).good(t, "hits")
		for _, a := range all {
			if a.token.Origin() != "memory" {
				t.Fatalf("a token that is held came from %s", a.token.Origin())
			}
		}
		took = append(took, all.took()...)
	}
	trips := f.sum(t, "tokenbroker_redis_trips_total") - before
	polls := float64(len(f.replicas)) * (10 + 3*time.Since(begun).Seconds()/5)
	if trips > polls {
		t.Errorf("%d hits took %v trips to Redis, while other things take %v at most", len(took), trips, polls)
	}
	return took
}

// A master is killed under demand for tokens that are about to be due.
func TestNoCallerNoticesAFailover(t *testing.T) {
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
	idp := simpleIdP(t, life)
	f := startFleet(t, replicas, config+clientsConfig(t, map[string]*countingIdP{"orders": idp}))
	asked := idp.client.Audiences[:3]
	var demands []*load
	begun := time.Now()
	due := begun.Add(life)
	for _, audience := range asked {
		first := everybody(t, f.replicas, 1, "orders", client.WithAudience(audience)).good(t, "at first")[0]
		if first.token.RefreshAt().Before(due) {
			due = first.token.RefreshAt()
		}
		demands = append(demands, startLoad(t, f.replicas, 3, 10*time.Millisecond, "orders", client.WithAudience(audience)))
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
		demand.good(t, "callers during a failover")
		calls, late := 0, 0
		for _, request := range idp.TokenRequests() {
			if request.Audience == asked[i] {
				calls++
				if request.At.After(begun.Add(lasts - soonest)) {
					late++
				}
			}
		}
		t.Logf("%d calls at the IdP in %v, %d of them in the last %v; %d tokens seen; %v", calls, lasts, late, soonest, len(demand.tokens), demand.took)
		if most := 1 + int(lasts/soonest) + replicas; calls > most {
			t.Errorf("%d calls, which are more than refreshes and one of each replica: %d", calls, most)
		}
		if late > 2 {
			t.Errorf("%d calls in the last %v: the replicas still fetch each for itself", late, soonest)
		}
	}
	if !slices.ContainsFunc(f.replicas, func(r *replica) bool { return r.logged("Redis is away") || r.logged("Redis takes no writes") }) {
		t.Error("no replica noticed, so this says nothing")
	}
}

// storeUp reports whether all servers of Redis are up for an operation.
func (b *broker) storeUp(t *testing.T, operation string) bool {
	t.Helper()
	values := b.storeHealth(t, operation)
	return len(values) > 0 && !slices.Contains(slices.Collect(maps.Values(values)), 0)
}

// storeHealth is the metric of each server of Redis, by its name.
func (b *broker) storeHealth(t *testing.T, operation string) map[string]float64 {
	t.Helper()
	found := map[string]float64{}
	for line := range strings.Lines(b.metrics(t)) {
		rest, is := strings.CutPrefix(line, `tokenbroker_store_up{operation="`+operation+`",shard="`)
		if shard, value, cut := strings.Cut(rest, `"} `); is && cut {
			number, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			found[shard] = number
		}
	}
	return found
}
