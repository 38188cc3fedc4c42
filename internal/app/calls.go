package app

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/tracing"
)

// countCalls returns a function that counts a request to an IdP or issuer.
func countCalls(registerer prometheus.Registerer) func(tracing.Name) {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokenbroker_idp_calls_total",
		Help: "HTTP requests to IdPs and issuers, by operation: token, introspection, keys or metadata.",
	}, []string{"operation"})
	registerer.MustRegister(total)
	byName := map[tracing.Name]prometheus.Counter{
		tracing.Token: total.WithLabelValues("token"), tracing.Introspection: total.WithLabelValues("introspection"),
		tracing.Keys: total.WithLabelValues("keys"), tracing.Metadata: total.WithLabelValues("metadata"),
	}
	return func(name tracing.Name) {
		if counter := byName[name]; counter != nil {
			counter.Inc()
		}
	}
}
