package traceexport

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/cezzis/tokenbroker/internal/testkit"
)

// collectorStub sends spans as long as err is nil, and hangs while hanging is not nil.
type collectorStub struct {
	err     error
	hanging chan struct{}
}

func (c *collectorStub) ExportSpans(context.Context, []trace.ReadOnlySpan) error {
	if c.hanging != nil {
		<-c.hanging
	}
	return c.err
}

func (*collectorStub) Shutdown(context.Context) error { return nil }

// spanMaker returns a function that makes spans, and the metrics.
func spanMaker(t *testing.T, stub *collectorStub, log *slog.Logger) (makeSpans func(n int), registry *prometheus.Registry) {
	t.Helper()
	registry = prometheus.NewRegistry()
	provider := trace.NewTracerProvider(trace.WithSpanProcessor(newSpanQueue(stub, log, registry)))
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
	return func(n int) {
		for range n {
			_, span := provider.Tracer("test").Start(t.Context(), "call")
			span.End()
		}
	}, registry
}

func expectSpans(t *testing.T, registry *prometheus.Registry, ok, failed, dropped string) {
	t.Helper()
	err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP tokenbroker_traces_dropped_total Spans dropped because too many were waiting to be sent to the collector.
# TYPE tokenbroker_traces_dropped_total counter
tokenbroker_traces_dropped_total `+dropped+`
# HELP tokenbroker_traces_exported_total Spans sent to the collector of traces, by result: ok or failed. Failed spans are lost.
# TYPE tokenbroker_traces_exported_total counter
tokenbroker_traces_exported_total{result="failed"} `+failed+`
tokenbroker_traces_exported_total{result="ok"} `+ok+`
`))
	if err != nil {
		t.Error(err)
	}
}

func TestSpanQueue_countsAndLogs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &testkit.Log{}
		stub := &collectorStub{}
		makeSpans, registry := spanMaker(t, stub, slog.New(slog.NewTextHandler(log, nil)))
		expectSpans(t, registry, "0", "0", "0")
		makeSpans(3)
		time.Sleep(time.Minute)
		synctest.Wait()
		expectSpans(t, registry, "3", "0", "0")
		if log.String() != "" {
			t.Errorf("it logged %s", log)
		}

		// The collector fails for an hour and succeeds now and then.
		for i := range 360 {
			stub.err = errors.New("canary")
			if i%3 == 0 {
				stub.err = nil
			}
			makeSpans(1)
			time.Sleep(10 * time.Second)
			synctest.Wait()
		}
		expectSpans(t, registry, "123", "240", "0")
		failures, successes := strings.Count(log.String(), "cannot be sent"), strings.Count(log.String(), "sent to the collector again")
		if failures > 60 || failures < 50 || successes > failures {
			t.Errorf("in an hour it logged %d failures and %d successes", failures, successes)
		}
		if log.Contains("canary") || !log.Contains("code=other spans=") {
			t.Errorf("it logged %.300s", log)
		}
	})
}

// A collector that hangs costs calls nothing: the spans that do not fit are dropped.
func TestSpanQueue_collectorHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stub := &collectorStub{hanging: make(chan struct{})}
		makeSpans, registry := spanMaker(t, stub, slog.New(slog.DiscardHandler))
		makeSpans(1)
		time.Sleep(time.Minute)
		started := time.Now()
		makeSpans(trace.DefaultMaxQueueSize + 1000)
		if blocked := time.Since(started); blocked != 0 {
			t.Errorf("calls were blocked for %v", blocked)
		}
		expectSpans(t, registry, "0", "0", "1000")
		close(stub.hanging)
		time.Sleep(time.Minute)
		synctest.Wait()
		expectSpans(t, registry, "2049", "0", "1000")
	})
}
