package broker

import (
	"context"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/credential"
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
	b.secrets.Load(ctx, b.keptSecrets()...)
	wait := epochInterval
	for round := 1; sleep(ctx, nil, wait); round++ {
		if wait = epochInterval; !b.lookAtCounters(ctx, b.askedClients()...) {
			wait = awayInterval
			if round%awayRounds != 0 {
				continue // the rest may be on a server that responds, but it can wait
			}
		}
		b.revoked.Poll(ctx, round)
		b.secrets.Poll(ctx, round, b.keptSecrets())
		if round%watchRounds == 0 {
			b.lookAtWatched(ctx)
		}
	}
}

// keptSecrets returns the secrets that have a history.
func (b *Broker) keptSecrets() []*credential.Set {
	var kept []*credential.Set
	for _, c := range b.setup.Load().clients {
		if c.secrets.Kept() {
			kept = append(kept, c.secrets)
		}
	}
	return kept
}

// sources returns the sources of the clients' secrets.
func (b *Broker) sources() []*secret.Source {
	var sources []*secret.Source
	for _, s := range b.keptSecrets() {
		if s.Source != nil {
			sources = append(sources, s.Source)
		}
	}
	return sources
}

// sourceChanged handles a source that changed or could not be reread.
func (b *Broker) sourceChanged(source *secret.Source, err error) {
	for _, s := range b.keptSecrets() {
		if s.Source == source {
			s.SourceChanged(err)
		}
	}
}
