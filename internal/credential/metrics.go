package credential

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/secret"
)

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

// Describe sends the descriptors of the metrics of every Set.
func Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{activatedDesc, generationDesc, versionsDesc, inUseDesc, fallbackDesc} {
		out <- desc
	}
}

// Collect sends the metrics of the secret. A secret without a history has none.
func (s *Set) Collect(out chan<- prometheus.Metric) {
	if !s.Kept() {
		return
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, append([]string{s.Client}, labels...)...)
	}
	truth := func(desc *prometheus.Desc, is bool, labels ...string) {
		value := 0.0
		if is {
			value = 1
		}
		gauge(desc, value, labels...)
	}
	u := s.View()
	if u.Current != nil {
		gauge(activatedDesc, float64(u.Describe(u.Current.ID).Since.Unix()))
	}
	gauge(generationDesc, float64(u.History.Generation))
	truth(versionsDesc, u.Pending != nil, secret.Pending.String())
	truth(versionsDesc, u.Current != nil, secret.Current.String())
	truth(versionsDesc, u.Previous != nil, secret.Previous.String())
	truth(fallbackDesc, s.Fallback())
	if newest := s.Newest(); newest != nil {
		state := "forgotten"
		if version := u.Describe(newest.Version); version.State != 0 {
			state = version.State.String()
		}
		gauge(inUseDesc, 1, state)
	}
}
