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
	pingInterval   = time.Second            // interval between pings of the subscription
	silenceLimit   = 3 * time.Second        // after which its connection counts as dead
	reconnectPause = 200 * time.Millisecond // on average, before it connects anew
)

// Subscribe implements Store. All subscribers share one connection, which is made at the
// first call and renewed until r is closed.
func (r *Store) Subscribe(ctx context.Context) <-chan string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() == nil && !r.listening {
		r.listening = true
		r.listener.Go(r.listen)
	}
	return r.events.Subscribe(ctx)
}

func (r *Store) channel() string { return r.config.Prefix + "ev" }

// listen keeps a subscription until r is closed.
func (r *Store) listen() {
	for r.ctx.Err() == nil {
		active, err := r.receive()
		if active && r.ctx.Err() == nil {
			r.logger.Warn("the subscription to Redis was lost and is renewed", "error", describe(err))
		}
		if cluster, ok := r.client.(*redis.ClusterClient); ok {
			cluster.ReloadState(r.ctx)
		}
		pause := time.NewTimer(reconnectPause/2 + rand.N(reconnectPause))
		select {
		case <-pause.C:
		case <-r.ctx.Done():
			pause.Stop()
		}
	}
}

// hear passes on the messages of one connection, until that ends. It reports whether the
// subscription was ever active.
func (r *Store) receive() (active bool, err error) {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	subscription := r.shards.subscribe(ctx, r.client)
	if err := subscription.Subscribe(ctx, r.channel()); err != nil {
		return false, errors.Join(err, subscription.Close())
	}
	// A Receive ends when the subscription is closed, not with its context. A connection
	// may also die silently: then the pings get no response.
	context.AfterFunc(ctx, func() { _ = subscription.Close() })
	silence := time.AfterFunc(silenceLimit, cancel)
	defer silence.Stop()
	r.listener.Go(func() { keepAlive(ctx, subscription) })
	for {
		message, err := subscription.Receive(ctx)
		if err != nil {
			return active, err
		}
		silence.Reset(silenceLimit)
		switch message := message.(type) {
		case *redis.Subscription:
			active = true
		case *redis.Message:
			r.forward(message)
		}
	}
}

func keepAlive(ctx context.Context, subscription *redis.PubSub) {
	ticker := time.NewTicker(pingInterval)
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
func (r *Store) forward(message *redis.Message) {
	key, ours := strings.CutPrefix(message.Payload, r.config.Prefix)
	if ours && store.CheckKey(key) == nil {
		r.events.Notify(key)
	}
}
