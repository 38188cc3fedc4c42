package devidp

import (
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose"
)

// readKeys are the keys that were read at the jwks_uri of clients. It is safe for
// concurrent use.
type readKeys struct {
	mu       sync.Mutex
	byClient map[string]datedKeys
}

type datedKeys struct {
	keys []*jose.Key
	at   time.Time
}

// of returns the keys of a client, which it reads if those that were read before are too
// old. Keys that cannot be read leave the client without keys.
func (r *readKeys) of(client Client) []*jose.Key {
	r.mu.Lock()
	held, read := r.byClient[client.ID]
	r.mu.Unlock()
	if read && time.Since(held.at) < client.KeysFor {
		return held.keys
	}
	set, err := client.KeysAt()
	if err != nil {
		return nil
	}
	keys, err := keysOf(set)
	if err != nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byClient == nil {
		r.byClient = map[string]datedKeys{}
	}
	r.byClient[client.ID] = datedKeys{keys, time.Now()}
	return keys
}
