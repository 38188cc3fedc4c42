package redisstore

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/redisinfo"
)

// Bounds of Confirm: in total, with two inspections of Redis; and of the wait for its
// replicas and its disk.
const (
	confirmTimeout = 3 * time.Second
	durableTimeout = time.Second
)

// readInfo reads INFO. In a Cluster the client is that of one node.
func readInfo(ctx context.Context, client redis.Cmdable) (redisinfo.Server, error) {
	text, err := client.Info(ctx).Result()
	return redisinfo.Parse(text), err
}

// checkSettings warns of settings by which Redis may lose data. Irreplaceable data must
// not be evicted.
func (r *Store) checkSettings(ctx context.Context) (warnings []string, err error) {
	inspection, err := r.Inspect(ctx)
	switch {
	case errors.Is(err, ErrNoInfo):
		return []string{"Redis: its eviction and persistence could not be checked, because " + r.User() + " may not run INFO: allow it +info, or make sure that maxmemory-policy is volatile-ttl or volatile-lru"}, nil
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

// Keeping is how Redis keeps its data: each answer is that of its worst server.
type Keeping struct {
	Durable bool // it has an append-only file
	Evicts  bool // it may evict data that must stay
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
	err := r.eachInfo(ctx, func(one *redisinfo.Server) {
		all.Durable, all.Evicts = all.Durable && one.AppendOnly, all.Evicts || one.Evicts()
	})
	if err != nil {
		return Keeping{}, err
	}
	return all, nil
}

// eachInfo reads INFO of each server. The error is ErrNoInfo if the user
// may not run INFO.
func (r *Store) eachInfo(ctx context.Context, visit func(one *redisinfo.Server)) error {
	return r.eachServer(ctx, func(name string, client redis.Cmdable) error {
		one, err := readInfo(ctx, client)
		switch {
		case redis.IsPermissionError(err):
			return ErrNoInfo
		case err != nil:
			return &awayError{describe(err)}
		}
		one.Name = name
		visit(&one)
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
		safety.Doubt = "it is unknown how safely Redis keeps it, because " + r.User() + " may not run INFO or WAIT: allow it " + ACLConfirm
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
	server, err := readInfo(ctx, conn)
	if err != nil {
		return store.Safety{}, err
	}
	mark := redis.NewStatusCmd(ctx, "set", r.config.Prefix+"{"+hashTag(key)+"}confirm", "1", "px", "1000")
	if err := conn.Process(ctx, mark); err != nil {
		return store.Safety{}, err
	}
	return waitDurable(ctx, conn, &server)
}

// waitDurable waits until the replicas and the disk have the writes of conn.
func waitDurable(ctx context.Context, conn *redis.Conn, server *redisinfo.Server) (safety store.Safety, err error) {
	if server.Replicas > 0 {
		got, err := conn.Wait(ctx, server.Replicas, durableTimeout).Result()
		if err != nil {
			return safety, err
		}
		safety.Replicas = int(got)
	}
	if server.AppendOnly && server.ReportsDisk() {
		got, err := conn.WaitAOF(ctx, 1, 0, durableTimeout).Result()
		if err != nil {
			return safety, err
		}
		safety.Disk = len(got) > 0 && got[0] > 0
	}
	safety.Doubt = server.Doubt(safety)
	return safety, nil
}
