package broker

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
)

const (
	// epochInterval is how often the epochs are read, in case the store did not
	// tell of a purge: how long a purged token is handed out at most.
	epochInterval = 5 * time.Second
	// awayInterval is the same while the store does not answer, so that it is
	// noticed when it is back, whether or not anybody asks for something.
	awayInterval = time.Second
	// awayRounds of those later the rest is read all the same.
	awayRounds = int(epochInterval / awayInterval)
	// watchRounds of epochs later the tokens that are watched are read as well.
	watchRounds = 6
)

// Run keeps this replica up to date with the others until ctx ends. Without it
// tokens are shared all the same, but what other replicas purge or replace is
// noticed late.
func (b *Broker) Run(ctx context.Context) {
	var parts sync.WaitGroup
	parts.Go(func() { b.listen(ctx) })
	parts.Go(func() { b.poll(ctx) })
	parts.Go(func() { b.sumUp(ctx) })
	parts.Go(func() { secret.Poll(ctx, b.sources, b.sourceChanged) })
	parts.Wait()
}

// listen rings the bells for what the store tells.
func (b *Broker) listen(ctx context.Context) {
	for key := range b.store.Subscribe(ctx) {
		b.bells.ring(key)
	}
}

// poll looks from time to time at what it may not have been told.
func (b *Broker) poll(ctx context.Context) {
	_, _ = b.revoker.set(ctx) // if not now, then when they are needed
	b.lookAtSecrets(ctx, b.keptClients()...)
	wait := epochInterval
	for round := 1; sleep(ctx, nil, wait); round++ {
		if wait = epochInterval; !b.lookAtEpochs(ctx, b.askedClients()...) {
			wait = awayInterval
			if round%awayRounds != 0 {
				continue // what follows may be on a server that answers, but it can wait
			}
		}
		b.revoker.poll(ctx, round)
		b.pollSecrets(ctx, round)
		if round%watchRounds == 0 {
			b.lookAtWatched(ctx)
		}
	}
}

func (b *Broker) askedClients() []*client {
	var asked []*client
	for _, c := range b.setup.Load().clients {
		if c.asked.Load() {
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
			_, _ = b.store.Raise(ctx, c.keys.epoch, seen, 0) // if not now, then at the next look
			return
		case c.epoch.CompareAndSwap(seen, epoch):
			c.changed.fire()
			return
		}
	}
}

// Purge makes all replicas drop every token of a client that was minted, or
// began to be, before now: at once where the store's word arrives, else within
// 5 s. Nil means that the store has it; after an error, which is always an
// [*Error], asking again is safe.
func (b *Broker) Purge(ctx context.Context, caller *policy.Caller, name string) error {
	err := b.purge(ctx, caller, name)
	b.acted(ctx, caller, policy.PurgeTokens, err, audit.Event{Client: name})
	return err
}

func (b *Broker) purge(ctx context.Context, caller *policy.Caller, name string) error {
	if denied := b.mayAct(caller, policy.PurgeTokens, name); denied != nil {
		return denied
	}
	c := b.client(name)
	if c == nil {
		return mayNotDo(caller, policy.PurgeTokens, name)
	}
	if err := b.dropTokens(ctx, c); err != nil {
		return err
	}
	b.log.Info("tokens purged", "client", name, "caller", caller.Name())
	return nil
}

// dropTokens has all replicas drop what was obtained before now.
func (b *Broker) dropTokens(ctx context.Context, c *client) *Error {
	epoch, err := b.store.Raise(ctx, c.keys.epoch, c.epoch.Load(), 1)
	if err != nil {
		return unconfirmed(err, fmt.Sprintf("client %q: the store did not confirm the purge", c.name), "ask again", map[string]string{"client": c.name})
	}
	b.sawEpoch(ctx, c, epoch)
	return nil
}
