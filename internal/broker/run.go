package broker

import (
	"context"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/secret"
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

// listen passes the events of the store on.
func (b *Broker) listen(ctx context.Context) {
	for key := range b.store.Subscribe(ctx) {
		b.subscriptions.Notify(key)
	}
}

// poll looks from time to time at what it may not have been told.
func (b *Broker) poll(ctx context.Context) {
	_, _ = b.revoked.View(ctx) // if not now, then when they are needed
	b.lookAtSecrets(ctx, b.keptClients()...)
	wait := epochInterval
	for round := 1; sleep(ctx, nil, wait); round++ {
		if wait = epochInterval; !b.lookAtEpochs(ctx, b.askedClients()...) {
			wait = awayInterval
			if round%awayRounds != 0 {
				continue // what follows may be on a server that answers, but it can wait
			}
		}
		b.revoked.Poll(ctx, round)
		b.pollSecrets(ctx, round)
		if round%watchRounds == 0 {
			b.lookAtWatched(ctx)
		}
	}
}
