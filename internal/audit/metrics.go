package audit

import "github.com/prometheus/client_golang/prometheus"

type metrics struct{ lines, lost, refused prometheus.Counter }

func newMetrics() metrics {
	return metrics{
		lines: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tokenbroker_audit_lines_total",
			Help: "Lines of the audit that were written.",
		}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tokenbroker_audit_lost_total",
			Help: "Lines of the audit that were dropped because they could not be written.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tokenbroker_audit_refused_total",
			Help: "Acts that were refused because they could not be written down.",
		}),
	}
}

func (m *metrics) register(registerer prometheus.Registerer, l *Log) {
	if registerer == nil {
		return
	}
	registerer.MustRegister(m.lines, m.lost, m.refused, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tokenbroker_audit_failing",
		Help: "1 while the audit cannot be written, else 0.",
	}, func() float64 {
		if l.failing.Load() {
			return 1
		}
		return 0
	}))
}
