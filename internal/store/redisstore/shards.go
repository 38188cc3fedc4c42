package redisstore

import (
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cezzis/tokenbroker/internal/store"
)

// redisTags is how many hash tags are tried to find a key for each master of a Cluster.
// A master with a hundredth of the slots is missed once in 30,000.
const redisTags = 1024

// redisUnknown is the shard of a Cluster until its masters are known.
const redisUnknown = "unknown"

// redisShards are the servers of the keys.
type redisShards struct {
	cluster *redis.ClusterClient // nil: there is one server
	prefix  string
	make    func(name string) *redisShard
	tags    []string // the hash tags of the keys to probe with

	mu    sync.Mutex
	whole *redisShard // the single server, or a Cluster until its masters are known; else nil
	known map[string]*redisShard
}

func newRedisShards(cluster *redis.ClusterClient, config Config, create func(name string) *redisShard) *redisShards {
	s := &redisShards{cluster: cluster, prefix: config.Prefix, make: create, known: make(map[string]*redisShard)}
	name, tags := redisUnknown, redisTags
	switch {
	case config.SentinelMaster != "":
		name, tags = config.SentinelMaster, 1
	case cluster == nil:
		name, tags = config.Addresses[0], 1
	}
	for i := range tags {
		s.tags = append(s.tags, "{probe"+strconv.Itoa(i)+"}")
	}
	s.whole = create(name)
	s.whole.key = s.tags[0]
	return s
}

// unknown returns the shard that stands for a Cluster until its masters are known. Nil:
// they are known, or it is no Cluster.
func (s *redisShards) unknown() *redisShard {
	if s.cluster == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.whole
}

// locate finds the masters of the Cluster.
func (s *redisShards) locate(ctx context.Context) error {
	if _, err := s.cluster.MasterForKey(ctx, s.prefix+s.tags[0]); err != nil {
		return err
	}
	s.mu.Lock()
	s.whole = nil
	s.mu.Unlock()
	s.refresh()
	return nil
}

// of returns the shard of a name in Redis. The masters must be known.
func (s *redisShards) of(name string) *redisShard {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.whole != nil {
		return s.whole
	}
	return s.at(s.address(name), strings.TrimPrefix(name, s.prefix))
}

// at returns the shard of a master, which has the key. The caller holds s.mu.
func (s *redisShards) at(address, key string) *redisShard {
	shard := s.known[address]
	if shard == nil {
		shard = s.make(address)
		shard.key = key
		s.known[address] = shard
	}
	return shard
}

// address is the master of a name, which the client has cached.
func (s *redisShards) address(name string) string {
	master, err := s.cluster.MasterForKey(context.Background(), name)
	if err != nil {
		return redisUnknown
	}
	return master.Options().Addr
}

// refresh drops masters that are gone, and finds a key for each present one.
func (s *redisShards) refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.whole != nil {
		return
	}
	current := make(map[string]*redisShard)
	for _, tag := range s.tags {
		address := s.address(s.prefix + tag)
		if current[address] != nil {
			continue
		}
		shard := s.at(address, tag)
		shard.mu.Lock()
		shard.key = tag
		shard.mu.Unlock()
		current[address] = shard
	}
	s.known = current
}

// all returns the shards, in the order of their names.
func (s *redisShards) all() []*redisShard {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.whole != nil {
		return []*redisShard{s.whole}
	}
	all := make([]*redisShard, 0, len(s.known))
	for _, shard := range s.known {
		all = append(all, shard)
	}
	slices.SortFunc(all, func(a, b *redisShard) int { return strings.Compare(a.name, b.name) })
	return all
}

// subscribe begins a subscription. All masters of a Cluster forward messages published
// at any of them, so it uses one that is up: not the master of the channel's name, which
// may be down.
func (s *redisShards) subscribe(ctx context.Context, client redis.UniversalClient) *redis.PubSub {
	if s.cluster == nil || s.unknown() != nil {
		return client.Subscribe(ctx)
	}
	up := slices.DeleteFunc(s.all(), func(shard *redisShard) bool { return !shard.health().Reads })
	if len(up) == 0 {
		return client.Subscribe(ctx)
	}
	master, err := s.cluster.MasterForKey(ctx, s.prefix+up[rand.N(len(up))].probeKey()) //nolint:gosec // no secret
	if err != nil {
		return client.Subscribe(ctx)
	}
	return master.Subscribe(ctx)
}

// Health returns the health of each server, as this replica has seen it.
func (r *Store) Health() []store.Health {
	var all []store.Health
	for _, shard := range r.shards.all() {
		all = append(all, shard.health())
	}
	return all
}

// probe probes the servers until r is closed: healthy ones periodically, so that a
// failure is detected within seconds even if the server is not used.
func (r *Store) probe() {
	for {
		r.shards.refresh()
		next := time.Now().Add(r.limits.probe)
		var probes sync.WaitGroup
		for _, shard := range r.shards.all() {
			key, due := shard.plan(time.Now())
			if key != "" {
				probes.Go(func() { r.probeOne(shard, key) })
				due = time.Now()
			}
			if due.Before(next) {
				next = due
			}
		}
		probes.Wait()
		timer := time.NewTimer(max(time.Until(next), redisProbeSoon/4))
		select {
		case <-timer.C:
		case <-r.wake:
		case <-r.ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// probeOne probes one server.
func (r *Store) probeOne(shard *redisShard, key string) {
	ctx, cancel := context.WithTimeout(r.ctx, r.limits.call)
	defer cancel()
	channel := ""
	if shard.allow(true) != nil {
		channel = r.channel() // the refusal may be about the channel
	}
	var err error
	if shard == r.shards.unknown() {
		err = r.shards.locate(ctx)
	} else {
		err = r.run(ctx, r.scripts.probe, []string{key}, channel).Err()
	}
	outcome, err := r.judge(r.ctx, err)
	shard.probed(outcome, err, r.limits.probe)
}
