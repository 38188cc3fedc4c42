package store

import (
	"log/slog"
	"time"
)

// RedisEntry gives the fuzz test what a key holds, decoded.
func RedisEntry(text string, left int64) Entry { return redisEntry(text, left) }

// NewPatientRedis is NewRedis for tests that are not about time. On a machine
// that is busy with other tests an answer may take longer than a call may.
func NewPatientRedis(config RedisConfig) (*Redis, error) {
	const unit = time.Second
	return newRedis(config, redisLimits{call: 4 * unit, wait: 3 * unit, dial: 2 * unit, wire: 2 * unit, probe: 2 * time.Minute})
}

// RedisShard is the health of a server, for tests without one.
type RedisShard struct{ shard *redisShard }

// NewRedisShard returns the health of a server that is up.
func NewRedisShard(logger *slog.Logger) RedisShard {
	return RedisShard{newRedisShard("server", time.Second, logger, func() {})}
}

// Probe takes the outcome of a probe: a write was refused, or not.
func (s RedisShard) Probe(refused bool) {
	if refused {
		s.shard.probed(redisRefused, &redisNoWritesError{"full"}, time.Second)
	} else {
		s.shard.probed(redisFine, nil, time.Second)
	}
}
