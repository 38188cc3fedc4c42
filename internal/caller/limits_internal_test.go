package caller

import (
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
)

// A wait of 0 would be no RetryInfo at all, although the caller may try again at once.
func TestLimitErrorsHaveRetryAfter(t *testing.T) {
	l := newLimiter(nil, &Limits{}, nil)
	for wait, want := range map[time.Duration]time.Duration{0: time.Millisecond, 1: 1, time.Second: time.Second} {
		if err := l.refuse(nil, limitRate, apierror.ReasonRateLimited, wait, ""); err.RetryAfter != want {
			t.Errorf("a wait of %v: %v, want %v", wait, err.RetryAfter, want)
		}
	}
}
