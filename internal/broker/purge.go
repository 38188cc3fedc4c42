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

// askedClients are those whose tokens, or purges, this replica knows of.
func (b *Broker) askedClients() []*client {
	var asked []*client
	for _, c := range b.setup.Load().clients {
		if c.asked.Load() || c.epoch.Load() > 0 {
			asked = append(asked, c)
		}
	}
	return asked
}

// lookAtEpochs reads the epochs of clients, and reports whether the store told
// all of them.
func (b *Broker) lookAtEpochs(ctx context.Context, clients ...*client) (told bool) {
	told = true
	for some := range slices.Chunk(clients, store.MaxKeys) {
		keys := make([]string, len(some))
		for i, c := range some {
			keys[i] = c.keys.epoch
		}
		found, err := b.store.Get(ctx, keys...)
		for i, c := range some {
			if store.WasRead(err, i) {
				b.sawEpoch(ctx, c, found[i].Number)
			}
		}
		told = told && err == nil
	}
	return told
}

// sawEpoch adopts a client's epoch, or puts back one that the store has lost.
func (b *Broker) sawEpoch(ctx context.Context, c *client, epoch uint64) {
	for {
		seen := c.epoch.Load()
		switch {
		case epoch == seen:
			return
		case epoch < seen:
			var err error
			if epoch, err = b.putBackEpoch(ctx, c, seen); err != nil {
				return // if not now, then at the next look
			}
		case c.epoch.CompareAndSwap(seen, epoch):
			c.changed.fire()
			return
		}
	}
}

// putBackEpoch raises the epoch in the store to one that was seen, and returns the
// epoch in the store. An epoch that is neither absent nor as high shows that another
// replica purged after the store had lost the counter, without knowing how high it
// was: that purge counts as well.
func (b *Broker) putBackEpoch(ctx context.Context, c *client, seen uint64) (uint64, error) {
	found, err := b.store.Get(ctx, c.keys.epoch) // the look may have been made before a purge that is known by now
	if err != nil {
		return 0, err
	}
	floor := seen
	if stored := found[0].Number; stored > 0 && stored < seen {
		floor++
	}
	return b.store.Raise(ctx, c.keys.epoch, floor, 0)
}

// purgeMemory is how long a purge is remembered by its request.
const purgeMemory = 24 * time.Hour

// Purge says which tokens to purge.
type Purge struct {
	Client string
	// Request identifies the call: made again within 24 h, on any replica, it changes
	// nothing.
	Request string
	// Reason is why, for the audit log.
	Reason string
}

// Purge makes all replicas drop every token of a client that was minted, or
// began to be, before now: at once where the store's word arrives, else within
// 5 s. Nil means that the store has it; after an error, which is always an
// [*apierror.Error], asking again is safe.
func (b *Broker) Purge(ctx context.Context, caller *policy.Caller, asked Purge) error {
	err := b.purge(ctx, caller, asked)
	b.acted(ctx, caller, policy.PurgeTokens, err, audit.Event{Client: asked.Client, RequestID: asked.Request, Comment: asked.Reason})
	return err
}

func (b *Broker) purge(ctx context.Context, caller *policy.Caller, asked Purge) error {
	if denied := b.mayAct(caller, policy.PurgeTokens, asked.Client); denied != nil {
		return denied
	}
	c := b.client(asked.Client)
	if c == nil {
		return mayNotDo(caller, policy.PurgeTokens, asked.Client)
	}
	target, err := b.purgeTarget(ctx, c, asked.Request)
	if err != nil {
		return unconfirmedPurge(c, err)
	}
	// If the store has lost an epoch that is known here, sawEpoch sees that, and whether
	// another replica purged meanwhile.
	epoch, err := b.store.Raise(ctx, c.keys.epoch, target, 0)
	if err != nil {
		return unconfirmedPurge(c, err)
	}
	b.sawEpoch(ctx, c, epoch)
	b.log.Info("tokens purged", "client", c.name, "caller", caller.Name(), "epoch", target)
	return nil
}

// purgeTarget returns the epoch that a request to purge opens, which the store
// remembers before it is opened: a call that is made again opens the same one, and
// so does one that failed halfway. Tokens of earlier epochs were fetched, or began
// to be, before the first call.
func (b *Broker) purgeTarget(ctx context.Context, c *client, request string) (uint64, error) {
	key := c.keys.purge(b.names.name("purge", []byte(request)))
	found, err := b.store.Get(ctx, key, c.keys.epoch)
	if err != nil {
		return 0, err
	}
	if target, err := strconv.ParseUint(string(found[0].Value), 10, 64); err == nil && found[0].Number > 0 {
		return target, nil
	}
	target := max(found[1].Number, c.nextEpochFloor(time.Now())) + 1
	applied, err := b.store.Apply(ctx, store.Change{Puts: []store.Put{
		{Key: key, Number: 1, Value: strconv.AppendUint(nil, target, 10), TTL: purgeMemory},
	}})
	if err != nil || applied[0] {
		return target, err
	}
	// The same request reached another replica at the same time; or its record cannot
	// be read, and then it is carried out again.
	found, err = b.store.Get(ctx, key)
	if err != nil {
		return 0, err
	}
	if other, err := strconv.ParseUint(string(found[0].Value), 10, 64); err == nil && found[0].Number > 0 {
		return other, nil
	}
	return target, nil
}

// dropTokens has all replicas drop what was obtained before now.
func (b *Broker) dropTokens(ctx context.Context, c *client) *apierror.Error {
	epoch, err := b.store.Raise(ctx, c.keys.epoch, c.nextEpochFloor(time.Now()), 1)
	if err != nil {
		return unconfirmedPurge(c, err)
	}
	b.sawEpoch(ctx, c, epoch)
	return nil
}

// nextEpochFloor is what a new epoch must exceed. Where the store has just lost its
// counters and this replica has just started, other replicas know a higher epoch than
// both; it was opened earlier, so a number taken from the clock exceeds it. Epochs are
// compared as numbers all the same: if this clock is behind, see putBackEpoch.
func (c *client) nextEpochFloor(now time.Time) uint64 {
	return max(c.epoch.Load(), uint64(max(now.UnixMilli(), 0)))
}
