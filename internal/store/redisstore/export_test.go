package redisstore

import (
	"log/slog"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

// Entry gives the fuzz test what a key holds, decoded.
func Entry(text string, left int64) store.Entry { return parseEntry(text, left) }

// NewPatient is New for tests that are not about time. On a machine
// that is busy with other tests an answer may take longer than a call may.
func NewPatient(config Config) (*Store, error) {
	const unit = time.Second
	return newStore(config, limits{call: 4 * unit, wait: 3 * unit, dial: 2 * unit, wire: 2 * unit, probe: 2 * time.Minute})
}

// Shard is the health of a server, for tests without one.
type Shard struct{ shard *shard }

// NewShard returns the health of a server that is up.
func NewShard(logger *slog.Logger) Shard {
	return Shard{newShard("server", time.Second, logger, func() {})}
}

// Probe takes the outcome of a probe: a write was refused, or not.
func (s Shard) Probe(refused bool) {
	if refused {
		s.shard.noteProbe(outcomeRefused, &noWritesError{store.OutOfMemory, "full"}, time.Second)
	} else {
		s.shard.noteProbe(outcomeOK, nil, time.Second)
	}
}
