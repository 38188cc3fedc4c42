package backoff

import (
	"encoding/json"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/store"
)

// lastMemory is how long replicas share the last failure of a client.
const lastMemory = 24 * time.Hour

// Last is the last failed fetch of a client on any replica. It is for operators and
// delays no fetch. It is immutable.
type Last struct {
	Class   idp.Class
	Version string // of the secret
	Message string
	At      time.Time // by the clock of the replica that failed
	// Fence is that of the failed fetch or, if resolved, of a later success.
	Fence    uint64
	Resolved bool
}

type storedLast struct {
	Form     int       `json:"v"`
	Class    idp.Class `json:"class"`
	Version  string    `json:"version"`
	Message  string    `json:"message"`
	At       time.Time `json:"at"`
	Resolved bool      `json:"resolved,omitempty"`
}

// Put returns the change that shares the failure with other replicas.
func (l *Last) Put(key string) store.Put {
	value, err := json.Marshal(storedLast{Form, l.Class, l.Version, l.Message, l.At, l.Resolved})
	if err != nil {
		panic("backoff: strings and times that JSON cannot encode")
	}
	return store.Put{Key: key, Number: l.Fence, Value: value, TTL: lastMemory}
}

// LastSlot holds the last failure of a client; nil: no failure is known. The zero value
// is empty. It is safe for concurrent use.
type LastSlot struct{ atomic.Pointer[Last] }

// Keep stores next, unless the slot has a newer failure by fence.
func (s *LastSlot) Keep(next *Last) {
	for {
		before := s.Load()
		newer := before == nil || next.Fence > before.Fence || next.Fence == before.Fence && (next.Resolved || !before.Resolved)
		if !newer || s.CompareAndSwap(before, next) {
			return
		}
	}
}

// Resolve records that a fetch with this fence succeeded after the failure. It returns the
// resolved failure, or nil if there was nothing to resolve.
func (s *LastSlot) Resolve(fence uint64) *Last {
	before := s.Load()
	if before == nil || before.Resolved || before.Fence > fence {
		return nil
	}
	resolved := *before
	resolved.Fence, resolved.Resolved = fence, true
	s.Keep(&resolved)
	return &resolved
}

// AdoptStored keeps a failure from the store.
func (s *LastSlot) AdoptStored(entry store.Entry) {
	var l storedLast
	if len(entry.Value) == 0 || json.Unmarshal(entry.Value, &l) != nil || l.Form != Form {
		return
	}
	s.Keep(&Last{Class: l.Class, Version: l.Version, Message: l.Message, At: l.At, Fence: entry.Number, Resolved: l.Resolved})
}
