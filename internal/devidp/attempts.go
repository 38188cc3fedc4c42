package devidp

import (
	"crypto/sha256"
	"sync"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// attempts counts the requests to the token endpoint by client and secret.
type attempts struct {
	mu     sync.Mutex
	counts map[attemptKey]*attemptCount
}

type attemptKey struct {
	clientID string
	secret   [sha256.Size]byte
}

type attemptCount struct{ good, refused int }

// maxAttempts bounds the counted secrets, for servers that run for a long time.
const maxAttempts = 1 << 12

func (a *attempts) add(f form, good bool) {
	if f.secret.IsZero() {
		return
	}
	key := attemptKey{f.clientID, f.secret.SHA256()}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.counts == nil {
		a.counts = make(map[attemptKey]*attemptCount)
	}
	if a.counts[key] == nil {
		if len(a.counts) == maxAttempts {
			return
		}
		a.counts[key] = &attemptCount{}
	}
	if good {
		a.counts[key].good++
	} else {
		a.counts[key].refused++
	}
}

// Attempts returns how often the token endpoint accepted and refused a client with a
// secret. It does not count requests that controls answered.
func (s *Server) Attempts(clientID string, secret redact.String) (good, refused int) {
	s.attempts.mu.Lock()
	defer s.attempts.mu.Unlock()
	if count := s.attempts.counts[attemptKey{clientID, secret.SHA256()}]; count != nil {
		return count.good, count.refused
	}
	return 0, 0
}
