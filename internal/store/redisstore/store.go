// Package redisstore is the store of a fleet, in Redis: one server, a Redis Cluster, or
// a master that sentinels watch. Only this package uses go-redis.
package redisstore

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cezzis/tokenbroker/internal/store"
)

// limits are the limits of a call.
type limits struct {
	call time.Duration // the whole call, waiting for a connection included
	wait time.Duration // for a connection
	dial time.Duration
	wire time.Duration // one read or write
	// probe is how long the health of a server is assumed to be unchanged.
	probe time.Duration
}

func defaultLimits() limits {
	const unit = time.Millisecond
	return limits{call: 500 * unit, wait: 400 * unit, dial: 500 * unit, wire: 250 * unit, probe: 2000 * unit}
}

// Store is a [store.Store] for a fleet: one server, a Redis Cluster, or a master that
// sentinels watch.
//
// Everything is a string: a value "<number>:<bytes>", a lease "L<fence>:<owner>", a
// counter "<count>". A key with any other content, written by another program, counts as
// lost: it reads as absent and is overwritten. Each change is one script, and publishes
// the changed keys on the channel "<prefix>ev".
//
// A call lasts half a second at most. After five failures in a row a server counts as
// away, and after one write that it refused as read-only or full: calls fail at once
// with ErrAway, or ErrNoWrites, until a probe in the background succeeds. In a Cluster
// this applies to each master separately, and a Get of keys of several masters returns
// those that it could read. Calls that their own context ended, that found no free
// connection, or that hit a slot being moved, do not count.
//
// No error and no log line shows a password, a key or a value.
type Store struct {
	config  Config
	limits  limits
	options *redis.UniversalOptions
	client  redis.UniversalClient
	scripts scripts
	shards  *shards
	logger  *slog.Logger
	trips   atomic.Uint64
	wake    chan struct{} // wakes the prober

	ctx       context.Context //nolint:containedctx // it ends with Close, as the listener must
	cancel    context.CancelFunc
	listener  sync.WaitGroup
	mu        sync.Mutex
	listening bool
	events    store.Broadcast
}

var _ store.Store = (*Store)(nil)

// New returns a Redis store, or an error if the configuration contradicts itself. It
// does not wait for Redis: the connection is made in the background and may come and go;
// Check reports problems.
//
// It disables the Redis client's own log, which all clients in a process share, because
// its content is not under control.
func New(config Config) (*Store, error) { return newStore(config, defaultLimits(), newScripts()) }

func newStore(config Config, limits limits, scripts scripts) (*Store, error) {
	if config.Prefix == "" {
		config.Prefix = DefaultPrefix
	}
	if err := config.check(); err != nil {
		return nil, err
	}
	redis.SetLogger(silentLog{})
	r := &Store{
		config:  config,
		limits:  limits,
		options: config.options(limits),
		scripts: scripts,
		logger:  config.Logger,
		wake:    make(chan struct{}, 1),
	}
	if r.logger == nil {
		r.logger = slog.New(slog.DiscardHandler)
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.client = connect(config, r.options)
	if config.Tracer != nil {
		r.client.AddHook(traceHook{config.Tracer})
	}
	cluster, _ := r.client.(*redis.ClusterClient)
	r.shards = newShards(cluster, config, func(name string) *shard {
		return newShard(name, limits.probe, r.logger, r.wakeProber)
	})
	r.listener.Go(r.probe)
	return r, nil
}

// hasten wakes the prober.
func (r *Store) wakeProber() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Trips returns how many calls were sent to Redis so far, without the probes.
func (r *Store) Trips() uint64 { return r.trips.Load() }

// Get implements Store.
func (r *Store) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	if err := store.CheckKeys(keys); err != nil {
		return nil, err
	}
	if err := r.usable(ctx); err != nil || len(keys) == 0 {
		return nil, err
	}
	if err := r.locate(ctx); err != nil {
		return nil, err
	}
	parts := r.parts(keys)
	entries := make([]store.Entry, len(keys))
	errs := make([]error, len(parts))
	var reads sync.WaitGroup
	for i, part := range parts[1:] {
		reads.Go(func() { errs[i+1] = r.readPart(ctx, part, entries) })
	}
	errs[0] = r.readPart(ctx, parts[0], entries)
	reads.Wait()
	return unreadOf(entries, parts, errs)
}

// unreadOf returns the result of a Get, some parts of which may have failed.
func unreadOf(entries []store.Entry, parts []part, errs []error) ([]store.Entry, error) {
	unread := &store.UnreadError{Unread: make(map[int]bool)}
	failed := 0
	for i, err := range errs {
		if err == nil {
			continue
		}
		failed++
		unread.Err = err
		for _, group := range parts[i].groups {
			for _, place := range group.places {
				unread.Unread[place] = true
			}
		}
	}
	switch failed {
	case 0:
		return entries, nil
	case len(parts):
		return nil, unread.Err
	default:
		return entries, unread
	}
}

// part has the keys of a Get that are on one server.
type part struct {
	shard  *shard
	groups []keyGroup
}

