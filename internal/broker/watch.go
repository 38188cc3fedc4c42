package broker

import (
	"context"
	"time"

	"github.com/cezzis/tokenbroker/internal/token"
)

// watchInterval is how often a watch looks at a token that is due for
// replacement.
const watchInterval = time.Second

// Watch answers ask with the token as it is now and again with each one that
// replaces it, until ctx ends, send fails, or there is no good token to be had
// any more. The error says which; it is an [*Error] but for that of send.
// MinTTL and Rejected are not for watches.
//
// A watch is demand: it keeps its token refreshed. While send blocks, tokens
// are not queued: the next one sent is the newest.
func (b *Broker) Watch(ctx context.Context, ask Ask, send func(Answer) error) error {
	c := b.clients[ask.Client]
	if c == nil {
		b.metrics.failed.Inc()
		return notEntitled(ask.Client)
	}
	e := b.watched(c, ask)
	defer e.unwatch(b)
	var last *token.Token
	for {
		replaced, purged := e.changed.next(), c.changed.next()
		answer, err := b.answer(ctx, e, ask)
		if err != nil {
			b.metrics.failed.Inc()
			return err
		}
		if last == nil || answer.Token.SHA256 != last.SHA256 {
			if err := send(b.metrics.counted(answer)); err != nil {
				return err
			}
		}
		last = answer.Token
		due := time.NewTimer(nextLook(last, time.Now()))
		select {
		case <-replaced:
		case <-purged:
		case <-due.C:
		case <-ctx.Done():
		case <-b.flying.Done():
		}
		due.Stop()
		switch {
		case ctx.Err() != nil:
			return gaveUp(ctx)
		case b.flying.Err() != nil:
			return ShuttingDown(c.name)
		}
	}
}

// nextLook is how long a watch may rest: until its token is due, then until the
// next try.
func nextLook(tok *token.Token, now time.Time) time.Duration {
	if wait := tok.RefreshAt.Sub(now); wait > 0 {
		return wait
	}
	return watchInterval
}

// watched returns the entry of ask, which stays where it is until unwatch.
func (b *Broker) watched(c *client, ask Ask) *entry {
	for {
		e := b.entryFor(c, ask)
		e.mu.Lock()
		if e.watches++; e.watches == 1 {
			e.bell = b.bells.hang(func() { e.replacements.tell(b.spawn, func() { _ = b.look(b.flying, e) }) }, e.tokenKey())
		}
		e.mu.Unlock()
		// It may have been evicted before it was marked.
		if b.entryFor(c, ask) == e {
			return e
		}
		e.unwatch(b)
	}
}

func (e *entry) unwatch(b *Broker) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.watches--; e.watches == 0 {
		b.bells.take(e.bell)
		e.bell = nil
	}
}

func (e *entry) watched() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.watches > 0
}

// lookAtWatched reads the tokens that are watched, in case the store did not
// tell that another replica replaced one.
func (b *Broker) lookAtWatched(ctx context.Context) {
	for _, e := range b.watchedEntries() {
		if ctx.Err() != nil {
			return
		}
		_ = b.look(ctx, e)
	}
}

func (b *Broker) watchedEntries() []*entry {
	var found []*entry
	for _, c := range b.clients {
		if c.entry.watched() {
			found = append(found, c.entry)
		}
	}
	b.entries.each(func(e *entry) {
		if e.watched() {
			found = append(found, e)
		}
	})
	return found
}
