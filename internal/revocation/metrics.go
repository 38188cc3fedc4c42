package revocation

import "github.com/prometheus/client_golang/prometheus"

//nolint:gochecknoglobals // descriptors are constants that Go cannot express as such
var (
	countDesc = prometheus.NewDesc("tokenbroker_revocations",
		"Revocations that this replica applies.", nil, nil)
	currentDesc = prometheus.NewDesc("tokenbroker_revocations_current_timestamp_seconds",
		"When this replica last confirmed that its revocations are those in the store; 0 before the first time, while VerifyToken answers UNAVAILABLE.", nil, nil)
	usableDesc = prometheus.NewDesc("tokenbroker_revocations_usable",
		"1 while this replica can judge tokens by the revocations, 0 while VerifyToken answers UNAVAILABLE with REVOCATIONS_UNKNOWN.", nil, nil)
)

// Describe implements prometheus.Collector.
func (r *Set) Describe(out chan<- *prometheus.Desc) {
	out <- countDesc
	out <- currentDesc
	out <- usableDesc
}

// Collect implements prometheus.Collector.
func (r *Set) Collect(out chan<- prometheus.Metric) {
	current, usable := 0.0, 0.0
	if at := r.Current(); !at.IsZero() {
		current = float64(at.UnixNano()) / 1e9
	}
	if r.Ready() {
		usable = 1
	}
	out <- prometheus.MustNewConstMetric(countDesc, prometheus.GaugeValue, float64(r.Count()))
	out <- prometheus.MustNewConstMetric(currentDesc, prometheus.GaugeValue, current)
	out <- prometheus.MustNewConstMetric(usableDesc, prometheus.GaugeValue, usable)
}
