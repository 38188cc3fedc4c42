package broker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// metrics resolves its children in advance for cache hits, because looking them up costs
// more than counting. Labels come from the configuration and from fixed sets, never from a
// caller.
type metrics struct {
	memory, shared, fetched, degraded, failed prometheus.Counter

	answers *prometheus.CounterVec // parent of those five
	// unreadable counts tokens in the store that this version cannot read.
	unreadable prometheus.Counter

	fetches   *prometheus.CounterVec
	fetchTime prometheus.Histogram

	active, undecided prometheus.Counter
	rejected          [verify.Inactive + 1]prometheus.Counter // by reason
	verified          *prometheus.CounterVec                  // parent of those
}

func newMetrics() *metrics {
	answers := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokenbroker_get_token_total",
		Help: "Requests for a token, by result: memory, shared, fetched, degraded or failed.",
	}, []string{"result"})
	verified := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokenbroker_verify_token_total",
		Help: "Verifications, by result: active, undecided, or the reason of the rejection.",
	}, []string{"result"})
	m := &metrics{
		memory:   answers.WithLabelValues("memory"),
		shared:   answers.WithLabelValues("shared"),
		fetched:  answers.WithLabelValues("fetched"),
		degraded: answers.WithLabelValues("degraded"),
		failed:   answers.WithLabelValues("failed"),
		answers:  answers,
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
	registerer.MustRegister(m.answers, m.fetches, m.fetchTime, m.verified, m.unreadable, b.store, b.revocations.Set, clientCollector{b})
}

// counted counts an answer and returns it.
func (m *metrics) counted(a Answer) Answer {
	switch {
	case a.Degraded:
		m.degraded.Inc()
	case a.Origin == OriginFetched:
		m.fetched.Inc()
	case a.Origin == OriginShared:
		m.shared.Inc()
	default:
		m.memory.Inc()
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
	expiryDesc = prometheus.NewDesc("tokenbroker_token_expiry_timestamp_seconds",
		"When the token for a client's own audience and scopes expires; absent while none is held.", []string{"client"}, nil)
	backoffDesc = prometheus.NewDesc("tokenbroker_client_backoff",
		"1 while the broker sends no requests to the IdP because the IdP refused the client or throttles it, else 0.", []string{"client"}, nil)
	entriesDesc = prometheus.NewDesc("tokenbroker_cache_entries",
		"Entries of the token cache, besides those for the clients' own audience and scopes.", nil, nil)
)

func (c clientCollector) Describe(out chan<- *prometheus.Desc) {
	out <- expiryDesc
	out <- backoffDesc
	out <- entriesDesc
	describeSecrets(out)
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
		collectSecrets(out, client)
	}
	out <- prometheus.MustNewConstMetric(entriesDesc, prometheus.GaugeValue, float64(c.broker.entries.count()))
}

//nolint:gochecknoglobals // descriptors are constants that Go cannot express as such
var (
	activatedDesc = prometheus.NewDesc("tokenbroker_secret_activated_timestamp_seconds",
		"When the current secret became current; absent while this replica knows no current secret.", []string{"client"}, nil)
	generationDesc = prometheus.NewDesc("tokenbroker_secret_generation",
		"How often a client's secrets were changed, as far as this replica knows: if replicas differ, one has not read a change yet.", []string{"client"}, nil)
	versionsDesc = prometheus.NewDesc("tokenbroker_secret_versions",
		"1 while a version of a client's secret is in a state (pending, current, previous) and this replica knows its value, else 0.", []string{"client", "state"}, nil)
	inUseDesc = prometheus.NewDesc("tokenbroker_secret_in_use",
		"1 for the state of the version that the newest token was obtained with; absent while there is no token.", []string{"client", "state"}, nil)
	fallbackDesc = prometheus.NewDesc("tokenbroker_secret_fallback",
		"1 while tokens are obtained with a version other than the current one, more than two minutes after that became current.", []string{"client"}, nil)
)

func describeSecrets(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{activatedDesc, generationDesc, versionsDesc, inUseDesc, fallbackDesc} {
		out <- desc
	}
}

// collectSecrets collects the present state of a client's secrets.
func collectSecrets(out chan<- prometheus.Metric, c *client) {
	if !c.secrets.Kept() {
		return
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, append([]string{c.name}, labels...)...)
	}
	truth := func(desc *prometheus.Desc, is bool, labels ...string) {
		value := 0.0
		if is {
			value = 1
		}
		gauge(desc, value, labels...)
	}
	u := c.secrets.View()
	if u.Current != nil {
		gauge(activatedDesc, float64(u.Describe(u.Current.ID).Since.Unix()))
	}
	gauge(generationDesc, float64(u.History.Generation))
	truth(versionsDesc, u.Pending != nil, secret.Pending.String())
	truth(versionsDesc, u.Current != nil, secret.Current.String())
	truth(versionsDesc, u.Previous != nil, secret.Previous.String())
	truth(fallbackDesc, c.fallback(u))
	if last := c.outcomes.served.Load(); last != nil {
		state := "forgotten"
		if version := u.Describe(last.version); version.State != 0 {
			state = version.State.String()
		}
		gauge(inUseDesc, 1, state)
	}
}
