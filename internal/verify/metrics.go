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
	return m, errors.Join(
		register(registerer, &m.keys), register(registerer, &m.skipped), register(registerer, &m.lastSuccess), register(registerer, &m.fetches),
	)
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
