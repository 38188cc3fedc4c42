package broker

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// metrics resolves its children in advance for cache hits, because looking them up costs
// more than counting. Labels come from the configuration and from fixed sets, never from a
// caller.
type metrics struct {
	memory, shared, fetched, degraded, failed atomic.Uint64 // requests for a token, by result
	avoided                                   avoidedCalls

	// unreadable counts tokens in the store that this version cannot read.
	unreadable prometheus.Counter

	fetches   *prometheus.CounterVec
	fetchTime prometheus.Histogram

	active, undecided prometheus.Counter
	rejected          [verify.Inactive + 1]prometheus.Counter // by reason
	verified          *prometheus.CounterVec                  // parent of those
}

// avoidedCalls counts requests to IdPs that were not necessary, besides those that memory
// avoided.
type avoidedCalls struct {
	shared  atomic.Uint64 // another replica had fetched the token
	joined  atomic.Uint64 // the request waited for a fetch in progress
	backoff atomic.Uint64 // a recent failure was returned
}

func newMetrics() *metrics {
	verified := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokenbroker_verifications_total",
		Help: "Verifications, by result: active, undecided, or the reason of the rejection.",
	}, []string{"result"})
	m := &metrics{
		unreadable: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tokenbroker_store_unreadable_total",
			Help: "Tokens in the store in a form that this version of the broker does not know.",
		}),
		fetches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenbroker_idp_fetches_total",
			Help: "Token fetches from IdPs, by client and result: ok, or the class of the failure.",
		}, []string{"client", "result"}),
		fetchTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "tokenbroker_idp_fetch_duration_seconds",
			Help:    "How long token fetches from IdPs took, retries included.",
			Buckets: []float64{.025, .05, .1, .25, .5, 1, 2, 4, 8, 10},
		}),
		active:    verified.WithLabelValues("active"),
		undecided: verified.WithLabelValues("undecided"),
		verified:  verified,
	}
	for reason := verify.Malformed; reason <= verify.Inactive; reason++ {
		m.rejected[reason] = verified.WithLabelValues(reason.String())
	}
	return m
}

func (m *metrics) register(registerer prometheus.Registerer, b *Broker) {
	if registerer == nil {
		return
	}
	registerer.MustRegister(m.fetches, m.fetchTime, m.verified, m.unreadable, b.store, b.revocations.Set, clientCollector{b})
}

// counted counts an answer and returns it.
func (m *metrics) counted(a Answer) Answer {
	switch {
	case a.Degraded:
		m.degraded.Add(1)
	case a.Origin == OriginFetched:
		m.fetched.Add(1)
	case a.Origin == OriginShared:
		m.shared.Add(1)
	default:
		m.memory.Add(1)
	}
	return a
}

func (m *metrics) fetch(client string, took time.Duration, err error) {
	m.fetchTime.Observe(took.Seconds())
	result := "ok"
	if err != nil {
		result = idp.ClassOf(err).String()
	}
	m.fetches.WithLabelValues(client, result).Inc()
}

// startAtZero creates the series of refusals of each client, so that an alert sees the
// first one, and deletes the series of clients that are no longer configured.
func (m *metrics) startAtZero(clients, before map[string]*client) {
	for name := range clients {
		for _, class := range []idp.Class{idp.CredentialRefused, idp.RequestRefused, idp.Throttled} {
			m.fetches.WithLabelValues(name, class.String())
		}
	}
	for name := range before {
		if clients[name] == nil {
			m.fetches.DeletePartialMatch(prometheus.Labels{"client": name})
		}
	}
}

func (m *metrics) verification(result verify.Result, err error) {
	switch {
	case err != nil:
		m.undecided.Inc()
	case result.Rejection != nil:
		m.rejected[result.Rejection.Reason].Inc()
	default:
		m.active.Inc()
	}
}

// clientCollector collects the state of clients at scrape time, so that the token path
// keeps no gauges up to date.
type clientCollector struct{ broker *Broker }

//nolint:gochecknoglobals // descriptors are constants that Go cannot express as such
var (
	requestsDesc = prometheus.NewDesc("tokenbroker_token_requests_total",
		"Requests for a token, by result: memory, shared, fetched, degraded or failed.", []string{"result"}, nil)
	avoidedDesc = prometheus.NewDesc("tokenbroker_idp_calls_avoided_total",
		"Requests for a token that needed no call to the IdP, by reason: memory, shared, joined or backoff.", []string{"reason"}, nil)
	expiryDesc = prometheus.NewDesc("tokenbroker_token_expiry_timestamp_seconds",
		"When the token for a client's own audience and scopes expires; absent while none is held.", []string{"client"}, nil)
	backoffDesc = prometheus.NewDesc("tokenbroker_client_backoff",
		"1 while the broker sends no requests to the IdP because the IdP refused the client or throttles it, else 0.", []string{"client"}, nil)
	entriesDesc = prometheus.NewDesc("tokenbroker_cache_entries",
		"Entries of the token cache, besides those for the clients' own audience and scopes.", nil, nil)
)

func (c clientCollector) Describe(out chan<- *prometheus.Desc) {
	out <- requestsDesc
	out <- avoidedDesc
	out <- expiryDesc
	out <- backoffDesc
	out <- entriesDesc
	credential.Describe(out)
}

func (c clientCollector) Collect(out chan<- prometheus.Metric) {
	c.broker.metrics.collectRequests(out)
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
}

func (m *metrics) collectRequests(out chan<- prometheus.Metric) {
	for result, count := range map[string]*atomic.Uint64{
		"memory": &m.memory, "shared": &m.shared, "fetched": &m.fetched, "degraded": &m.degraded, "failed": &m.failed,
	} {
		out <- prometheus.MustNewConstMetric(requestsDesc, prometheus.CounterValue, float64(count.Load()), result)
	}
	for reason, count := range map[string]*atomic.Uint64{
		"memory": &m.memory, "shared": &m.avoided.shared, "joined": &m.avoided.joined, "backoff": &m.avoided.backoff,
	} {
		out <- prometheus.MustNewConstMetric(avoidedDesc, prometheus.CounterValue, float64(count.Load()), reason)
	}
}
