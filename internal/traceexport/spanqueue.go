package traceexport

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/internal/tracing"
)

// exportLogInterval is the minimum time between two log lines about spans that cannot be
// sent.
const exportLogInterval = time.Minute

// spanQueue holds the spans that wait to be sent. It never blocks the call that ends a
// span: while it is full, spans are dropped. The batch processor drops them as well, but
// does not report how many.
type spanQueue struct {
	trace.SpanProcessor

	waiting atomic.Int64
	dropped prometheus.Counter
	failing atomic.Bool // the last spans were not accepted
}

func newSpanQueue(exporter trace.SpanExporter, log *slog.Logger, registerer prometheus.Registerer) *spanQueue {
	exported := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokenbroker_traces_exported_total",
		Help: "Spans sent to the collector of traces, by result: ok or failed. Failed spans are lost.",
	}, []string{"result"})
	q := &spanQueue{dropped: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "tokenbroker_traces_dropped_total",
		Help: "Spans dropped because too many were waiting to be sent to the collector.",
	})}
	registerer.MustRegister(exported, q.dropped)
	q.SpanProcessor = trace.NewBatchSpanProcessor(&countingExporter{
		SpanExporter: exporter, waiting: &q.waiting, failing: &q.failing, log: log,
		ok: exported.WithLabelValues("ok"), failed: exported.WithLabelValues("failed"),
	}, trace.WithMaxQueueSize(trace.DefaultMaxQueueSize))
	return q
}

// OnEnd implements trace.SpanProcessor.
func (q *spanQueue) OnEnd(span trace.ReadOnlySpan) {
	if !span.SpanContext().IsSampled() {
		return
	}
	if q.waiting.Add(1) > trace.DefaultMaxQueueSize {
		q.waiting.Add(-1)
		q.dropped.Inc()
		return
	}
	q.SpanProcessor.OnEnd(span)
}

// countingExporter counts the spans that were sent and those that could not be sent, and
// logs when sending begins to fail and when it works again. It hides errors from
// OpenTelemetry, whose own log is global in the process and shows them as they are. The
// batch processor calls it from one goroutine at a time.
type countingExporter struct {
	trace.SpanExporter

	waiting    *atomic.Int64
	failing    *atomic.Bool
	ok, failed prometheus.Counter

	log      *slog.Logger
	loggedAt time.Time // of the last line about a failure
	unlogged int       // spans lost since then
	logged   bool      // that sending fails
}

// ExportSpans implements trace.SpanExporter.
func (e *countingExporter) ExportSpans(ctx context.Context, spans []trace.ReadOnlySpan) error {
	e.waiting.Add(-int64(len(spans)))
	if err := e.SpanExporter.ExportSpans(ctx, spans); err != nil {
		e.failing.Store(true)
		e.failed.Add(float64(len(spans)))
		e.logFailure(len(spans), err)
		return nil
	}
	e.failing.Store(false)
	e.ok.Add(float64(len(spans)))
	if e.logged {
		e.logged = false
		e.log.Info("spans are sent to the collector again")
	}
	return nil
}

// logFailure logs a failure at most once per interval. The line has no text of the
// error, which may quote a response of the collector.
func (e *countingExporter) logFailure(spans int, err error) {
	e.unlogged += spans
	if time.Since(e.loggedAt) < exportLogInterval {
		return
	}
	e.log.Warn("spans cannot be sent to the collector and are lost", "code", exportCode(err), "spans", e.unlogged)
	e.loggedAt, e.unlogged, e.logged = time.Now(), 0, true
}

// exportCode returns the gRPC code or the HTTP status of a failure, or else its kind.
func exportCode(err error) string {
	if response, ok := errors.AsType[statusError](err); ok {
		return strconv.Itoa(int(response))
	}
	if reported, ok := status.FromError(err); ok {
		return reported.Code().String()
	}
	return tracing.KindOf(err)
}
