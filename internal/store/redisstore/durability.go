package redisstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cezzis/tokenbroker/internal/store"
)

// Bounds of Confirm: in total, with two inspections of Redis; and of the wait for its
// replicas and its disk.
const (
	confirmTimeout = 3 * time.Second
	durableTimeout = time.Second
)

// nearlyFull is the percentage of its memory above which Check warns.
const nearlyFull = 90

// durability is a server's configuration and state of persistence, replication and
// eviction.
type durability struct {
	policy     string // maxmemory-policy
	limited    bool   // there is a maxmemory
	appendOnly bool
	replicas   int
	tellsDisk  bool // it supports WAITAOF
	evicted    int  // keys, since its start
	full       int  // percent of maxmemory

	version     string
	used, limit int64 // bytes; limit is 0 without maxmemory
}

func (k durability) evicts() bool { return strings.HasPrefix(k.policy, "allkeys-") }

// readDurability reads INFO. In a Cluster the client is that of one node.
func readDurability(ctx context.Context, client redis.Cmdable) (durability, error) {
	text, err := client.Info(ctx).Result()
	if err != nil {
		return durability{}, err
	}
	settings := make(map[string]string)
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		settings[name] = value
	}
	replicas, _ := strconv.Atoi(settings["connected_slaves"])
	evicted, _ := strconv.Atoi(settings["evicted_keys"])
	limit := settings["maxmemory"]
	usedBytes, _ := strconv.ParseInt(settings["used_memory"], 10, 64)
	limitBytes, _ := strconv.ParseInt(limit, 10, 64)
	return durability{
		version: settings["redis_version"], used: usedBytes, limit: limitBytes,
		policy:     settings["maxmemory_policy"],
		limited:    limit != "" && limit != "0",
		appendOnly: settings["aof_enabled"] == "1",
		replicas:   replicas,
		tellsDisk:  !isOlder(settings["redis_version"], 7, 2),
		evicted:    evicted,
		full:       percent(settings["used_memory"], limit),
	}, nil
}

// percent is 0 if there is no limit.
func percent(used, limit string) int {
	part, err := strconv.ParseFloat(used, 64)
	whole, err2 := strconv.ParseFloat(limit, 64)
	if err != nil || err2 != nil || whole <= 0 {
		return 0
	}
	return int(100 * part / whole)
}

// isOlder compares versions; an unreadable version is not before.
func isOlder(version string, major, minor int) bool {
	first, rest, _ := strings.Cut(version, ".")
	second, _, _ := strings.Cut(rest, ".")
	has, err := strconv.Atoi(first)
	hasMinor, err2 := strconv.Atoi(second)
	return err == nil && err2 == nil && (has < major || has == major && hasMinor < minor)
}

// Setting is a setting or a state of Redis that may lose data.
type Setting struct {
	// Fact is what was read, and Advice what to do about it.
	Fact, Advice string
	// Fatal: irreplaceable data may be lost, so the broker does not start.
	Fatal bool
}

func (s Setting) String() string { return "Redis: " + s.Fact + ": " + s.Advice }

// checkSettings warns of settings by which Redis may lose data. Irreplaceable data must
// not be evicted.
func (r *Store) checkSettings(ctx context.Context) (warnings []string, err error) {
	inspection, err := r.Inspect(ctx)
	switch {
	case errors.Is(err, ErrNoInfo):
		return []string{"Redis: its eviction and persistence could not be checked, because " + r.user() + " may not run INFO: allow it +info, or make sure that maxmemory-policy is volatile-ttl or volatile-lru"}, nil
	case err != nil:
		return []string{"Redis: its eviction and persistence could not be checked: " + err.Error()}, nil //nolint:nilerr // it is a warning
	}
	for _, setting := range inspection.Settings {
		if setting.Fatal {
			return nil, errors.New(setting.String())
		}
		warnings = append(warnings, setting.String())
	}
	return warnings, nil
}

// server returns the client of a key's server.
func (r *Store) server(ctx context.Context, key string) (redis.Cmdable, error) {
	if cluster, is := r.client.(*redis.ClusterClient); is {
		return cluster.MasterForKey(ctx, r.config.Prefix+key)
	}
	return r.client, nil
}

// settings returns the settings that may lose data.
func (k durability) settings(keepsSecrets bool) (all []Setting) {
	warn := func(fact, advice string) { all = append(all, Setting{Fact: fact, Advice: advice}) }
	switch {
	case k.evicts() && keepsSecrets:
		all = append(all, Setting{
			Fact:   "maxmemory-policy " + k.policy + " may evict the secrets of managed clients, which are nowhere else",
			Advice: "set it to volatile-ttl or volatile-lru, or keep the secrets in files", Fatal: true,
		})
	case k.evicts():
		warn("maxmemory-policy "+k.policy+" may evict data that must stay, such as the epochs that purges have raised", "set it to volatile-ttl or volatile-lru")
	case k.policy == "noeviction" && k.limited:
		warn("with maxmemory-policy noeviction it refuses all writes once it is full", "set it to volatile-ttl or volatile-lru")
	}
	if k.full >= nearlyFull {
		warn(fmt.Sprintf("%d %% of its maxmemory is used", k.full), "raise it, or tokens and leases are evicted and fetched more than once")
	}
	if k.evicted > 0 {
		warn(fmt.Sprintf("it has evicted %d keys since its start", k.evicted), "raise maxmemory, or tokens are fetched more often than their lifetimes require")
	}
	switch {
	case k.appendOnly:
	case keepsSecrets:
		warn("IT KEEPS NO APPEND-ONLY FILE, and the secrets of managed clients are nowhere else", "if it restarts while no broker runs they are lost; set appendonly yes, and keep what `broker secret export` writes")
	default:
		warn("it keeps no append-only file, so a restart may lose tokens and epochs", "tokens are fetched again, and epochs are restored by the replicas that hold them; set appendonly yes to keep both")
	}
	return all
}

