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

// probeTags is how many hash tags are tried to find a key for each master of a Cluster.
// A master with a hundredth of the slots is missed once in 30,000.
const probeTags = 1024

// unknownShard is the shard of a Cluster until its masters are known.
const unknownShard = "unknown"

// shards are the servers of the keys.
type shards struct {
	cluster *redis.ClusterClient // nil: there is one server
	prefix  string
	make    func(name string) *shard
	tags    []string // the hash tags of the keys to probe with

	mu        sync.Mutex
	whole     *shard // the single server, or a Cluster until its masters are known; else nil
	byAddress map[string]*shard
}

func newShards(cluster *redis.ClusterClient, config Config, create func(name string) *shard) *shards {
	s := &shards{cluster: cluster, prefix: config.Prefix, make: create, byAddress: make(map[string]*shard)}
	name, tags := unknownShard, probeTags
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
func (s *shards) unknown() *shard {
	if s.cluster == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.whole
}

// locate finds the masters of the Cluster.
func (s *shards) locate(ctx context.Context) error {
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
func (s *shards) of(name string) *shard {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.whole != nil {
		return s.whole
	}
	return s.at(s.address(name), strings.TrimPrefix(name, s.prefix))
}

// at returns the shard of a master, which has the key. The caller holds s.mu.
func (s *shards) at(address, key string) *shard {
	shard := s.byAddress[address]
	if shard == nil {
		shard = s.make(address)
		shard.key = key
		s.byAddress[address] = shard
	}
	return shard
}

// address is the master of a name, which the client has cached.
func (s *shards) address(name string) string {
	master, err := s.cluster.MasterForKey(context.Background(), name)
	if err != nil {
		return unknownShard
	}
	return master.Options().Addr
}

// refresh drops masters that are gone, and finds a key for each present one.
func (s *shards) refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.whole != nil {
		return
	}
	current := make(map[string]*shard)
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
	s.byAddress = current
}

// all returns the shards, in the order of their names.
func (s *shards) all() []*shard {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.whole != nil {
		return []*shard{s.whole}
	}
	all := make([]*shard, 0, len(s.byAddress))
	for _, shard := range s.byAddress {
		all = append(all, shard)
	}
	slices.SortFunc(all, func(a, b *shard) int { return strings.Compare(a.name, b.name) })
	return all
}

// subscribe begins a subscription. All masters of a Cluster forward messages published
// at any of them, so it uses one that is up: not the master of the channel's name, which
// may be down.
func (s *shards) subscribe(ctx context.Context, client redis.UniversalClient) *redis.PubSub {
	if s.cluster == nil || s.unknown() != nil {
		return client.Subscribe(ctx)
	}
	up := slices.DeleteFunc(s.all(), func(shard *shard) bool { return !shard.health().Reads })
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
		timer := time.NewTimer(max(time.Until(next), probeSoon/4))
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
func (r *Store) probeOne(shard *shard, key string) {
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
	shard.noteProbe(outcome, err, r.limits.probe)
}
