package redisstore

import (
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

// When a server of Redis counts as down for reads or for writes, and when it is probed.
// Probes alone bring it back, so that callers do not wait for it.
const (
	redisFailures  = 5 // in a row: it cannot be reached. A refused write counts at once
	redisProbeSoon = 250 * time.Millisecond
	redisProbeDown = time.Second
	// redisProbeMost is the longest pause between probes of a server that refuses
	// writes.
	redisProbeMost = 5 * time.Second

	// A server at its memory limit accepts one write and refuses the next. It is up for
	// writes after redisSteady probes in a row; the number doubles each time that it was
	// up for less than redisRelapse, up to redisSteadyMost.
	redisSteady     = 2
	redisSteadyMost = 32
	redisRelapse    = time.Minute
)

// redisOutcome classifies the result of a call with regard to the server.
type redisOutcome int

const (
	redisFine    redisOutcome = iota
	redisFailed               // it could not serve the call
	redisRefused              // it responded, and refused to write
	redisNothing              // nothing: the caller gave up, or it is about one slot
)

// redisShard is the health of one server: the single one, the master that the sentinels
// name, or a master of a Cluster.
type redisShard struct {
	name   string
	logger *slog.Logger
	wake   func() // wakes the prober for an earlier probe

	mu       sync.Mutex
	key      string // a key of this server, for the probe
	due      time.Time
	failures int // in a row
	probes   int // of a server that refuses writes, since the last success
	good     int // probes in a row that could write
	steady   int // probes like that before it is up
	upSince  time.Time
	noReads  error // nil: up
	noWrites error // nil: up, if reads are
}

func newRedisShard(name string, interval time.Duration, logger *slog.Logger, wake func()) *redisShard {
	return &redisShard{name: name, logger: logger, wake: wake, steady: redisSteady, due: time.Now().Add(redisSpread(interval))}
}

// redisSpread keeps replicas from probing at the same time.
func redisSpread(d time.Duration) time.Duration { return d*3/4 + rand.N(d/4) } //nolint:gosec // no secret

// allow returns the error of a server that should not be called, else nil.
func (s *redisShard) allow(write bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.noReads == nil && write {
		return s.noWrites
	}
	return s.noReads
}

// health is the health for metrics.
func (s *redisShard) health() store.Health {
	s.mu.Lock()
	defer s.mu.Unlock()
	return store.Health{Shard: s.name, Reads: s.noReads == nil, Writes: s.noReads == nil && s.noWrites == nil}
}

// note records the outcome of a call. It can mark the server as down, but not as up.
func (s *redisShard) note(outcome redisOutcome, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch outcome {
	case redisNothing:
		return
	case redisFailed:
		s.failed(err)
		return
	case redisRefused:
		s.refused(err)
	case redisFine:
	}
	s.failures = 0
}

// probed records the outcome of a probe and plans the next one.
func (s *redisShard) probed(outcome redisOutcome, err error, interval time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if outcome == redisFailed {
		s.failed(err)
	} else if outcome != redisNothing {
		s.answered()
	}
	switch {
	case outcome == redisRefused:
		s.refused(err)
		s.good = 0
		s.probes++
	case outcome == redisFine && s.noReads == nil:
		s.wrote()
	}
	s.due = time.Now().Add(redisSpread(s.pause(interval)))
}

// pause is the time until the next probe.
func (s *redisShard) pause(interval time.Duration) time.Duration {
	switch {
	case s.noReads != nil:
		return redisProbeDown
	case s.failures > 0:
		return redisProbeSoon
	case s.noWrites != nil:
		return min(redisProbeDown<<min(s.probes, 4), redisProbeMost)
	default:
		return interval
	}
}

// failed records that the server could not serve a call.
func (s *redisShard) failed(err error) {
	s.failures++
	if s.noReads != nil || s.failures < redisFailures {
		return
	}
	s.noReads = &redisAwayError{err.Error()}
	s.logger.Warn("Redis is away: going on without it", "shard", s.name, "error", s.noReads)
	s.hurry()
}

// answered records that the server responded to a probe.
func (s *redisShard) answered() {
	s.failures = 0
	if s.noReads != nil {
		s.noReads = nil
		s.logger.Info("Redis is back", "shard", s.name)
	}
}

// refused records that the server refused a write.
func (s *redisShard) refused(err error) {
	if s.noWrites != nil {
		return
	}
	s.noWrites, s.good, s.probes = err, 0, 0
	if s.upSince.IsZero() || time.Since(s.upSince) >= redisRelapse {
		s.steady = redisSteady
	} else {
		s.steady = min(2*s.steady, redisSteadyMost)
	}
	s.logger.Warn("Redis takes no writes: each replica fetches tokens for itself, and purges, revocations and changes of secrets fail",
		"shard", s.name, "error", err)
	s.hurry()
}

// wrote records that a probe could write.
func (s *redisShard) wrote() {
	if s.noWrites == nil {
		return
	}
	s.probes = 0
	if s.good++; s.good >= s.steady {
		s.noWrites, s.upSince = nil, time.Now()
		s.logger.Info("Redis takes writes again", "shard", s.name)
	}
}

// hurry schedules an early probe of a server that was just found down.
func (s *redisShard) hurry() {
	s.due = time.Now().Add(redisSpread(redisProbeDown))
	s.wake()
}

// plan returns the key to probe with if a probe is due, else the time of the next one.
func (s *redisShard) plan(now time.Time) (key string, due time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.due.After(now) {
		return "", s.due
	}
	return s.key, s.due
}

// probeKey is a key of this server.
func (s *redisShard) probeKey() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.key
}
