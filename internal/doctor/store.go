package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/redisinfo"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
)

// store adds the checks of the store. Those of Redis are independent, so that a missing
// right does not hide a setting.
func (d *doctor) store() {
	redis, at := d.probe.Redis(), []any{"store", "redis"}
	if redis != nil {
		d.add("store: access to Redis", at, func(ctx context.Context, r *result) { r.redisAccess(ctx, redis) })
		d.add("store: rights in Redis", at, func(ctx context.Context, r *result) { r.redisRights(ctx, redis) })
		d.add("store: settings of Redis", at, func(ctx context.Context, r *result) { r.redisSettings(ctx, redis) })
		d.add("store: clock of Redis", at, func(ctx context.Context, r *result) { r.redisClock(ctx, redis) })
	}
	if !d.probe.HasRing() {
		return
	}
	d.add("store: sealing keys", []any{"store", "sealing_keys"}, func(ctx context.Context, r *result) {
		switch err := r.probe.Ring(ctx); {
		case err != nil && !errors.Is(err, sealed.ErrAnotherRing): // the store has checks of its own
			r.report(Note, "store-unknown", "whether they are those of the store could not be checked: "+err.Error(), "Try again when the store responds.")
		default:
			r.fail(fleet.RingDiffers, err, "Give this replica the same file of sealing keys as the others.", "the keys fit the store")
		}
	})
}

func (r *result) redisAccess(ctx context.Context, redis *redisstore.Store) {
	err := redis.CheckAccess(ctx)
	id, action := "store-unusable", "Correct store.redis, or the user in Redis: the broker does not start until then."
	if errors.Is(err, store.ErrAway) {
		id, action = fleet.StoreAway, "Check that Redis runs, and the network on the way to it."
	}
	r.fail(id, err, action, redis.User()+" has the rights that are needed")
}

func (r *result) redisRights(ctx context.Context, redis *redisstore.Store) {
	rights, err := redis.NeedlessRights(ctx)
	switch {
	case err != nil:
		r.unchecked(err, "whether "+redis.User()+" has more rights than are needed")
	case len(rights) > 0:
		r.report(Note, "store-rights-wide", fmt.Sprintf("%s has more rights than the broker needs: it may %s", redis.User(), strings.Join(rights, ", and ")),
			"Give the broker a user of its own: "+redis.MinimumACL())
	default:
		r.pass(redis.User() + " is limited to its keys and commands")
	}
}

// unchecked notes that something in Redis could not be checked. The cause has a check of
// its own.
func (r *result) unchecked(err error, what string) {
	r.report(Note, "store-unknown", what+" could not be checked: "+err.Error(), "Try again when Redis responds.")
}

func (r *result) redisSettings(ctx context.Context, redis *redisstore.Store) {
	inspection, err := redis.Inspect(ctx)
	switch {
	case errors.Is(err, redisstore.ErrNoInfo):
		r.report(Note, "store-unknown", "its persistence, eviction and memory could not be checked, because "+redis.User()+" may not run INFO",
			"Allow it +info, or make sure that maxmemory-policy is volatile-ttl or volatile-lru, and that appendonly is yes.")
		return
	case err != nil:
		r.unchecked(err, "its persistence, eviction and memory")
		return
	}
	for i := range inspection.Servers {
		r.pass(describe(&inspection.Servers[i]))
	}
	for _, setting := range inspection.Settings {
		severity, id := Warning, "store-setting"
		if setting.Fatal {
			severity, id = Error, fleet.StoreEvicts
		}
		r.report(severity, id, setting.Fact, sentence(setting.Advice))
	}
}

// describe returns the facts about a server of Redis.
func describe(s *redisinfo.Server) string {
	memory := fmt.Sprintf("%d MiB used, no maxmemory", s.Used>>20)
	if s.Limit > 0 {
		memory = fmt.Sprintf("%d of %d MiB used", s.Used>>20, s.Limit>>20)
	}
	persistence := "no append-only file"
	if s.AppendOnly {
		persistence = "append-only file"
	}
	return fmt.Sprintf("%s: Redis %s, %s, %s, %s, %d replicas", s.Name, s.Version, memory, s.Policy, persistence, s.Replicas)
}

func (r *result) redisClock(ctx context.Context, redis *redisstore.Store) {
	clocks, err := redis.Clocks(ctx, r.Now)
	switch {
	case errors.Is(err, redisstore.ErrNoTime):
		r.report(Note, "clock-unknown", "its clock could not be compared, because "+redis.User()+" may not run TIME", "Allow it +time, or make sure that NTP runs on its host.")
	case err != nil:
		r.unchecked(err, "its clock")
	}
	for _, server := range slices.Sorted(maps.Keys(clocks)) {
		r.clock("Redis at "+server, clocks[server], time.Second/10)
	}
}