func (r *Store) parts(keys []string) []part {
	var parts []part
	for _, group := range r.groups(keys) {
		shard := r.shards.of(group.names[0])
		i := slices.IndexFunc(parts, func(p part) bool { return p.shard == shard })
		if i < 0 {
			i = len(parts)
			parts = append(parts, part{shard: shard})
		}
		parts[i].groups = append(parts[i].groups, group)
	}
	return parts
}

// readPart reads from one server, into the indexes of its keys.
func (r *Store) readPart(ctx context.Context, part part, entries []store.Entry) error {
	var read []placedEntry
	err := r.try(ctx, part.shard, false, func(ctx context.Context) (err error) {
		read, err = r.read(ctx, part.groups)
		return err
	})
	if err != nil {
		return err
	}
	for _, one := range read {
		entries[one.place] = one.entry
	}
	return nil
}

// placedEntry is an entry, and its index among the entries of a Get.
type placedEntry struct {
	place int
	entry store.Entry
}

// keyGroup has keys that one script may read.
type keyGroup struct {
	names  []string
	places []int // indexes of their entries
}

// groups returns all keys as one group, but in a Cluster one group per hash tag, because
// they may be on different servers.
func (r *Store) groups(keys []string) []keyGroup {
	var groups []keyGroup
	byTag := make(map[string]int)
	for place, key := range keys {
		tag := ""
		if r.config.Cluster {
			tag = hashTag(key)
		}
		index, ok := byTag[tag]
		if !ok {
			index = len(groups)
			byTag[tag] = index
			groups = append(groups, keyGroup{})
		}
		group := &groups[index]
		group.names = append(group.names, r.config.Prefix+key)
		group.places = append(group.places, place)
	}
	return groups
}

// hashTag is the part of a key that determines its server in a Cluster: the content of
// the first braces, else the whole key.
func hashTag(key string) string {
	if _, rest, open := strings.Cut(key, "{"); open {
		if tag, _, closed := strings.Cut(rest, "}"); closed && tag != "" {
			return tag
		}
	}
	return key
}

// read reads groups of one server. While a slot is being moved, some of its keys are
// here and some there, and no server has all keys of a script: then each is read by
// itself.
func (r *Store) read(ctx context.Context, groups []keyGroup) ([]placedEntry, error) {
	entries, err := r.readGroups(ctx, groups)
	if !redis.HasErrorPrefix(err, "TRYAGAIN") {
		return entries, err
	}
	var single []keyGroup
	for _, group := range groups {
		for i := range group.names {
			single = append(single, keyGroup{group.names[i : i+1], group.places[i : i+1]})
		}
	}
	return r.readGroups(ctx, single)
}

// readGroups reads groups in one trip, two if Redis does not know the script.
func (r *Store) readGroups(ctx context.Context, groups []keyGroup) ([]placedEntry, error) {
	entries, err := r.pipeline(ctx, r.scripts.get.byHash, groups)
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		return r.pipeline(ctx, r.scripts.get.whole, groups)
	}
	return entries, err
}

