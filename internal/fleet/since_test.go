package fleet_test

import (
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/fleet"
)

func TestTrackerChangedIsWhenACountWasSeenToChange(t *testing.T) {
	var tracker fleet.Tracker
	for i, step := range []struct {
		count uint64
		at    time.Time
		want  time.Time
	}{{4, ago(time.Hour), time.Time{}}, {4, ago(50 * time.Minute), time.Time{}}, {5, ago(40 * time.Minute), ago(40 * time.Minute)}, {5, now, ago(40 * time.Minute)}, {7, now, now}} {
		if got := tracker.Changed("orders", step.count, step.at); !got.Equal(step.want) {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
		if got := tracker.Changed("billing", 1, step.at); !got.IsZero() {
			t.Errorf("step %d: another count that never changed: %v", i, got)
		}
	}
}
