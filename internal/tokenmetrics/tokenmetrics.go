// Package tokenmetrics counts the requests for tokens, the fetches from IdPs and the
// verifications of a broker.
package tokenmetrics

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// Metrics resolves its children in advance for cache hits, because looking them up costs
// more than counting. Labels come from the configuration and from fixed sets, never from a
// caller.
type Metrics struct {
	Memory, Shared, Fetched, Degraded, Failed atomic.Uint64 // requests for a token, by result
	Avoided                                   Avoided

	// Unreadable counts tokens in the store that this version cannot read.
	Unreadable prometheus.Counter

	fetches   *prometheus.CounterVec
	fetchTime prometheus.Histogram

	active, undecided prometheus.Counter
	rejected          [verify.Inactive + 1]prometheus.Counter // by reason
	verified          *prometheus.CounterVec                  // parent of those
}

// Avoided counts requests to IdPs that were not necessary. Requests that memory made
// unnecessary are not counted.
type Avoided struct {
	Shared  atomic.Uint64 // another replica had fetched the token
	Joined  atomic.Uint64 // the request waited for a fetch in progress
	Backoff atomic.Uint64 // a recent failure was returned
}

// New returns metrics at zero.
func New() *Metrics {
	verified := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokenbroker_verifications_total",
		Help: "Verifications, by result: active, undecided, or the reason of the rejection.",
	}, []string{"result"})
	m := &Metrics{
		Unreadable: prometheus.NewCounter(prometheus.CounterOpts{
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

//nolint:gochecknoglobals // descriptors are constants that Go cannot express as such
var (
	requestsDesc = prometheus.NewDesc("tokenbroker_token_requests_total",
		"Requests for a token, by result: memory, shared, fetched, degraded or failed.", []string{"result"}, nil)
	avoidedDesc = prometheus.NewDesc("tokenbroker_idp_calls_avoided_total",
		"Requests for a token that needed no call to the IdP, by reason: memory, shared, joined or backoff.", []string{"reason"}, nil)
)

// Describe implements [prometheus.Collector].
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	out <- requestsDesc
	out <- avoidedDesc
	m.fetches.Describe(out)
	m.fetchTime.Describe(out)
	m.verified.Describe(out)
	m.Unreadable.Describe(out)
}

// Answered counts a request that got a token.
func (m *Metrics) Answered(origin string, degraded bool) {
	switch {
	case degraded:
		m.Degraded.Add(1)
	case origin == "fetched":
		m.Fetched.Add(1)
	case origin == "shared":
		m.Shared.Add(1)
	default:
		m.Memory.Add(1)
	}
}

// Fetch counts a request to an IdP and its result.
func (m *Metrics) Fetch(client string, took time.Duration, err error) {
	m.fetchTime.Observe(took.Seconds())
	result := "ok"
	if err != nil {
		result = idp.ClassOf(err).String()
	}
	m.fetches.WithLabelValues(client, result).Inc()
}

// StartAtZero creates the series of refusals of each client, so that an alert sees the
// first one, and deletes the series of clients that are no longer configured.
func (m *Metrics) StartAtZero(clients, before []string) {
	current := make(map[string]bool, len(clients))
	for _, name := range clients {
		current[name] = true
		for _, class := range []idp.Class{idp.CredentialRefused, idp.RequestRefused, idp.Throttled} {
			m.fetches.WithLabelValues(name, class.String())
		}
	}
	for _, name := range before {
		if !current[name] {
			m.fetches.DeletePartialMatch(prometheus.Labels{"client": name})
		}
	}
}

// Verification counts a verification and its result.
func (m *Metrics) Verification(result verify.Result, err error) {
	switch {
	case err != nil:
		m.undecided.Inc()
	case result.Rejection != nil:
		m.rejected[result.Rejection.Reason].Inc()
	default:
		m.active.Inc()
	}
}

// Collect implements [prometheus.Collector].
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	m.fetches.Collect(out)
	m.fetchTime.Collect(out)
	m.verified.Collect(out)
	m.Unreadable.Collect(out)
	for result, count := range map[string]*atomic.Uint64{
		"memory": &m.Memory, "shared": &m.Shared, "fetched": &m.Fetched, "degraded": &m.Degraded, "failed": &m.Failed,
	} {
		out <- prometheus.MustNewConstMetric(requestsDesc, prometheus.CounterValue, float64(count.Load()), result)
	}
	for reason, count := range map[string]*atomic.Uint64{
		"memory": &m.Memory, "shared": &m.Avoided.Shared, "joined": &m.Avoided.Joined, "backoff": &m.Avoided.Backoff,
	} {
		out <- prometheus.MustNewConstMetric(avoidedDesc, prometheus.CounterValue, float64(count.Load()), reason)
	}
}
