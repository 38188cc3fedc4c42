package gateway_test

import (
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/gateway"
)

func TestRetryAfterIsRoundedUp(t *testing.T) {
	for d, want := range map[time.Duration]string{
		time.Nanosecond: "1", time.Millisecond: "1", time.Second: "1", time.Second + time.Nanosecond: "2", 17 * time.Second: "17",
	} {
		if got := gateway.Seconds(d); got != want {
			t.Errorf("%v: Retry-After %s, want %s", d, got, want)
		}
	}
}
