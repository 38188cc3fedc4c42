package broker

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/secret"
)

//nolint:gochecknoglobals // descriptors are constants that Go cannot express as such
var (
	activatedDesc = prometheus.NewDesc("tokenbroker_secret_activated_timestamp_seconds",
		"When the secret in force came in force; absent while this replica knows none.", []string{"client"}, nil)
	generationDesc = prometheus.NewDesc("tokenbroker_secret_generation",
		"How often a client's secrets were changed, as far as the replica knows: replicas that differ have not heard of a change.", []string{"client"}, nil)
	versionsDesc = prometheus.NewDesc("tokenbroker_secret_versions",
		"1 while there is a version of a client's secret in a state (pending, current, previous) whose value this replica knows, else 0.", []string{"client", "state"}, nil)
	inUseDesc = prometheus.NewDesc("tokenbroker_secret_in_use",
		"1 for the state of the version that the newest token was obtained with; absent while there is no token.", []string{"client", "state"}, nil)
	fallbackDesc = prometheus.NewDesc("tokenbroker_secret_fallback",
		"1 while tokens are obtained with another version than the one in force, more than two minutes after that came in force.", []string{"client"}, nil)
)

func describeSecrets(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{activatedDesc, generationDesc, versionsDesc, inUseDesc, fallbackDesc} {
		out <- desc
	}
}

// collectSecrets shows the secrets of a client as they are now.
func collectSecrets(out chan<- prometheus.Metric, c *client) {
	if !c.secrets.kept() {
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
	u := c.secrets.now()
	if u.current != nil {
		gauge(activatedDesc, float64(u.describe(u.current.ID).Since.Unix()))
	}
	gauge(generationDesc, float64(u.history.Generation))
	truth(versionsDesc, u.pending != nil, secret.Pending.String())
	truth(versionsDesc, u.current != nil, secret.Current.String())
	truth(versionsDesc, u.previous != nil, secret.Previous.String())
	truth(fallbackDesc, c.fallback(u))
	if last := c.fares.served.Load(); last != nil {
		state := "forgotten"
		if told := u.describe(last.with); told.State != 0 {
			state = told.State.String()
		}
		gauge(inUseDesc, 1, state)
	}
}
