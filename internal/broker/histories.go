package broker

import (
	"context"
	"errors"
	"slices"

	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
)

// historyChunk is how many histories are read at once. Histories with values may be large.
const historyChunk = 50

var errUnopened = errors.New("the secrets in the store cannot be opened: put the sealing key that they were sealed with back into the ring")

// historyOf decodes the history in a store entry. An unreadable value is an error, not an
// empty history.
func historyOf(found store.Entry) (secret.History, error) {
	switch {
	case found.Unopened:
		return secret.History{}, errUnopened
	case found.Number == 0:
		return secret.History{}, nil
	}
	return secret.FromStored(found.Value)
}

// adoptHistory adopts a client's history from the store. It schedules a repair if the store
// lacks versions that are known here, or if the value is sealed with an old key.
func (b *Broker) adoptHistory(c *client, found store.Entry) {
	stored, err := historyOf(found)
	if err != nil {
		b.unreadable(c, err)
		return
	}
	if right := c.secrets.saw(stored); right.ID != stored.ID || found.Aged {
		c.secrets.mending.Run(b.spawn, func() { b.mend(b.flying, c) })
	}
}

// unreadable records why a history cannot be read, and logs the first failure since the
// last success.
func (b *Broker) unreadable(c *client, err error) {
	if c.secrets.failed(err) {
		b.log.Error("the secrets of a client cannot be read from the store; those known before stay in force", "client", c.name, "error", err)
	}
}

// mend writes back what the store has lost, and reseals values that are sealed with an old
// key.
func (b *Broker) mend(ctx context.Context, c *client) {
	_ = store.RetryOvertaken(func() error { // on failure, the next look retries
		entry, stored, err := b.readHistory(ctx, c)
		if err != nil {
			return err
		}
		right := c.secrets.saw(stored)
		lost := right.ID != stored.ID
		if !lost && !entry.Aged {
			return nil
		}
		if err := b.writeHistory(ctx, c, entry.Number, right); err != nil {
			return err
		}
		b.log.Info("the history of a client's secrets was written to the store again", "client", c.name, "lost", lost)
		return nil
	})
}

// readHistory reads a client's history from the store, with its entry.
func (b *Broker) readHistory(ctx context.Context, c *client) (store.Entry, secret.History, error) {
	found, err := b.store.Get(ctx, c.keys.secrets)
	if err != nil {
		return store.Entry{}, secret.History{}, err
	}
	stored, err := historyOf(found[0])
	if err != nil {
		b.unreadable(c, err)
		return store.Entry{}, secret.History{}, err
	}
	return found[0], stored, nil
}

// writeHistory replaces the stored history that was read with number.
func (b *Broker) writeHistory(ctx context.Context, c *client, number uint64, h secret.History) error {
	if _, err := store.CompareAndSwap(ctx, b.store, c.keys.secrets, number, h.Stored()); err != nil {
		return err
	}
	c.secrets.saw(h)
	if err := b.changes.Raise(ctx); err != nil {
		b.log.Warn("a change of a client's secrets was stored, but not counted: other replicas may notice it late", "client", c.name, "error", err)
	}
	return nil
}

// changeHistory applies a change to the latest history of a client, in the store and here,
// and returns the resulting history. A change that returns its input writes nothing. It may
// run several times, until no concurrent write conflicts with it.
func (b *Broker) changeHistory(ctx context.Context, c *client, change func(secret.History) (secret.History, error)) (secret.History, error) {
	var made secret.History
	err := store.RetryOvertaken(func() error {
		entry, newest, err := b.readHistory(ctx, c)
		if err != nil {
			return err
		}
		newest = c.secrets.saw(newest)
		if made, err = change(newest); err != nil || made.ID == newest.ID {
			return err
		}
		return b.writeHistory(ctx, c, entry.Number, made)
	})
	return made, err
}

// pollSecrets checks whether another replica changed the secrets of a client, or the store
// lost them, and tries pending versions.
func (b *Broker) pollSecrets(ctx context.Context, round int) {
	count, moved, err := b.changes.Moved(ctx)
	kept := b.keptClients()
	if err != nil || moved || round%store.ReloadRounds == 0 { // the count may be on another server than the secrets
		if b.lookAtSecrets(ctx, kept...) && err == nil {
			b.changes.Seen.Store(count)
		}
	} else {
		b.lookAtSecrets(ctx, slices.DeleteFunc(slices.Clone(kept), func(c *client) bool { return c.secrets.now().loaded })...)
	}
	for _, c := range kept {
		b.tryWanted(c)
	}
}

// keptClients returns the clients with a history of their secrets.
func (b *Broker) keptClients() []*client {
	var kept []*client
	for _, c := range b.setup.Load().clients {
		if c.secrets.kept() {
			kept = append(kept, c)
		}
	}
	return kept
}

// lookAtSecrets reads the histories of clients, and reports whether the store returned all
// of them.
func (b *Broker) lookAtSecrets(ctx context.Context, clients ...*client) (complete bool) {
	return b.readClients(ctx, clients, historyChunk, func(c *client) string { return c.keys.secrets }, b.adoptHistory)
}
