package redisstore

import (
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

// Entry gives the fuzz test what a key holds, decoded.
func Entry(text string, left int64) store.Entry { return parseEntry(text, left) }

// NewPatient is New for tests that are not about time. On a machine
// that is busy with other tests an answer may take longer than a call may.
func NewPatient(config Config) (*Store, error) {
	const unit = time.Second
	scripts := newScripts()
	for name, s := range scripts.byName() {
		*s = newScript(withoutGuard(name, s.source))
	}
	return newStore(config, limits{call: 4 * unit, wait: 3 * unit, dial: 2 * unit, wire: 2 * unit, probe: 2 * time.Minute}, scripts)
}

func (s *scripts) byName() map[string]*script {
	return map[string]*script{"get": &s.get, "acquire": &s.acquire, "renew": &s.renew, "apply": &s.apply, "raise": &s.raise}
}

// Scripts returns the sources of the scripts by name.
func Scripts() map[string]string {
	all, sources := newScripts(), map[string]string{}
	for name, s := range all.byName() {
		sources[name] = s.source
	}
	return sources
}

// GuardVariable names the environment variable with the guard that NewPatient leaves out of
// the scripts: a [Guard] in JSON.
const GuardVariable = "REDISSTORE_WITHOUT_GUARD"

// Guard is a part of the scripts, and the text that takes its place when it is removed.
type Guard struct {
	Script  string // the name of the script; empty: every script that has the text
	Text    string
	Instead string
}

func withoutGuard(name, source string) string {
	var guard Guard
	text := os.Getenv(GuardVariable)
	if text == "" {
		return source
	}
	if err := json.Unmarshal([]byte(text), &guard); err != nil {
		panic(err)
	}
	if guard.Script != "" && guard.Script != name {
		return source
	}
	return strings.Replace(source, guard.Text, guard.Instead, 1)
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
