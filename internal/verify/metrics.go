package verify

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are labelled with the names of configured issuers, never with what a
// token says.
type metrics struct {
	keys, skipped, lastSuccess *prometheus.GaugeVec
	fetches                    *prometheus.CounterVec
	introspections             *prometheus.CounterVec
	cache                      cacheMetrics
}

// cacheMetrics are those of the facts that are remembered.
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
		skipped:     gauge("jwks_keys_skipped", "Entries of an issuer's JWK set that are not usable."),
		lastSuccess: gauge("jwks_last_success_timestamp_seconds", "When an issuer's keys were last fetched; 0: never."),
		fetches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenbroker_jwks_fetches_total", Help: "Fetches of an issuer's keys by result: success or failure.",
		}, []string{"issuer", "result"}),
	}
	m.introspections = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokenbroker_introspections_total", Help: "Questions to an issuer about an opaque token by result: active, inactive or failure.",
	}, []string{"issuer", "result"})
	lookups := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokenbroker_verify_cache_lookups_total", Help: "Presented JWTs by result: hit (verified before, and not again) or miss.",
	}, []string{"result"})
	m.cache.bytes = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "tokenbroker_verify_cache_bytes", Help: "Memory taken up by what is remembered of verified JWTs.",
	})
	err := errors.Join(
		register(registerer, &m.keys), register(registerer, &m.skipped), register(registerer, &m.lastSuccess), register(registerer, &m.fetches),
		register(registerer, &m.introspections), register(registerer, &lookups), register(registerer, &m.cache.bytes),
	)
	m.cache.hits, m.cache.misses = lookups.WithLabelValues("hit"), lookups.WithLabelValues("miss")
	return m, err
}

func gauge(name, help string) *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tokenbroker_" + name, Help: help}, []string{"issuer"})
}

// register puts in place of the collector the one that is registered already:
// a Verifier that replaces another goes on with its series.
func register[C prometheus.Collector](registerer prometheus.Registerer, collector *C) error {
	err := registerer.Register(*collector)
	if registered, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if existing, same := registered.ExistingCollector.(C); same {
			*collector = existing
			return nil
		}
	}
	return err
}

// introspectionMetrics are the series of the issuer that is asked about opaque
// tokens.
type introspectionMetrics struct{ active, inactive, failure prometheus.Counter }

func (m *metrics) introspectionOf(issuer string) introspectionMetrics {
	return introspectionMetrics{
		active:   m.introspections.WithLabelValues(issuer, "active"),
		inactive: m.introspections.WithLabelValues(issuer, "inactive"),
		failure:  m.introspections.WithLabelValues(issuer, "failure"),
	}
}

// forget ends the series of an issuer.
func (m *metrics) forget(issuer string) {
	of := prometheus.Labels{"issuer": issuer}
	for _, gauge := range []*prometheus.GaugeVec{m.keys, m.skipped, m.lastSuccess} {
		gauge.DeletePartialMatch(of)
	}
	m.fetches.DeletePartialMatch(of)
	m.introspections.DeletePartialMatch(of)
}

// issuerMetrics are the series of one issuer.
type issuerMetrics struct {
	keys, skipped, lastSuccess prometheus.Gauge
	success, failure           prometheus.Counter
}

func (m *metrics) of(issuer string) issuerMetrics {
	return issuerMetrics{
		keys:        m.keys.WithLabelValues(issuer),
		skipped:     m.skipped.WithLabelValues(issuer),
		lastSuccess: m.lastSuccess.WithLabelValues(issuer),
		success:     m.fetches.WithLabelValues(issuer, "success"),
		failure:     m.fetches.WithLabelValues(issuer, "failure"),
	}
}