// Keeping is how Redis keeps its data: each answer is that of its worst server.
type Keeping struct {
	// Durable: it has an append-only file.
	Durable bool
	// Evicts: it may evict data that must stay.
	Evicts bool
}

// ErrNoInfo is the error of Keeping and Inspect for a user who may not run INFO.
var ErrNoInfo = errors.New("the user of Redis may not run INFO")

// Keeping reads how Redis keeps its data, with one INFO of each server.
func (r *Store) Keeping(ctx context.Context) (Keeping, error) {
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	if err := r.usable(ctx); err != nil {
		return Keeping{}, err
	}
	all := Keeping{Durable: true}
	err := r.eachDurability(ctx, func(_ string, one durability) {
		all.Durable, all.Evicts = all.Durable && one.appendOnly, all.Evicts || one.evicts()
	})
	if err != nil {
		return Keeping{}, err
	}
	return all, nil
}

// eachDurability reads how each server keeps its data. The error is ErrNoInfo if the user
// may not run INFO.
func (r *Store) eachDurability(ctx context.Context, visit func(name string, one durability)) error {
	return r.eachServer(ctx, func(name string, client redis.Cmdable) error {
		one, err := readDurability(ctx, client)
		if redis.IsPermissionError(err) {
			return ErrNoInfo
		}
		if err != nil {
			return &awayError{describe(err)}
		}
		visit(name, one)
		return nil
	})
}

// Confirm implements Store. Replicas and the append-only file receive writes in order:
// if they have a write made now, they have all writes before it.
func (r *Store) Confirm(ctx context.Context, key string) store.Safety {
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	safety, err := r.confirm(ctx, key)
	switch {
	case redis.IsPermissionError(err):
		safety.Doubt = "it is unknown how safely Redis keeps it, because " + r.user() + " may not run INFO or WAIT: allow it " + ACLConfirm
	case err != nil:
		safety.Doubt = "it is unknown how safely Redis keeps it: " + describe(err)
	}
	return safety
}

func (r *Store) confirm(ctx context.Context, key string) (store.Safety, error) {
	if err := r.usable(ctx); err != nil {
		return store.Safety{}, err
	}
	client, ok := r.client.(*redis.Client)
	if cluster, is := r.client.(*redis.ClusterClient); is {
		node, err := cluster.MasterForKey(ctx, r.config.Prefix+key)
		if err != nil {
			return store.Safety{}, err
		}
		client, ok = node, true
	}
	if !ok {
		return store.Safety{}, errResponse
	}
	conn := client.Conn() // WAIT covers only the writes of its own connection
	defer func() { _ = conn.Close() }()
	keeping, err := readDurability(ctx, conn)
	if err != nil {
		return store.Safety{}, err
	}
	mark := redis.NewStatusCmd(ctx, "set", r.config.Prefix+"{"+hashTag(key)+"}confirm", "1", "px", "1000")
	if err := conn.Process(ctx, mark); err != nil {
		return store.Safety{}, err
	}
	return waitDurable(ctx, conn, keeping)
}

// waitDurable waits until the replicas and the disk have the writes of conn.
func waitDurable(ctx context.Context, conn *redis.Conn, keeping durability) (safety store.Safety, err error) {
	if keeping.replicas > 0 {
		got, err := conn.Wait(ctx, keeping.replicas, durableTimeout).Result()
		if err != nil {
			return safety, err
		}
		safety.Replicas = int(got)
	}
	if keeping.appendOnly && keeping.tellsDisk {
		got, err := conn.WaitAOF(ctx, 1, 0, durableTimeout).Result()
		if err != nil {
			return safety, err
		}
		safety.Disk = len(got) > 0 && got[0] > 0
	}
	safety.Doubt = keeping.doubt(safety)
	return safety, nil
}

func (k durability) doubt(got store.Safety) string {
	switch {
	case k.evicts():
		return "Redis may evict it, because its maxmemory-policy is " + k.policy + ": set it to volatile-ttl or volatile-lru"
	case got.Disk:
		return ""
	case k.appendOnly && !k.tellsDisk:
		return "Redis writes it to its append-only file, but before version 7.2 does not report when it is on disk"
	case k.appendOnly:
		return "Redis had not written it to its append-only file within a second"
	case got.Replicas > 0:
		return "Redis keeps no append-only file: if all its servers restart while no broker runs, it is lost; set appendonly yes"
	default:
		return "Redis keeps no append-only file and has no replica: if it restarts while no broker runs, it is lost; set appendonly yes"
	}
}