func (r *Store) pipeline(ctx context.Context, command scriptCommand, groups []keyGroup) ([]placedEntry, error) {
	commands, err := r.client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, group := range groups {
			_ = pipe.Process(ctx, command(ctx, group.names))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var entries []placedEntry
	for i, command := range commands {
		answer, err := command.(*redis.Cmd).Slice() //nolint:forcetypeassert // what command makes
		if err != nil {
			return nil, errResponse
		}
		read, err := parseEntries(answer, len(groups[i].places))
		if err != nil {
			return nil, err
		}
		for j, place := range groups[i].places {
			entries = append(entries, placedEntry{place, read[j]})
		}
	}
	return entries, nil
}

// Acquire implements Store.
func (r *Store) Acquire(ctx context.Context, claim store.Claim) (store.Claimed, error) {
	if err := claim.Check(); err != nil {
		return store.Claimed{}, err
	}
	if _, err := store.Raised(0, claim.Floor, 1); err != nil {
		return store.Claimed{}, err
	}
	keys := append([]string{claim.Key, claim.Counter}, claim.Read...)
	var fence int64
	var entries []store.Entry
	err := r.write(ctx, claim.Key, func(ctx context.Context) error {
		answer, err := r.run(ctx, r.scripts.acquire, keys, claim.Owner, millis(claim.TTL), claim.Floor).Slice()
		if err != nil {
			return err
		}
		fence, entries, err = parseClaim(answer, len(claim.Read))
		return err
	})
	switch {
	case err != nil:
		return store.Claimed{}, err
	case fence < 0:
		_, err := store.Raised(store.MaxNumber, 0, 1)
		return store.Claimed{}, err
	case fence == 0:
		return store.Claimed{Entries: entries}, nil
	}
	lease := store.Lease{Key: claim.Key, Owner: claim.Owner, Fence: uint64(fence)}
	return store.Claimed{Acquired: true, Lease: lease, Entries: entries}, nil
}

// Renew implements Store.
func (r *Store) Renew(ctx context.Context, lease store.Lease, ttl time.Duration) (bool, error) {
	if err := store.CheckTTL(ttl); err != nil {
		return false, err
	}
	held, err := r.number(ctx, r.scripts.renew, []string{lease.Key}, lease.Owner, millis(ttl))
	return held != 0, err
}

// Raise implements Store.
func (r *Store) Raise(ctx context.Context, key string, floor, by uint64) (uint64, error) {
	if err := store.CheckKey(key); err != nil {
		return 0, err
	}
	if _, err := store.Raised(0, floor, by); err != nil {
		return 0, err
	}
	return r.number(ctx, r.scripts.raise, []string{key}, floor, by, r.channel())
}

// number runs a script that returns a number, or -1 if it would be above MaxNumber.
func (r *Store) number(ctx context.Context, script script, keys []string, args ...any) (uint64, error) {
	var answer int64
	err := r.write(ctx, keys[0], func(ctx context.Context) (err error) {
		answer, err = r.run(ctx, script, keys, args...).Int64()
		return err
	})
	if err != nil {
		return 0, err
	}
	if answer < 0 {
		return store.Raised(store.MaxNumber, 0, 1)
	}
	return uint64(answer), nil
}

// Apply implements Store.
func (r *Store) Apply(ctx context.Context, change store.Change) ([]bool, error) {
	if err := change.Check(); err != nil {
		return nil, err
	}
	keys := make([]string, 0, store.MaxPuts+1)
	channel := r.channel()
	if change.Quiet {
		channel = ""
	}
	args := []any{channel}
	for _, put := range change.Puts {
		keys = append(keys, put.Key)
		args = append(args, put.Number, millis(put.TTL), encodeValue(put))
	}
	if change.Release.Key != "" {
		keys = append(keys, change.Release.Key)
		args = append(args, change.Release.Owner)
	}
	if len(keys) == 0 {
		return nil, r.usable(ctx)
	}
	applied := make([]bool, len(change.Puts))
	err := r.write(ctx, keys[0], func(ctx context.Context) error {
		answer, err := r.run(ctx, r.scripts.apply, keys, args...).Int64Slice()
		if err == nil && len(answer) != len(applied) {
			return errResponse
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
func (r *Store) Close() error {
	r.mu.Lock()
	first := r.ctx.Err() == nil
	r.cancel()
	r.mu.Unlock()
	r.events.Close()
	r.listener.Wait()
	if first {
		_ = r.client.Close() // it fails if a connection was broken already
	}
	return nil
}

func (r *Store) names(keys []string) []string {
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = r.config.Prefix + key
	}
	return names
}

// run runs a script that writes. While its slot is being moved it is retried for a
// moment, which is usually enough.
func (r *Store) run(ctx context.Context, script script, keys []string, args ...any) *redis.Cmd {
	command := r.runOnce(ctx, script, keys, args...)
	for pause := 10 * time.Millisecond; pause < 100*time.Millisecond && redis.HasErrorPrefix(command.Err(), "TRYAGAIN"); pause *= 2 {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return command
		}
		command = r.runOnce(ctx, script, keys, args...)
	}
	return command
}

func (r *Store) runOnce(ctx context.Context, script script, keys []string, args ...any) *redis.Cmd {
	names := r.names(keys)
	command := script.byHash(ctx, names, args...)
	err := r.client.Process(ctx, unrepeated{command})
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		command = script.whole(ctx, names, args...)
		_ = r.client.Process(ctx, unrepeated{command}) // the command keeps its error
	}
	return command
}

// usable returns an error if a call must not begin.
func (r *Store) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.ctx.Err() != nil {
		return store.ErrClosed
	}
	return nil
}

// locate finds the masters of a Cluster, unless they are known.
func (r *Store) locate(ctx context.Context) error {
	unknown := r.shards.unknown()
	if unknown == nil {
		return nil
	}
	return r.try(ctx, unknown, false, r.shards.locate)
}

// write makes a call that writes, to a key's server.
func (r *Store) write(ctx context.Context, key string, call func(ctx context.Context) error) error {
	if err := r.usable(ctx); err != nil {
		return err
	}
	if err := r.locate(ctx); err != nil {
		return err
	}
	return r.try(ctx, r.shards.of(r.config.Prefix+key), true, call)
}

// try makes one call of a server, unless the server is known to be down, within its
// limit. The call may continue for as long after ctx has ended, because a read from
// Redis obeys deadlines only; its result is then lost.
func (r *Store) try(ctx context.Context, shard *shard, write bool, call func(ctx context.Context) error) error {
	if err := shard.allow(write); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, r.limits.call)
	r.trips.Add(1)
	answer := make(chan error, 1)
	go func() {
		defer cancel()
		answer <- call(bounded)
	}()
	var err error
	select {
	case err = <-answer:
	case <-ctx.Done():
		err = ctx.Err()
	}
	outcome, err := r.judge(ctx, err)
	shard.note(outcome, err)
	return err
}
