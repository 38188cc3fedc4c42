package redisstore

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

// When a server of Redis counts as down for reads or for writes, and when it is probed.
// Probes alone bring it back, so that callers do not wait for it.
const (
	maxFailures = 5 // in a row: it cannot be reached. A refused write counts at once
	probeSoon   = 250 * time.Millisecond
	probeDown   = time.Second
	// probeMax is the longest pause between probes of a server that refuses
	// writes.
	probeMax = 5 * time.Second

	// A server at its memory limit accepts one write and refuses the next. It is up for
	// writes after steadyMin probes in a row; the number doubles each time that it was
	// up for less than relapse, up to steadyMax.
	steadyMin = 2
	steadyMax = 32
	relapse   = time.Minute
)

// outcome classifies the result of a call with regard to the server.
type outcome int

const (
	outcomeOK      outcome = iota
	outcomeFailed          // it could not serve the call
	outcomeRefused         // it responded, and refused to write
	outcomeIgnored         // nothing: the caller gave up, or it is about one slot
)

// shard is the health of one server: the single one, the master that the sentinels
// name, or a master of a Cluster.
type shard struct {
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

func newShard(name string, interval time.Duration, logger *slog.Logger, wake func()) *shard {
	return &shard{name: name, logger: logger, wake: wake, steady: steadyMin, due: time.Now().Add(spread(interval))}
}

// spread keeps replicas from probing at the same time.
func spread(d time.Duration) time.Duration { return d*3/4 + rand.N(d/4) } //nolint:gosec // no secret

// allow returns the error of a server that should not be called, else nil.
func (s *shard) allow(write bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.noReads == nil && write {
		return s.noWrites
	}
	return s.noReads
}

// health is the health for metrics and the status.
func (s *shard) health() store.Health {
	s.mu.Lock()
	defer s.mu.Unlock()
	health := store.Health{Shard: s.name, Reads: s.noReads == nil, Writes: s.noReads == nil && s.noWrites == nil}
	if refused, ok := errors.AsType[*noWritesError](s.noWrites); ok && health.Reads {
		health.Refusal = refused.refusal
	}
	return health
}

// note records the outcome of a call. It can mark the server as down, but not as up.
func (s *shard) note(outcome outcome, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch outcome {
	case outcomeIgnored:
		return
	case outcomeFailed:
		s.failed(err)
		return
	case outcomeRefused:
		s.refused(err)
	case outcomeOK:
	}
	s.failures = 0
}

// probed records the outcome of a probe and plans the next one.
func (s *shard) noteProbe(outcome outcome, err error, interval time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if outcome == outcomeFailed {
		s.failed(err)
	} else if outcome != outcomeIgnored {
		s.answered()
	}
	switch {
	case outcome == outcomeRefused:
		s.refused(err)
		s.good = 0
		s.probes++
	case outcome == outcomeOK && s.noReads == nil:
		s.wrote()
	}
	s.due = time.Now().Add(spread(s.pause(interval)))
}

// pause is the time until the next probe.
func (s *shard) pause(interval time.Duration) time.Duration {
	switch {
	case s.noReads != nil:
		return probeDown
	case s.failures > 0:
		return probeSoon
	case s.noWrites != nil:
		return min(probeDown<<min(s.probes, 4), probeMax)
	default:
		return interval
	}
}

// failed records that the server could not serve a call.
func (s *shard) failed(err error) {
	s.failures++
	if s.noReads != nil || s.failures < maxFailures {
		return
	}
	s.noReads = &awayError{err.Error()}
	s.logger.Warn("Redis is away: continuing without it", "shard", s.name, "error", s.noReads)
	s.hurry()
}

// answered records that the server responded to a probe.
func (s *shard) answered() {
	s.failures = 0
	if s.noReads != nil {
		s.noReads = nil
		s.logger.Info("Redis is back", "shard", s.name)
	}
}

// refused records that the server refused a write.
func (s *shard) refused(err error) {
	if s.noWrites != nil {
		return
	}
	s.noWrites, s.good, s.probes = err, 0, 0
	if s.upSince.IsZero() || time.Since(s.upSince) >= relapse {
		s.steady = steadyMin
	} else {
		s.steady = min(2*s.steady, steadyMax)
	}
	s.logger.Warn("Redis takes no writes: each replica fetches tokens for itself, and purges, revocations and changes of secrets fail",
		"shard", s.name, "error", err)
	s.hurry()
}

// wrote records that a probe could write.
func (s *shard) wrote() {
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
func (s *shard) hurry() {
	s.due = time.Now().Add(spread(probeDown))
	s.wake()
}

// plan returns the key to probe with if a probe is due, else the time of the next one.
func (s *shard) plan(now time.Time) (key string, due time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.due.After(now) {
		return "", s.due
	}
	return s.key, s.due
}

// probeKey is a key of this server.
func (s *shard) probeKey() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.key
}
