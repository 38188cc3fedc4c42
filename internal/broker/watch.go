package broker

import (
	"context"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/token"
	"github.com/cezzis/tokenbroker/internal/tokenerror"
)

// watchInterval is how often a watch checks a token that is due for replacement.
const watchInterval = time.Second

// Watch sends the current token for ask, and each one that replaces it, until ctx ends,
// send fails, the caller may no longer have it, or no valid token is available. The error
// is an [*apierror.Error], except for errors of send and who. Watch calls who to identify
// the caller before each answer and after each [Broker.Apply]. It ignores MinTTL and
// Rejected.
//
// A watch is demand: it keeps its token refreshed. While send blocks, tokens are not
// queued: the next one sent is the newest.
func (b *Broker) Watch(ctx context.Context, who func() (*policy.Caller, error), ask Ask, send func(Answer) error) error {
	var last *token.Token
	for {
		applied := b.applied.Next()
		caller, err := who()
		if err != nil {
			return err
		}
		c, full, denied := b.admit(ctx, caller, ask)
		if denied != nil {
			b.metrics.Failed.Add(1)
			return denied
		}
		e := b.watched(c, full)
		last, err = b.watch(ctx, e, watching{who, ask, send, applied, last})
		e.unwatch()
		if err != nil {
			return err
		}
	}
}

// watching is a watch of one entry, until the next configuration is applied.
type watching struct {
	who     func() (*policy.Caller, error)
	ask     Ask
	send    func(Answer) error
	applied <-chan struct{}
	last    *token.Token
}

func (b *Broker) watch(ctx context.Context, e *entry, w watching) (last *token.Token, err error) {
	last = w.last
	for {
		replaced, purged := e.changed.Next(), e.client.counters.Changed.Next()
		answer, err := b.answer(ctx, e, w.ask)
		if err != nil {
			b.metrics.Failed.Add(1)
			return last, err
		}
		if err := b.pass(ctx, e, w, answer, last); err != nil {
			return last, err
		}
		last = answer.Token
		due := time.NewTimer(nextLook(last, time.Now()))
		select {
		case <-replaced:
		case <-purged:
		case <-due.C:
		case <-w.applied:
		case <-ctx.Done():
		case <-b.flying.Done():
		}
		due.Stop()
		select {
		case <-w.applied:
			return last, nil
		default:
		}
		switch {
		case ctx.Err() != nil:
			return last, apierror.GaveUp(ctx)
		case b.flying.Err() != nil:
			return last, tokenerror.ShuttingDown(e.client.name)
		}
	}
}

// pass sends an answer unless it repeats the last one. The caller must still be identified
// and allowed to have the token.
func (b *Broker) pass(ctx context.Context, e *entry, w watching, answer Answer, last *token.Token) error {
	caller, err := w.who()
	if err != nil {
		return err
	}
	if denied := b.mayHave(ctx, caller, e, answer.Token); denied != nil {
		b.metrics.Failed.Add(1)
		return denied
	}
	if last != nil && answer.Token.SHA256 == last.SHA256 {
		return nil
	}
	if unwritten := b.recordGiven(ctx, caller, e, answer); unwritten != nil {
		b.metrics.Failed.Add(1)
		return unwritten
	}
	return w.send(b.counted(answer))
}

// nextLook returns how long a watch may wait: until its token is due, then until the next
// attempt.
func nextLook(tok *token.Token, now time.Time) time.Duration {
	if wait := tok.RefreshAt.Sub(now); wait > 0 {
		return wait
	}
	return watchInterval
}

// watched returns the entry of a resolved request, which stays in the cache until unwatch.
func (b *Broker) watched(c *client, full idp.Request) *entry {
	for {
		e := b.entryFor(c, full)
		e.mu.Lock()
		if e.watches++; e.watches == 1 {
			e.subscription = b.subscriptions.Subscribe(func() { e.replacements.Run(b.spawn, func() { _ = b.synchronize(b.flying, e) }) }, e.tokenKey())
		}
		e.mu.Unlock()
		// It may have been evicted before it was marked.
		if b.entryFor(c, full) == e {
			return e
		}
		e.unwatch()
	}
}

func (e *entry) unwatch() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.watches--; e.watches == 0 {
		e.subscription.Close()
		e.subscription = nil
	}
}

func (e *entry) watched() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.watches > 0
}

// lookAtWatched reads the watched tokens, in case the store did not notify this replica of
// a replacement.
func (b *Broker) lookAtWatched(ctx context.Context) {
	for _, e := range b.watchedEntries() {
		if ctx.Err() != nil {
			return
		}
		_ = b.synchronize(ctx, e)
	}
}

func (b *Broker) watchedEntries() []*entry {
	var listed []*entry
	b.eachEntry(func(e *entry) {
		if e.watched() {
			listed = append(listed, e)
		}
	})
	return listed
}
