package devidp

import (
	"crypto/sha256"
	"sync"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// attempts counts with which secrets clients came to the token endpoint.
type attempts struct {
	mu     sync.Mutex
	counts map[attemptKey]*attemptCount
}

type attemptKey struct {
	clientID string
	secret   [sha256.Size]byte
}

type attemptCount struct{ good, refused int }

// maxAttempts bounds how many secrets are told apart, so that a server may run for
// long.
const maxAttempts = 1 << 12

func (a *attempts) note(f form, good bool) {
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

// Attempts returns how often a client came to the token endpoint with a secret,
// and was let in or refused. Requests that controls answered are not counted.
func (s *Server) Attempts(clientID string, secret redact.String) (good, refused int) {
	s.attempts.mu.Lock()
	defer s.attempts.mu.Unlock()
	if count := s.attempts.counts[attemptKey{clientID, secret.SHA256()}]; count != nil {
		return count.good, count.refused
	}
	return 0, 0
}
