package broker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/credential"
)

// counted counts an answer and returns it.
func (b *Broker) counted(a Answer) Answer {
	b.metrics.Answered(a.Origin.String(), a.Degraded)
	return a
}

// clientCollector collects the state of clients at scrape time, so that the token path
// keeps no gauges up to date.
type clientCollector struct{ broker *Broker }

//nolint:gochecknoglobals // descriptors are constants that Go cannot express as such
var (
	expiryDesc = prometheus.NewDesc("tokenbroker_token_expiry_timestamp_seconds",
		"When the token for a client's own audience and scopes expires; absent while none is held.", []string{"client"}, nil)
	backoffDesc = prometheus.NewDesc("tokenbroker_client_backoff",
		"1 while the broker sends no requests to the IdP because the IdP refused the client or throttles it, else 0.", []string{"client"}, nil)
	entriesDesc = prometheus.NewDesc("tokenbroker_cache_entries",
		"Entries of the token cache, besides those for the clients' own audience and scopes.", nil, nil)
	subjectsDesc = prometheus.NewDesc("tokenbroker_cache_subject_entries", "Entries of the token cache on behalf of subjects, failures included.", nil, nil)
)

func (c clientCollector) Describe(out chan<- *prometheus.Desc) {
	out <- expiryDesc
	out <- backoffDesc
	out <- entriesDesc
	out <- subjectsDesc
	credential.Describe(out)
}

func (c clientCollector) Collect(out chan<- prometheus.Metric) {
	now := time.Now()
	for _, client := range c.broker.setup.Load().clients {
		if tok := client.entry.token.Load(); tok != nil {
			out <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, float64(tok.ExpiresAt.Unix()), client.name)
		}
		backoff := 0.0
		if client.failure.Load().Active(now) || client.secrets.View().Refusal(now) != nil {
			backoff = 1
		}
		out <- prometheus.MustNewConstMetric(backoffDesc, prometheus.GaugeValue, backoff, client.name)
		client.secrets.Collect(out)
	}
	out <- prometheus.MustNewConstMetric(entriesDesc, prometheus.GaugeValue, float64(c.broker.entries.Len()))
	out <- prometheus.MustNewConstMetric(subjectsDesc, prometheus.GaugeValue, float64(c.broker.subjects.Len()))
}
