package epoch_test

import (
	"context"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/epoch"
	"github.com/cezzis/tokenbroker/internal/store"
)

// interrupted is a store in which something happens right after the record of a purge was
// written.
type interrupted struct {
	*store.Memory

	then func()
}

func (i interrupted) Apply(ctx context.Context, change store.Change) ([]bool, error) {
	applied, err := i.Memory.Apply(ctx, change)
	i.then()
	return applied, err
}

// The store has lost an epoch that is ahead of the clock of the replica that purges.
// Another replica restores it in the middle of the purge. The purge must still begin a new
// epoch, because tokens of the restored one are older than the purge.
func TestPurgeBeginsAnEpochAlthoughALostOneIsRestored(t *testing.T) {
	shared := store.NewMemory(store.MemoryConfig{})
	old := uint64(time.Now().Add(time.Hour).UnixMilli())
	restore := func() {
		if _, err := shared.Raise(t.Context(), "epoch", old, 0); err != nil {
			t.Fatal(err)
		}
	}
	purging := &epoch.Counters{Store: interrupted{shared, restore}, EpochKey: "epoch", FenceKey: "fences"}
	if _, err := purging.AdvanceOnce(t.Context(), "request"); err != nil {
		t.Fatal(err)
	}
	first := purging.Epoch()
	if first <= old {
		t.Errorf("the purge was acknowledged with the epoch %d; tokens of the epoch %d from before it stay usable", first, old)
	}
	// A repetition changes nothing.
	if _, err := purging.AdvanceOnce(t.Context(), "request"); err != nil || purging.Epoch() != first {
		t.Errorf("the repeated purge: epoch %d after %d, %v", purging.Epoch(), first, err)
	}
}
