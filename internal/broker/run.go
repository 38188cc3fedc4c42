package broker

import (
	"context"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/secret"
)

const (
	// epochInterval is the interval for reading the epochs, in case the event of a
	// purge was lost. It bounds how long a purged token is still handed out.
	epochInterval = 5 * time.Second
	// awayInterval is the same while the store does not respond, so that its return is
	// noticed even without requests.
	awayInterval = time.Second
	// awayRounds is the number of those intervals after which the other state is read
	// anyway.
	awayRounds = int(epochInterval / awayInterval)
	// watchRounds is the number of rounds after which the watched tokens are read as
	// well.
	watchRounds = 6
)

// Run keeps this replica up to date with the others until ctx ends. Without it
// replicas still share tokens, but notice purges and replacements by others late.
func (b *Broker) Run(ctx context.Context) {
	var parts sync.WaitGroup
	parts.Go(func() { b.listen(ctx) })
	parts.Go(func() { b.poll(ctx) })
	parts.Go(func() { b.sumUp(ctx) })
	parts.Go(func() { secret.Poll(ctx, b.sources, b.sourceChanged) })
	parts.Wait()
}

// listen passes the events of the store on to the subscriptions.
func (b *Broker) listen(ctx context.Context) {
	for key := range b.store.Subscribe(ctx) {
		b.subscriptions.Notify(key)
	}
}

// poll reads the store periodically, in case an event was lost.
func (b *Broker) poll(ctx context.Context) {
	_, _ = b.revoked.View(ctx) // on an error they are read when needed
	b.lookAtSecrets(ctx, b.keptClients()...)
	wait := epochInterval
	for round := 1; sleep(ctx, nil, wait); round++ {
		if wait = epochInterval; !b.lookAtCounters(ctx, b.askedClients()...) {
			wait = awayInterval
			if round%awayRounds != 0 {
				continue // the rest may be on a server that responds, but it can wait
			}
		}
		b.revoked.Poll(ctx, round)
		b.pollSecrets(ctx, round)
		if round%watchRounds == 0 {
			b.lookAtWatched(ctx)
		}
	}
}
