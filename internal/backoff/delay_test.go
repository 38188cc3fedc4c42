package backoff

import (
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/token"
)

// While a token is held, a pause is at most a quarter of the rest of its life, so that
// there are several tries before it ends, and at least half a second.
func TestBackoffWhileATokenIsHeld(t *testing.T) {
	now := time.Now()
	for left, want := range map[time.Duration]struct{ least, most time.Duration }{
		8 * time.Second:  {2 * time.Second, 2 * time.Second},
		time.Second:      {500 * time.Millisecond, 500 * time.Millisecond},
		time.Hour:        {15 * time.Second, 45 * time.Second},
		-time.Nanosecond: {15 * time.Second, 45 * time.Second},
	} {
		held := &token.Token{UsableUntil: now.Add(left), ExpiresAt: now.Add(left)}
		for range 50 {
			if pause := transientDelay(9, held, now); pause < want.least || pause > want.most {
				t.Fatalf("a token with %v left: the pause is %v, not between %v and %v", left, pause, want.least, want.most)
			}
		}
	}
}
