package store

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/sony/gobreaker/v2"
)

// When Redis counts as away.
const (
	redisFailures = 5               // in a row
	redisOpen     = 2 * time.Second // then one call probes
)

// redisLimits are what a call may take.
type redisLimits struct {
	call time.Duration // the whole, waiting for a connection included
	wait time.Duration // for a connection
	dial time.Duration
	wire time.Duration // one read or write
}

func redisUsual() redisLimits {
	const unit = time.Millisecond
	return redisLimits{call: 500 * unit, wait: 400 * unit, dial: 500 * unit, wire: 250 * unit}
}

// Redis is a Store for a fleet: one server, a Redis Cluster, or a master that
// sentinels watch.
//
// Everything is a string: a value "<number>:<bytes>", a lease
// "<fence>:<owner>", a counter "<count>". What others wrote under a key and does
// not read so counts as lost: it reads as absent and is overwritten. Each change
// is one script, and tells of the changed keys on the channel "<prefix>ev".
//
// A call lasts half a second at most. After five failures in a row Redis counts
// as away for two seconds: calls fail at once with ErrAway, then one of them
// probes. Calls that their own context ended, or that found no free connection,
// do not count.
//
// No error and no log line shows a password, a key or a value.
type Redis struct {
	config  RedisConfig
	limits  redisLimits
	options *redis.UniversalOptions
	client  redis.UniversalClient
	scripts redisScripts
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]
	logger  *slog.Logger
	trips   atomic.Uint64
	failure atomic.Pointer[string] // the last, for those whom the breaker refuses

	ctx         context.Context //nolint:containedctx // it ends with Close, as the listener must
	cancel      context.CancelFunc
	listener    sync.WaitGroup
	mu          sync.Mutex
	listening   bool
	subscribers map[chan string]func() bool // and how to forget its ctx
}

var _ Store = (*Redis)(nil)

// NewRedis returns a Redis store, or an error where the configuration
// contradicts itself. It does not wait for Redis, which is connected to in the
// background and may come and go; Check tells what is wrong with it.
//
// The Redis client's own log, which all clients in a process share, is switched
// off: it does not say what it shows.
func NewRedis(config RedisConfig) (*Redis, error) { return newRedis(config, redisUsual()) }

func newRedis(config RedisConfig, limits redisLimits) (*Redis, error) {
	if config.Prefix == "" {
		config.Prefix = DefaultRedisPrefix
	}
	if err := config.check(); err != nil {
		return nil, err
	}
	redis.SetLogger(redisSilence{})
	r := &Redis{
		config:      config,
		limits:      limits,
		options:     config.options(limits),
		scripts:     newRedisScripts(),
		logger:      config.Logger,
		subscribers: make(map[chan string]func() bool),
	}
	if r.logger == nil {
		r.logger = slog.New(slog.DiscardHandler)
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.breaker = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Timeout:       redisOpen,
		ReadyToTrip:   func(counts gobreaker.Counts) bool { return counts.ConsecutiveFailures >= redisFailures },
		OnStateChange: r.tellOfState,
		IsExcluded:    redisCallersOwn,
	})
	r.client = redisConnect(config, r.options)
	if config.Tracer != nil {
		r.client.AddHook(redisTrace{config.Tracer})
	}
	return r, nil
}

// Trips returns how many calls were sent to Redis so far.
func (r *Redis) Trips() uint64 { return r.trips.Load() }

// Away reports whether Redis counts as away: calls fail at once, but for those
// that probe.
func (r *Redis) Away() bool { return r.breaker.State() != gobreaker.StateClosed }

