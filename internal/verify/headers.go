package verify

import (
	"sync"

	"github.com/cezzis/tokenbroker/internal/jose"
)

// maxHeaders is far more than the number of keys and kinds of tokens of usual issuers.
const maxHeaders = 64

// headerCache caches the parsed headers of tokens with a valid signature: an issuer's
// tokens have few different headers. A nil cache caches nothing. It is safe for
// concurrent use.
type headerCache struct {
	mu     sync.RWMutex
	parsed map[string]jose.Header // by the decoded header
}

// find returns a parsed header, and false if it is not cached.
func (c *headerCache) find(decoded []byte) (jose.Header, bool) {
	if c == nil {
		return jose.Header{}, false
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	header, ok := c.parsed[string(decoded)]
	return header, ok
}

// put caches a header. It starts anew when the cache is full, so that the headers of
// withdrawn keys go.
func (c *headerCache) put(decoded []byte, header jose.Header) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.parsed == nil || len(c.parsed) >= maxHeaders {
		c.parsed = map[string]jose.Header{}
	}
	c.parsed[string(decoded)] = header
}
