package broker_test

import (
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// While an IdP is down, the pauses double from 1 s to 30 s, each spread by half either way.
func TestBackoffDoublesUpTo30Seconds(t *testing.T) {
	spread := map[time.Duration]struct{ low, high bool }{}
	for range 30 { // the pauses are drawn at random
		inBubble(t, func(t *testing.T) {
			f := start(t)
			if _, err := f.Get(t.Context(), policy.Self(), ordersFor(audienceNo(1))); err != nil { // no probe comes first
				t.Fatal(err)
			}
			f.idp.SetDown(true)
			for i := range 8 {
				_, err := f.Get(t.Context(), policy.Self(), orders())
				wantError(t, err, apierror.Unavailable, apierror.ReasonIdPUnavailable)
				_, err = f.Get(t.Context(), policy.Self(), orders())
				pause := wantError(t, err, apierror.Unavailable, apierror.ReasonIdPUnavailable).RetryAfter
				middle := min(time.Second<<i, 30*time.Second)
				if pause < middle/2 || pause > middle*3/2 {
					t.Fatalf("pause %d is %v, not between %v and %v", i+1, pause, middle/2, middle*3/2)
				}
				seen := spread[middle]
				seen.low, seen.high = seen.low || pause < middle, seen.high || pause > middle
				spread[middle] = seen

				tries := f.fetches()
				time.Sleep(pause - time.Nanosecond)
				_, err = f.Get(t.Context(), policy.Self(), orders())
				if told := wantError(t, err, apierror.Unavailable, apierror.ReasonIdPUnavailable); told.RetryAfter != time.Millisecond || f.fetches() != tries {
					t.Fatalf("just before the end of pause %d: retry after %v, %d requests to the IdP", i+1, told.RetryAfter, f.fetches()-tries)
				}
				time.Sleep(time.Nanosecond)
			}
		})
	}
	for middle, seen := range spread {
		if !seen.low || !seen.high {
			t.Errorf("pauses of about %v are not spread to both sides: %+v", middle, seen)
		}
	}
}
