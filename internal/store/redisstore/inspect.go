package redisstore

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cezzis/tokenbroker/internal/store/redisinfo"
)

// Inspection is what the servers of Redis report about themselves.
type Inspection struct {
	Servers  []redisinfo.Server
	Settings []redisinfo.Setting
}

// Inspect reads the versions, the memory and the settings of all servers. The error is
// ErrNoInfo if the user may not run INFO.
func (r *Store) Inspect(ctx context.Context) (all Inspection, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err = r.eachInfo(ctx, func(server *redisinfo.Server) {
		all.Servers = append(all.Servers, *server)
		for _, setting := range server.Settings(r.config.KeepsSecrets) {
			if !slices.Contains(all.Settings, setting) {
				all.Settings = append(all.Settings, setting)
			}
		}
	})
	return all, err
}

// ErrNoTime is the error of Clocks for a user who may not run TIME.
var ErrNoTime = errors.New("the user of Redis may not run TIME")

// Clocks returns how far the clock that now reads is ahead of that of each server, by its
// name. The error is ErrNoTime if the user may not run TIME.
func (r *Store) Clocks(ctx context.Context, now func() time.Time) (ahead map[string]time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	ahead = map[string]time.Duration{}
	err = r.eachServer(ctx, func(name string, client redis.Cmdable) error {
		before := now()
		theirs, err := client.Time(ctx).Result()
		if redis.IsPermissionError(err) {
			return ErrNoTime
		}
		if err != nil {
			return &awayError{describe(err)}
		}
		after := now()
		ahead[name] = before.Add(after.Sub(before) / 2).Sub(theirs)
		return nil
	})
	return ahead, err
}

// NeedlessRights returns rights of the user that the broker does not need, and by which a
// stolen password does more harm. It tries a command of administrators and a key beyond the
// prefix; both only read.
func (r *Store) NeedlessRights(ctx context.Context) (rights []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if err := r.locate(ctx); err != nil {
		return nil, &awayError{err.Error()}
	}
	for _, try := range []struct {
		right   string
		command *redis.Cmd
	}{
		{"run commands of administrators, such as CONFIG", redis.NewCmd(ctx, "config", "get", "maxmemory")},
		{"read keys that do not begin with " + r.config.Prefix, redis.NewCmd(ctx, "pttl", "other:"+r.config.Prefix+"check")},
	} {
		switch err := r.client.Process(ctx, try.command); {
		case err == nil:
			rights = append(rights, try.right)
		case !redis.IsPermissionError(err) && try.command.Args()[0] == "pttl":
			return nil, &awayError{describe(err)}
		}
	}
	return rights, nil
}

// MinimumACL returns the line of an ACL with the rights that the broker needs, and with
// those by which it and Inspect and Clocks see how Redis keeps its data.
func (r *Store) MinimumACL() string { return r.acl() + " " + ACLConfirm + " +time" }

// eachServer calls visit with a client of each server that has keys.
func (r *Store) eachServer(ctx context.Context, visit func(name string, client redis.Cmdable) error) error {
	if err := r.locate(ctx); err != nil {
		return &awayError{err.Error()}
	}
	for _, shard := range r.shards.all() {
		client, err := r.server(ctx, shard.probeKey())
		if err != nil {
			return &awayError{describe(err)}
		}
		if err := visit(shard.name, client); err != nil {
			return err
		}
	}
	return nil
}
