package fleet_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cezzis/tokenbroker/internal/fleet"
)

// A finding is logged once when it begins and once when it is over, by the replicas that
// it is about. All replicas count it.
func TestWatcherLogsAndCountsFindings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			log      bytes.Buffer
			findings atomic.Pointer[[]fleet.Finding]
			registry = prometheus.NewRegistry()
		)
		findings.Store(new([]fleet.Finding))
		w := fleet.NewWatcher(fleet.WatcherConfig{
			Summary:    func(context.Context) fleet.Summary { return fleet.Summary{Findings: *findings.Load()} },
			Self:       "a",
			Logger:     slog.New(slog.NewTextHandler(&log, nil)),
			Registerer: registry,
		})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.Run(ctx)
		}()
		expect := func(when, id string, count float64, lines, over int) {
			t.Helper()
			time.Sleep(3 * fleet.Interval)
			synctest.Wait()
			if got := series(t, registry, id); got != count {
				t.Errorf("%s: the metric of %s is %v, want %v", when, id, got, count)
			}
			if got := strings.Count(log.String(), "finding="+id); got != lines {
				t.Errorf("%s: %d lines about %s, want %d:\n%s", when, got, id, lines, &log)
			}
			if got := strings.Count(log.String(), "a finding is over"); got != over {
				t.Errorf("%s: %d findings are logged as over, want %d:\n%s", when, got, over, &log)
			}
		}
		synctest.Wait()
		expect("before", fleet.ClockDiffers, 0, 0, 0)

		fleetWide := fleet.Finding{ID: fleet.ClockDiffers, Severity: fleet.Critical, Message: "The clocks differ."}
		findings.Store(&[]fleet.Finding{fleetWide})
		expect("a finding about the fleet", fleet.ClockDiffers, 1, 1, 0)
		if !strings.Contains(log.String(), "level=ERROR msg=\"finding: The clocks differ.\"") {
			t.Errorf("the line is not an error with the sentence: %s", &log)
		}

		other := fleet.Finding{ID: fleet.AuditFailing, Severity: fleet.Critical, Replicas: []fleet.Name{"b"}}
		findings.Store(&[]fleet.Finding{fleetWide, other})
		expect("a finding about another replica", fleet.AuditFailing, 1, 0, 0)

		other.Replicas = []fleet.Name{"b", "a"}
		own := fleet.Finding{ID: fleet.CertificateEnding, Subject: "x", Severity: fleet.Warning, Replicas: []fleet.Name{"a"}}
		another := own
		another.Subject = "y"
		findings.Store(&[]fleet.Finding{fleetWide, other, own, another})
		expect("findings about this replica", fleet.CertificateEnding, 2, 2, 0)
		expect("a finding that reaches this replica later", fleet.AuditFailing, 1, 1, 0)

		findings.Store(new([]fleet.Finding))
		expect("afterwards", fleet.ClockDiffers, 0, 2, 4)
		stop()
		<-done
	})
}

// series returns the value of the metric for a finding.
func series(t *testing.T, registry *prometheus.Registry, id string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if label.GetName() == "id" && label.GetValue() == id {
					return metric.GetGauge().GetValue()
				}
			}
		}
	}
	t.Fatalf("there is no series for %s", id)
	return 0
}

// The alerts need a series for each finding from the start.
func TestWatcherCountsEachFindingFromTheStart(t *testing.T) {
	registry := prometheus.NewRegistry()
	fleet.NewWatcher(fleet.WatcherConfig{Registerer: registry})
	if got, err := testutil.GatherAndCount(registry, "tokenbroker_findings"); err != nil || got != len(fleet.RuleIDs()) {
		t.Errorf("%d series, %v; want %d", got, err, len(fleet.RuleIDs()))
	}
}

// A large fleet is looked at less often, so that the store reads a bounded number of
// records for each replica.
func TestWatcherLooksLessOftenAtALargeFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		w := fleet.NewWatcher(fleet.WatcherConfig{
			Summary: func(context.Context) fleet.Summary {
				looks++
				return fleet.Summary{Replicas: make([]fleet.Member, 100)}
			},
			Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		})
		ctx, stop := context.WithTimeout(t.Context(), 1001*time.Second)
		defer stop()
		w.Run(ctx)
		if looks != 11 {
			t.Errorf("%d looks in 1,000 s at a fleet of 100, want 11", looks)
		}
	})
}
