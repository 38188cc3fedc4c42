package broker

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/store"
)

// askedClients returns the clients with requested tokens or known purges in this
// replica.
func (b *Broker) askedClients() []*client {
	var asked []*client
	for _, c := range b.setup.Load().clients {
		if c.asked.Load() || c.epoch.Load() > 0 {
			asked = append(asked, c)
		}
	}
	return asked
}

// lookAtCounters reads the epochs and fences of clients, and reports whether the store
// returned all of them.
func (b *Broker) lookAtCounters(ctx context.Context, clients ...*client) (complete bool) {
	complete = true
	for some := range slices.Chunk(clients, store.MaxKeys/2) {
		keys := make([]string, 0, 2*len(some))
		for _, c := range some {
			keys = append(keys, c.keys.epoch, c.keys.fences)
		}
		entries, err := b.store.Get(ctx, keys...)
		for i, c := range some {
			if store.WasRead(err, 2*i) {
				b.adoptEpoch(ctx, c, entries[2*i].Number)
			}
			if store.WasRead(err, 2*i+1) {
				b.putBackFences(ctx, c, entries[2*i+1].Number)
			}
		}
		complete = complete && err == nil
	}
	return complete
}

// putBackFences restores the count of a client's fences if the store has lost it.
// Otherwise a replica that knows a lower fence could obtain the next token with a number
// that does not exceed those of the tokens that other replicas hold, and they would not
// adopt it.
func (b *Broker) putBackFences(ctx context.Context, c *client, count uint64) {
	if seen := c.fence.Load(); count < seen {
		_, _ = b.store.Raise(ctx, c.keys.fences, seen, 0) // on failure, the next poll retries
	}
}

// adoptEpoch adopts a client's epoch, or restores one that the store has lost.
func (b *Broker) adoptEpoch(ctx context.Context, c *client, epoch uint64) {
	for {
		seen := c.epoch.Load()
		switch {
		case epoch == seen:
			return
		case epoch < seen:
			var err error
			if epoch, err = b.putBackEpoch(ctx, c, seen); err != nil {
				return // the next look tries again
			}
		case c.epoch.CompareAndSwap(seen, epoch):
			c.changed.Fire()
			return
		}
	}
}

// putBackEpoch raises the epoch in the store to one that was seen, and returns the
// epoch in the store. A stored epoch that is lower but not absent means that another
// replica purged after the store had lost the counter, without knowing its value: that
// purge counts as well.
func (b *Broker) putBackEpoch(ctx context.Context, c *client, seen uint64) (uint64, error) {
	stored, err := b.store.Get(ctx, c.keys.epoch) // the look may be older than a purge that is known now
	if err != nil {
		return 0, err
	}
	floor := seen
	if stored := stored[0].Number; stored > 0 && stored < seen {
		floor++
	}
	return b.store.Raise(ctx, c.keys.epoch, floor, 0)
}

// purgeMemory is how long the store remembers the request of a purge.
const purgeMemory = 24 * time.Hour

// Purge is a request to purge tokens.
type Purge struct {
	Client string
	// Request identifies the call: a repetition within 24 h, on any replica, changes
	// nothing.
	Request string
	// Reason is the reason for the audit log.
	Reason string
}

// Purge makes all replicas drop every token of a client whose fetch began before now:
// at once if the store's event arrives, otherwise within 5 s. Nil means that the store
// has the purge; after an error, which is always an [*apierror.Error], a repetition is
// safe.
func (b *Broker) Purge(ctx context.Context, caller *policy.Caller, asked Purge) error {
	err := b.purge(ctx, caller, asked)
	b.actions.Record(ctx, caller, policy.PurgeTokens, err, audit.Event{Client: asked.Client, RequestID: asked.Request, Comment: asked.Reason})
	return err
}

func (b *Broker) purge(ctx context.Context, caller *policy.Caller, asked Purge) error {
	c, denied := b.authorizeOn(caller, policy.PurgeTokens, asked.Client)
	if denied != nil {
		return denied
	}
	target, err := b.purgeTarget(ctx, c, asked.Request)
	if err != nil {
		return unconfirmedPurge(c, err)
	}
	// If the store has lost an epoch that is known here, adoptEpoch detects that, and a
	// concurrent purge by another replica.
	epoch, err := b.store.Raise(ctx, c.keys.epoch, target, 0)
	if err != nil {
		return unconfirmedPurge(c, err)
	}
	b.adoptEpoch(ctx, c, epoch)
	b.log.Info("tokens purged", "client", c.name, "caller", caller.Name(), "epoch", target)
	return nil
}

// purgeTarget returns the epoch that a purge request opens. The store remembers it
// first, so that a repetition, also after a failure halfway, opens the same one. The
// fetches of tokens of earlier epochs began before the first call.
func (b *Broker) purgeTarget(ctx context.Context, c *client, request string) (uint64, error) {
	key := c.keys.purge(b.name("purge", []byte(request)))
	stored, err := b.store.Get(ctx, key, c.keys.epoch)
	if err != nil {
		return 0, err
	}
	if target, err := strconv.ParseUint(string(stored[0].Value), 10, 64); err == nil && stored[0].Number > 0 {
		return target, nil
	}
	target := max(stored[1].Number, c.nextEpochFloor(time.Now())) + 1
	applied, err := b.store.Apply(ctx, store.Change{Puts: []store.Put{
		{Key: key, Number: 1, Value: strconv.AppendUint(nil, target, 10), TTL: purgeMemory},
	}})
	if err != nil || applied[0] {
		return target, err
	}
	// The same request reached another replica at the same time; or its record is
	// unreadable, and then the purge is carried out again.
	stored, err = b.store.Get(ctx, key)
	if err != nil {
		return 0, err
	}
	if other, err := strconv.ParseUint(string(stored[0].Value), 10, 64); err == nil && stored[0].Number > 0 {
		return other, nil
	}
	return target, nil
}

// dropTokens makes all replicas drop the tokens obtained before now.
func (b *Broker) dropTokens(ctx context.Context, c *client) *apierror.Error {
	epoch, err := b.store.Raise(ctx, c.keys.epoch, c.nextEpochFloor(time.Now()), 1)
	if err != nil {
		return unconfirmedPurge(c, err)
	}
	b.adoptEpoch(ctx, c, epoch)
	return nil
}

// nextEpochFloor is a lower bound, which a new epoch must exceed. If the store has
// just lost its counters and this replica has just started, other replicas know a
// higher epoch than both; it was opened earlier, so a number from the clock exceeds
// it. Epochs are still compared as numbers: if this clock is behind, see putBackEpoch.
func (c *client) nextEpochFloor(now time.Time) uint64 {
	return max(c.epoch.Load(), uint64(max(now.UnixMilli(), 0)))
}
