package backoff

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/store"
)

// A refused version that is hastened may be tried at once: a replica that reads this
// from the store must not refuse its callers for another millisecond.
func TestStoredFailureStaysEnded(t *testing.T) {
	for name, left := range map[string]time.Duration{"now": 0, "before": -time.Second, "soon": 50 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				now := time.Now()
				failure := Failure{Err: &apierror.Error{Message: "refused"}, At: now, Until: now.Add(left), Tries: 1}
				shared := store.NewMemory(store.MemoryConfig{})
				if _, err := shared.Apply(t.Context(), store.Change{Puts: []store.Put{failure.Put("key", 1, now)}}); err != nil {
					t.Fatal(err)
				}
				found, err := shared.Get(t.Context(), "key")
				if err != nil {
					t.Fatal(err)
				}
				var place Slot
				place.AdoptStored(found[0], time.Now())
				adopted := place.Load()
				if adopted == nil || adopted.Tries != 1 {
					t.Fatalf("adopted %+v", adopted)
				}
				if adopted.Active(time.Now()) != (left > 0) {
					t.Errorf("a failure with %v left ends at %v in another replica, and now is %v", left, adopted.Until, time.Now())
				}
			})
		})
	}
}