// Get implements Store.
func (r *Redis) Get(ctx context.Context, keys ...string) ([]Entry, error) {
	if err := checkKeys(keys); err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, r.usable(ctx)
	}
	groups := r.groups(keys)
	entries := make([]Entry, len(keys))
	err := r.do(ctx, func(ctx context.Context) error {
		err := r.read(ctx, r.scripts.get.byHash, groups, entries)
		if redis.HasErrorPrefix(err, "NOSCRIPT") {
			err = r.read(ctx, r.scripts.get.whole, groups, entries)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return entries, nil
}

// redisGroup are keys that one script may read.
type redisGroup struct {
	names  []string
	places []int // of their entries
}

// groups are all keys in one, but in a Cluster those of each hash tag, because
// they may be on different servers.
func (r *Redis) groups(keys []string) []redisGroup {
	var groups []redisGroup
	byTag := make(map[string]int)
	for place, key := range keys {
		tag := ""
		if r.config.Cluster {
			tag = redisTag(key)
		}
		index, known := byTag[tag]
		if !known {
			index = len(groups)
			byTag[tag] = index
			groups = append(groups, redisGroup{})
		}
		group := &groups[index]
		group.names = append(group.names, r.config.Prefix+key)
		group.places = append(group.places, place)
	}
	return groups
}

// redisTag is the part of a key that decides on which server of a Cluster it
// is: what the first braces hold, or else all of it.
func redisTag(key string) string {
	if _, rest, open := strings.Cut(key, "{"); open {
		if tag, _, closed := strings.Cut(rest, "}"); closed && tag != "" {
			return tag
		}
	}
	return key
}

// read reads the groups in one trip.
func (r *Redis) read(ctx context.Context, command redisCommand, groups []redisGroup, entries []Entry) error {
	commands, err := r.client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, group := range groups {
			_ = pipe.Process(ctx, command(ctx, group.names))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, command := range commands {
		answer, err := command.(*redis.Cmd).Slice() //nolint:forcetypeassert // what command makes
		if err != nil || len(answer) != 2*len(groups[i].places) {
			return errRedisAnswer
		}
		for j, place := range groups[i].places {
			text, _ := answer[2*j].(string) // nil: there is none
			left, _ := answer[2*j+1].(int64)
			entries[place] = redisEntry(text, left)
		}
	}
	return nil
}

// Acquire implements Store.
func (r *Redis) Acquire(ctx context.Context, claim Claim) (Lease, bool, error) {
	if err := claim.check(); err != nil {
		return Lease{}, false, err
	}
	if _, err := raised(0, claim.Floor, 1); err != nil {
		return Lease{}, false, err
	}
	fence, err := r.number(ctx, r.scripts.acquire, []string{claim.Key, claim.Counter},
		claim.Owner, redisMillis(claim.TTL), claim.Floor)
	if err != nil || fence == 0 {
		return Lease{}, false, err
	}
	return Lease{Key: claim.Key, Owner: claim.Owner, Fence: fence}, true, nil
}

// Renew implements Store.
func (r *Redis) Renew(ctx context.Context, lease Lease, ttl time.Duration) (bool, error) {
	if err := checkTTL(ttl); err != nil {
		return false, err
	}
	held, err := r.number(ctx, r.scripts.renew, []string{lease.Key}, lease.Owner, redisMillis(ttl))
	return held != 0, err
}

// Raise implements Store.
func (r *Redis) Raise(ctx context.Context, key string, floor, by uint64) (uint64, error) {
	if err := checkKey(key); err != nil {
		return 0, err
	}
	if _, err := raised(0, floor, by); err != nil {
		return 0, err
	}
	return r.number(ctx, r.scripts.raise, []string{key}, floor, by, r.channel())
}

// number runs a script that answers a number, or -1 where it would be above
// MaxNumber.
func (r *Redis) number(ctx context.Context, script redisScript, keys []string, args ...any) (uint64, error) {
	var answer int64
	err := r.do(ctx, func(ctx context.Context) (err error) {
		answer, err = r.run(ctx, script, keys, args...).Int64()
		return err
	})
	if err != nil {
		return 0, err
	}
	if answer < 0 {
		return raised(MaxNumber, 0, 1)
	}
	return uint64(answer), nil
}

// Apply implements Store.
func (r *Redis) Apply(ctx context.Context, change Change) ([]bool, error) {
	if err := change.check(); err != nil {
		return nil, err
	}
	keys := make([]string, 0, MaxPuts+1)
	args := []any{r.channel()}
	for _, put := range change.Puts {
		keys = append(keys, put.Key)
		args = append(args, put.Number, redisMillis(put.TTL), redisValue(put))
	}
	if change.Release.Key != "" {
		keys = append(keys, change.Release.Key)
		args = append(args, change.Release.Owner)
	}
	if len(keys) == 0 {
		return nil, r.usable(ctx)
	}
	applied := make([]bool, len(change.Puts))
	err := r.do(ctx, func(ctx context.Context) error {
		answer, err := r.run(ctx, r.scripts.apply, keys, args...).Int64Slice()
		if err == nil && len(answer) != len(applied) {
			return errRedisAnswer
		}
		for i, one := range answer {
			applied[i] = one == 1
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return applied, nil
}

// Close implements Store.
func (r *Redis) Close() error {
	r.mu.Lock()
	first := r.ctx.Err() == nil
	r.cancel()
	for events, forget := range r.subscribers {
		forget()
		close(events)
	}
	clear(r.subscribers)
	r.mu.Unlock()
	r.listener.Wait()
	if first {
		_ = r.client.Close() // it fails where a connection was broken already
	}
	return nil
}

func (r *Redis) names(keys []string) []string {
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = r.config.Prefix + key
	}
	return names
}

// run runs a script that writes.
func (r *Redis) run(ctx context.Context, script redisScript, keys []string, args ...any) *redis.Cmd {
	names := r.names(keys)
	command := script.byHash(ctx, names, args...)
	err := r.client.Process(ctx, redisOnce{command})
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		command = script.whole(ctx, names, args...)
		_ = r.client.Process(ctx, redisOnce{command}) // it keeps its error
	}
	return command
}

// usable reports why a call must not begin.
func (r *Redis) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.ctx.Err() != nil {
		return ErrClosed
	}
	return nil
}

// do sends one call to Redis, if the breaker allows it and no longer than its
// limit. The call may go on for as long after ctx has ended, because a read
// from Redis heeds deadlines only; what it brings then is lost.
func (r *Redis) do(ctx context.Context, call func(ctx context.Context) error) error {
	if err := r.usable(ctx); err != nil {
		return err
	}
	report, err := r.breaker.Allow()
	if err != nil {
		return r.away()
	}
	bounded, cancel := context.WithTimeout(ctx, r.limits.call)
	r.trips.Add(1)
	answer := make(chan error, 1)
	go func() {
		defer cancel()
		answer <- call(bounded)
	}()
	select {
	case err = <-answer:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		err = r.explain(ctx, err)
	}
	report(err)
	return err
}
