// Package epoch keeps the two numbers that order the tokens of a client in the fleet: the
// epoch, which a purge raises, and the fence, which every lease raises. The store has both
// as counters. Replicas put them back if the store loses them.
package epoch

import (
	"context"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

// purgeMemory is how long the store remembers the request of a purge.
const purgeMemory = 24 * time.Hour

// Counters are the highest epoch and fence of a client that this replica has seen. It is
// safe for concurrent use.
type Counters struct {
	Store store.Store
	// EpochKey and FenceKey are the keys of the counters in the store.
	EpochKey, FenceKey string
	// Changed is fired when the epoch was raised: the tokens were purged.
	Changed store.Signal

	epoch, fence atomic.Uint64
}

// Epoch returns the current epoch. Tokens of earlier epochs are purged.
func (c *Counters) Epoch() uint64 { return c.epoch.Load() }

// Fence returns the highest fence. It is the lower bound of new leases, so that fences grow
// even if the store has lost their counter.
func (c *Counters) Fence() uint64 { return c.fence.Load() }

// RaiseFence records a fence.
func (c *Counters) RaiseFence(fence uint64) {
	for {
		seen := c.fence.Load()
		if fence <= seen || c.fence.CompareAndSwap(seen, fence) {
			return
		}
	}
}

// Inherit adopts the numbers of an old configuration of the client.
func (c *Counters) Inherit(old *Counters) {
	c.epoch.Store(old.epoch.Load())
	c.fence.Store(old.fence.Load())
}

// Synchronize reads the counters of clients, and reports whether the store returned all of
// them.
func Synchronize(ctx context.Context, s store.Store, clients ...*Counters) (complete bool) {
	complete = true
	for some := range slices.Chunk(clients, store.MaxKeys/2) {
		keys := make([]string, 0, 2*len(some))
		for _, c := range some {
			keys = append(keys, c.EpochKey, c.FenceKey)
		}
		entries, err := s.Get(ctx, keys...)
		for i, c := range some {
			if store.WasRead(err, 2*i) {
				c.Adopt(ctx, entries[2*i].Number)
			}
			if store.WasRead(err, 2*i+1) {
				c.putBackFences(ctx, entries[2*i+1].Number)
			}
		}
		complete = complete && err == nil
	}
	return complete
}

// putBackFences restores the count of fences if the store has lost it. Otherwise a replica
// that knows a lower fence could obtain the next token with a number that does not exceed
// those of the tokens that other replicas hold, and they would not adopt it.
func (c *Counters) putBackFences(ctx context.Context, count uint64) {
	if seen := c.fence.Load(); count < seen {
		_, _ = c.Store.Raise(ctx, c.FenceKey, seen, 0) // on failure, the next poll retries
	}
}

// Adopt adopts the epoch in the store, or restores one that the store has lost.
func (c *Counters) Adopt(ctx context.Context, epoch uint64) {
	for {
		seen := c.epoch.Load()
		switch {
		case epoch == seen:
			return
		case epoch < seen:
			var err error
			if epoch, err = c.putBackEpoch(ctx, seen); err != nil {
				return // the next look tries again
			}
		case c.epoch.CompareAndSwap(seen, epoch):
			c.Changed.Fire()
			return
		}
	}
}

// putBackEpoch raises the epoch in the store to one that was seen, and returns the epoch in
// the store. A stored epoch that is lower but not absent means that another replica purged
// after the store had lost the counter, without knowing its value: that purge counts as
// well.
func (c *Counters) putBackEpoch(ctx context.Context, seen uint64) (uint64, error) {
	stored, err := c.Store.Get(ctx, c.EpochKey) // the look may be older than a purge that is known now
	if err != nil {
		return 0, err
	}
	floor := seen
	if stored := stored[0].Number; stored > 0 && stored < seen {
		floor++
	}
	return c.Store.Raise(ctx, c.EpochKey, floor, 0)
}

// Advance begins a new epoch.
func (c *Counters) Advance(ctx context.Context) error {
	epoch, err := c.Store.Raise(ctx, c.EpochKey, c.floor(time.Now()), 1)
	if err != nil {
		return err
	}
	c.Adopt(ctx, epoch)
	return nil
}

// AdvanceOnce begins a new epoch and returns the lowest one that it may have. The store
// remembers the request at its key for 24 h first, so that a repetition, on any replica and
// also after a failure halfway, begins the same one. The fetches of tokens of earlier epochs
// began before the first call.
func (c *Counters) AdvanceOnce(ctx context.Context, requestKey string) (uint64, error) {
	target, first, err := c.target(ctx, requestKey)
	if err != nil {
		return 0, err
	}
	// A first call begins an epoch in any case. If the store has lost a higher one, another
	// replica may have restored it since the target was chosen, and the tokens of that
	// epoch are older than this call.
	floor, by := target, uint64(0)
	if first {
		floor, by = target-1, 1
	}
	// If the store has lost an epoch that is known here, Adopt detects that, and a
	// concurrent purge by another replica.
	epoch, err := c.Store.Raise(ctx, c.EpochKey, floor, by)
	if err != nil {
		return 0, err
	}
	c.Adopt(ctx, epoch)
	return target, nil
}

// target returns the epoch that a request begins, and whether this call is the first one
// of the request.
func (c *Counters) target(ctx context.Context, requestKey string) (target uint64, first bool, err error) {
	stored, err := c.Store.Get(ctx, requestKey, c.EpochKey)
	if err != nil {
		return 0, false, err
	}
	if target, ok := recorded(stored[0]); ok {
		return target, false, nil
	}
	target = max(stored[1].Number, c.floor(time.Now())) + 1
	applied, err := c.Store.Apply(ctx, store.Change{Puts: []store.Put{
		{Key: requestKey, Number: 1, Value: strconv.AppendUint(nil, target, 10), TTL: purgeMemory},
	}})
	if err != nil || applied[0] {
		return target, true, err
	}
	// The same request reached another replica at the same time; or its record is
	// unreadable, and then the purge is carried out again.
	stored, err = c.Store.Get(ctx, requestKey)
	if err != nil {
		return 0, false, err
	}
	if other, ok := recorded(stored[0]); ok {
		return other, false, nil
	}
	return target, true, nil
}

// recorded returns the epoch in the record of a request.
func recorded(entry store.Entry) (uint64, bool) {
	target, err := strconv.ParseUint(string(entry.Value), 10, 64)
	return target, err == nil && entry.Number > 0
}

// floor is a lower bound, which a new epoch must exceed. If the store has just lost its
// counters and this replica has just started, other replicas know a higher epoch than both;
// it began earlier, so a number from the clock exceeds it. Epochs are still compared as
// numbers: if this clock is behind, see putBackEpoch.
func (c *Counters) floor(now time.Time) uint64 {
	return max(c.epoch.Load(), uint64(max(now.UnixMilli(), 0)))
}
