package broker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/store"
)

// storeLogInterval is how far apart two log lines about the store are at least.
const storeLogInterval = 10 * time.Second

// meter counts what is asked of the store, and logs when it stops to answer and
// when it answers again.
type meter struct {
	store.Store

	calls *prometheus.CounterVec
	log   *slog.Logger

	mu       sync.Mutex
	down     bool
	loggedAt time.Time
}

func newMeter(s store.Store, log *slog.Logger) *meter {
	return &meter{Store: s, log: log, calls: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokenbroker_store_calls_total",
		Help: "Calls to the store, by operation and result: ok, or error. A hit makes none.",
	}, []string{"operation", "result"})}
}

func (m *meter) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	entries, err := m.Store.Get(ctx, keys...)
	m.called(ctx, "get", err)
	return entries, err
}

func (m *meter) Acquire(ctx context.Context, claim store.Claim) (store.Lease, bool, error) {
	lease, acquired, err := m.Store.Acquire(ctx, claim)
	m.called(ctx, "acquire", err)
	return lease, acquired, err
}

func (m *meter) Renew(ctx context.Context, lease store.Lease, ttl time.Duration) (bool, error) {
	held, err := m.Store.Renew(ctx, lease, ttl)
	m.called(ctx, "renew", err)
	return held, err
}

func (m *meter) Apply(ctx context.Context, change store.Change) ([]bool, error) {
	applied, err := m.Store.Apply(ctx, change)
	m.called(ctx, "apply", err)
	return applied, err
}

func (m *meter) Raise(ctx context.Context, key string, floor, by uint64) (uint64, error) {
	count, err := m.Store.Raise(ctx, key, floor, by)
	m.called(ctx, "raise", err)
	return count, err
}

// called notes how a call ended. One that was given up says nothing about the
// store.
func (m *meter) called(ctx context.Context, operation string, err error) {
	if err == nil {
		m.calls.WithLabelValues(operation, "ok").Inc()
	} else {
		m.calls.WithLabelValues(operation, "error").Inc()
	}
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if failed := err != nil; failed == m.down || time.Since(m.loggedAt) < storeLogInterval {
		return
	}
	m.down, m.loggedAt = err != nil, time.Now()
	if m.down {
		m.log.Warn("the store does not answer; tokens are served from memory, and missing ones are fetched by each replica for itself", "error", err)
	} else {
		m.log.Info("the store answers again")
	}
}
