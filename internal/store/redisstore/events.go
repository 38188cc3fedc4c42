package redisstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cezzis/tokenbroker/internal/store"
)

const (
	redisPing   = time.Second            // interval between pings of the subscription
	redisSilent = 3 * time.Second        // after which its connection counts as dead
	redisPause  = 200 * time.Millisecond // on average, before it connects anew
)

// Subscribe implements Store. All subscribers share one connection, which is made at the
// first call and renewed until r is closed.
func (r *Store) Subscribe(ctx context.Context) <-chan string {
	events := make(chan string, store.EventBuffer)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		close(events)
		return events
	}
	r.subscribers[events] = context.AfterFunc(ctx, func() { r.unsubscribe(events) })
	if !r.listening {
		r.listening = true
		r.listener.Go(r.listen)
	}
	return events
}

func (r *Store) unsubscribe(events chan string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, there := r.subscribers[events]; there {
		delete(r.subscribers, events)
		close(events)
	}
}

// tell notifies the subscribers of a change. It never waits for them.
func (r *Store) tell(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for events := range r.subscribers {
		select {
		case events <- key:
		default:
		}
	}
}

func (r *Store) channel() string { return r.config.Prefix + "ev" }

// listen keeps a subscription until r is closed.
func (r *Store) listen() {
	for r.ctx.Err() == nil {
		heard, err := r.hear()
		if heard && r.ctx.Err() == nil {
			r.logger.Warn("The subscription to Redis was lost, and is made anew", "error", redisSay(err))
		}
		if cluster, ok := r.client.(*redis.ClusterClient); ok {
			cluster.ReloadState(r.ctx)
		}
		pause := time.NewTimer(redisPause/2 + rand.N(redisPause))
		select {
		case <-pause.C:
		case <-r.ctx.Done():
			pause.Stop()
		}
	}
}

// hear passes on the messages of one connection, until that ends. It reports whether the
// subscription was ever active.
func (r *Store) hear() (heard bool, err error) {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	subscription := r.shards.subscribe(ctx, r.client)
	if err := subscription.Subscribe(ctx, r.channel()); err != nil {
		return false, errors.Join(err, subscription.Close())
	}
	// A Receive ends when the subscription is closed, not with its context. A connection
	// may also die silently: then the pings get no response.
	context.AfterFunc(ctx, func() { _ = subscription.Close() })
	silence := time.AfterFunc(redisSilent, cancel)
	defer silence.Stop()
	r.listener.Go(func() { redisKeepAlive(ctx, subscription) })
	for {
		message, err := subscription.Receive(ctx)
		if err != nil {
			return heard, err
		}
		silence.Reset(redisSilent)
		switch message := message.(type) {
		case *redis.Subscription:
			heard = true
		case *redis.Message:
			r.pass(message)
		}
	}
}

func redisKeepAlive(ctx context.Context, subscription *redis.PubSub) {
	ticker := time.NewTicker(redisPing)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			_ = subscription.Ping(ctx) // a failed ping shows as silence
		}
	}
}

// pass reports a change, unless the message is not from a store: any client may publish.
func (r *Store) pass(message *redis.Message) {
	key, ours := strings.CutPrefix(message.Payload, r.config.Prefix)
	if ours && store.CheckKey(key) == nil {
		r.tell(key)
	}
}
