package verify

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/verify/jwks"
)

// metrics are labelled with configured issuers only, never with a text from a token:
// otherwise anyone could create series.
type metrics struct {
	keys, skipped, lastSuccess *prometheus.GaugeVec
	fetches                    *prometheus.CounterVec
	introspections, avoided    *prometheus.CounterVec
	cache                      cacheMetrics
}

// cacheMetrics are the metrics of [factsCache].
type cacheMetrics struct {
	hits, misses prometheus.Counter
	bytes        prometheus.Gauge
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	if registerer == nil {
		registerer = prometheus.NewRegistry()
	}
	m := &metrics{
		keys:        gauge("jwks_keys", "Usable keys of an issuer."),
		skipped:     gauge("jwks_keys_skipped", "Unusable entries of an issuer's JWK set."),
		lastSuccess: gauge("jwks_last_success_timestamp_seconds", "Time of the last successful fetch of an issuer's keys, in Unix seconds; 0 if none."),
		fetches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenbroker_jwks_fetches_total", Help: "Fetches of an issuer's JWK set by result: success or failure.",
		}, []string{"issuer", "result"}),
	}
	m.introspections = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokenbroker_introspections_total", Help: "Introspection requests for opaque tokens by result: active, inactive or failure.",
	}, []string{"issuer", "result"})
	m.avoided = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokenbroker_introspections_avoided_total", Help: "Opaque tokens that needed no introspection request, because the result was cached or another request was in progress.",
	}, []string{"issuer"})
	lookups := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokenbroker_verify_cache_lookups_total", Help: "Cache lookups of presented JWTs by result: hit (the signature was verified before) or miss.",
	}, []string{"result"})
	m.cache.bytes = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "tokenbroker_verify_cache_bytes", Help: "Memory used by cached facts of verified JWTs.",
	})
	err := errors.Join(
		register(registerer, &m.keys), register(registerer, &m.skipped), register(registerer, &m.lastSuccess), register(registerer, &m.fetches),
		register(registerer, &m.introspections), register(registerer, &m.avoided), register(registerer, &lookups), register(registerer, &m.cache.bytes),
	)
	m.cache.hits, m.cache.misses = lookups.WithLabelValues("hit"), lookups.WithLabelValues("miss")
	return m, err
}

func gauge(name, help string) *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tokenbroker_" + name, Help: help}, []string{"issuer"})
}

// register registers a collector, or sets *collector to the registered one, so that a
// Verifier continues the series of its predecessor.
func register[C prometheus.Collector](registerer prometheus.Registerer, collector *C) error {
	err := registerer.Register(*collector)
	if registered, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if existing, ok := registered.ExistingCollector.(C); ok {
			*collector = existing
			return nil
		}
	}
	return err
}

// introspectionMetrics are the introspection series of one issuer.
type introspectionMetrics struct{ active, inactive, failure, avoided prometheus.Counter }

func (m *metrics) introspectionForIssuer(issuer string) introspectionMetrics {
	return introspectionMetrics{
		active:   m.introspections.WithLabelValues(issuer, "active"),
		inactive: m.introspections.WithLabelValues(issuer, "inactive"),
		failure:  m.introspections.WithLabelValues(issuer, "failure"),
		avoided:  m.avoided.WithLabelValues(issuer),
	}
}

// delete deletes the series of an issuer.
func (m *metrics) delete(issuer string) {
	labels := prometheus.Labels{"issuer": issuer}
	for _, gauge := range []*prometheus.GaugeVec{m.keys, m.skipped, m.lastSuccess} {
		gauge.DeletePartialMatch(labels)
	}
	m.fetches.DeletePartialMatch(labels)
	m.introspections.DeletePartialMatch(labels)
	m.avoided.DeletePartialMatch(labels)
}

func (m *metrics) forIssuer(issuer string) jwks.Metrics {
	return jwks.Metrics{
		Keys:        m.keys.WithLabelValues(issuer),
		Skipped:     m.skipped.WithLabelValues(issuer),
		LastSuccess: m.lastSuccess.WithLabelValues(issuer),
		Success:     m.fetches.WithLabelValues(issuer, "success"),
		Failure:     m.fetches.WithLabelValues(issuer, "failure"),
	}
}
