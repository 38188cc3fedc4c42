package store

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// storeSteady is the minimum time between changes of a store's recorded health, so that
// metric and log do not flap.
const storeSteady = 10 * time.Second

// Metered is a Store that counts the calls of another store and exposes its health. A
// store on several servers, such as Redis, knows the health of each and logs its
// changes; the health of any other store follows from its last calls, reads and writes
// apart.
type Metered struct {
	Store

	calls *prometheus.CounterVec
	lost  prometheus.Counter
	// health of the servers; nil: the store does not report it.
	health func() []Health

	reads, writes operations
}

// NewMetered returns a Metered over s. It logs when the store fails and when it works
// again.
func NewMetered(s Store, log *slog.Logger) *Metered {
	m := &Metered{
		Store: s,
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenbroker_store_calls_total",
			Help: "Calls to the store by operation and result: ok or error. A token from memory needs no call.",
		}, []string{"operation", "result"}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tokenbroker_store_leases_lost_total",
			Help: "Leases that ended before their holder released them, because the store evicted or lost them.",
		}),
		reads:  operations{log: log, down: "the store cannot be read; tokens are served from memory, and missing ones are fetched by each replica for itself", up: "the store can be read again"},
		writes: operations{log: log, down: "the store takes no writes; missing tokens are fetched by each replica for itself, and purges, revocations and changes of secrets fail", up: "the store takes writes again"},
	}
	for _, operation := range []string{"get", "acquire", "renew", "apply", "raise"} {
		for _, result := range []string{"ok", "error"} {
			m.calls.WithLabelValues(operation, result) // visible before the first call
		}
	}
	if healthy, tells := s.(interface{ Health() []Health }); tells && healthy.Health() != nil {
		m.health = healthy.Health
	}
	return m
}

// Get reads entries and counts the result.
func (m *Metered) Get(ctx context.Context, keys ...string) ([]Entry, error) {
	entries, err := m.Store.Get(ctx, keys...)
	m.called(ctx, "get", &m.reads, err)
	return entries, err
}

// Acquire claims a lease and counts the result.
func (m *Metered) Acquire(ctx context.Context, claim Claim) (Claimed, error) {
	claimed, err := m.Store.Acquire(ctx, claim)
	m.called(ctx, "acquire", &m.writes, err)
	return claimed, err
}

// Renew extends a lease. It counts the result, and a lease that was lost.
func (m *Metered) Renew(ctx context.Context, lease Lease, ttl time.Duration) (bool, error) {
	held, err := m.Store.Renew(ctx, lease, ttl)
	m.called(ctx, "renew", &m.writes, err)
	if err == nil && !held {
		m.lost.Inc()
	}
	return held, err
}

// Apply makes a change and counts the result.
func (m *Metered) Apply(ctx context.Context, change Change) ([]bool, error) {
	applied, err := m.Store.Apply(ctx, change)
	m.called(ctx, "apply", &m.writes, err)
	return applied, err
}

// Raise raises a counter and counts the result.
func (m *Metered) Raise(ctx context.Context, key string, floor, by uint64) (uint64, error) {
	count, err := m.Store.Raise(ctx, key, floor, by)
	m.called(ctx, "raise", &m.writes, err)
	return count, err
}

// called records the result of a call. A call that its caller gave up says nothing about
// the store.
func (m *Metered) called(ctx context.Context, operation string, of *operations, err error) {
	if err == nil {
		m.calls.WithLabelValues(operation, "ok").Inc()
	} else {
		m.calls.WithLabelValues(operation, "error").Inc()
	}
	if m.health == nil && (err == nil || !errors.Is(ctx.Err(), context.Canceled)) {
		of.ended(err)
	}
}

// operations is the health of a store's reading or writing calls.
type operations struct {
	log      *slog.Logger
	down, up string // log messages

	mu      sync.Mutex
	failing bool
	changed time.Time
}

func (o *operations) ended(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if failed := err != nil; failed == o.failing || time.Since(o.changed) < storeSteady {
		return
	}
	o.failing, o.changed = err != nil, time.Now()
	if o.failing {
		o.log.Warn(o.down, "error", err)
	} else {
		o.log.Info(o.up)
	}
}

func (o *operations) ok() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.failing
}

//nolint:gochecknoglobals // a descriptor is a constant that Go cannot express as such
var storeUpDesc = prometheus.NewDesc("tokenbroker_store_up",
	"1 while the store serves reads or writes, else 0. The shard is a Redis server; it is empty for other stores.",
	[]string{"operation", "shard"}, nil)

// Describe implements prometheus.Collector.
func (m *Metered) Describe(out chan<- *prometheus.Desc) {
	m.calls.Describe(out)
	m.lost.Describe(out)
	out <- storeUpDesc
}

// Collect implements prometheus.Collector.
func (m *Metered) Collect(out chan<- prometheus.Metric) {
	m.calls.Collect(out)
	m.lost.Collect(out)
	for _, one := range m.Servers() {
		out <- prometheus.MustNewConstMetric(storeUpDesc, prometheus.GaugeValue, oneIf(one.Reads), "read", one.Shard)
		out <- prometheus.MustNewConstMetric(storeUpDesc, prometheus.GaugeValue, oneIf(one.Writes), "write", one.Shard)
	}
}

// Servers returns the health of the store's servers. A store that does not report it has
// one, without a name.
func (m *Metered) Servers() []Health {
	if m.health != nil {
		return m.health()
	}
	return []Health{{Reads: m.reads.ok(), Writes: m.writes.ok()}}
}

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
