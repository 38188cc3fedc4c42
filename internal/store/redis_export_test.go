package store

import "time"

// RedisEntry gives the fuzz test what a key holds, decoded.
func RedisEntry(text string, left int64) Entry { return redisEntry(text, left) }

// NewPatientRedis is NewRedis for tests that are not about time. On a machine
// that is busy with other tests an answer may take longer than a call may.
func NewPatientRedis(config RedisConfig) (*Redis, error) {
	const unit = time.Second
	return newRedis(config, redisLimits{call: 4 * unit, wait: 3 * unit, dial: 2 * unit, wire: 2 * unit})
}
