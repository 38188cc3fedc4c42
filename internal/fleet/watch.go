package fleet

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// watchShare is the time that a Watcher waits for each replica of the fleet, so that all
// replicas together read a number of records that grows with the fleet and not with its
// square.
const watchShare = time.Second

// WatcherConfig configures a Watcher.
type WatcherConfig struct {
	// Summary returns the status of the fleet.
	Summary func(context.Context) Summary
	// Self is this replica. It logs the findings about itself and about the whole fleet.
	Self       Name
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Watcher derives the findings at intervals, logs when one begins and when it is over, and
// counts them in a metric, so that alerts and the log report the same as the status.
type Watcher struct {
	cfg    WatcherConfig
	logged map[watched]Finding
	counts atomic.Pointer[map[string]int] // by id
}

// watched identifies a finding from one look to the next.
type watched struct {
	id      string
	subject Name
}

// NewWatcher returns a Watcher that has found nothing yet, and registers its metric.
func NewWatcher(cfg WatcherConfig) *Watcher {
	w := &Watcher{cfg: cfg, logged: map[watched]Finding{}}
	w.counts.Store(&map[string]int{})
	cfg.Registerer.MustRegister(w)
	return w
}

// Run looks at the fleet at once and then at intervals, until ctx ends.
func (w *Watcher) Run(ctx context.Context) {
	for {
		timer := time.NewTimer(w.look(ctx))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// look looks at the fleet once, and returns the time to wait until the next look.
func (w *Watcher) look(ctx context.Context) time.Duration {
	summary := w.cfg.Summary(ctx)
	counts := map[string]int{}
	current := map[watched]Finding{}
	for _, one := range summary.Findings {
		counts[one.ID]++
		if len(one.Replicas) == 0 || slices.Contains(one.Replicas, w.cfg.Self) {
			current[watched{one.ID, one.Subject}] = one
		}
	}
	w.counts.Store(&counts)
	w.log(ctx, current)
	return max(Interval, time.Duration(len(summary.Replicas))*watchShare)
}

// log logs each finding that began and each that is over.
func (w *Watcher) log(ctx context.Context, current map[watched]Finding) {
	for key, one := range current {
		if _, ok := w.logged[key]; !ok {
			level := slog.LevelWarn
			if one.Severity == Critical {
				level = slog.LevelError
			}
			w.cfg.Logger.Log(ctx, level, "finding: "+one.Message, "finding", one.ID, "since", one.Since.UTC().Format(time.RFC3339), "action", one.Action)
		}
	}
	for key, one := range w.logged {
		if _, ok := current[key]; !ok {
			w.cfg.Logger.Info("a finding is over: "+one.Message, "finding", one.ID)
		}
	}
	w.logged = current
}

//nolint:gochecknoglobals // a constant that Go cannot express as such
var findingsDesc = prometheus.NewDesc("tokenbroker_findings",
	"Findings about the fleet, as this replica saw them at its last look.", []string{"id", "severity"}, nil)

// Describe describes the metric.
func (w *Watcher) Describe(out chan<- *prometheus.Desc) { out <- findingsDesc }

// Collect returns a series for each id, so that alerts see those without a finding too.
func (w *Watcher) Collect(out chan<- prometheus.Metric) {
	counts := *w.counts.Load()
	for id, rule := range rules {
		out <- prometheus.MustNewConstMetric(findingsDesc, prometheus.GaugeValue, float64(counts[id]), id, rule.severity.String())
	}
}
