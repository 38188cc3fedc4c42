// Package traceexport sends the broker's traces to a collector: its configuration from the
// file and from the variables of OpenTelemetry, the exporter, and the queue of spans that
// wait. Package tracing decides what a span may contain.
package traceexport

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/extauthz"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

// closeTimeout bounds the sending of the last spans.
const closeTimeout = 2 * time.Second

// Pipeline makes spans and sends them to a collector. A nil Pipeline does neither.
type Pipeline struct {
	provider *trace.TracerProvider
	exporter *otlptrace.Exporter
	queue    *spanQueue
	// closeIdle closes the exporter's connections.
	closeIdle func()
}

// Failing reports whether the collector did not accept the last spans.
func (p *Pipeline) Failing() bool { return p != nil && p.queue.failing.Load() }

// Open opens the tracing of the configuration and the environment, or returns nil if it is
// off. It does not wait for the collector, which may be unavailable at times. version is that
// of this program.
func Open(configured *config.Tracing, version string, log *slog.Logger, registerer prometheus.Registerer) (*Pipeline, error) {
	if tracingIsOff(configured, log) {
		return nil, nil //nolint:nilnil // nothing is traced
	}
	// OpenTelemetry writes to the standard error what it finds in its variables, and that
	// may be a token.
	otel.SetLogger(logr.Discard())
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {}))
	config := cmp.Or(configured, &config.Tracing{})
	collector, err := readCollector(config, log)
	if err != nil {
		return nil, err
	}
	exporter, closeIdle, err := collector.open()
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	log.Info("traces are sent to a collector", "host", collector.endpoint.Host, "http", collector.overHTTP, "tls", collector.tls != nil)
	queue := newSpanQueue(exporter, log, registerer)
	return &Pipeline{exporter: exporter, queue: queue, closeIdle: closeIdle, provider: trace.NewTracerProvider(
		trace.WithSpanProcessor(queue),
		trace.WithSampler(sampler(config, log)),
		trace.WithResource(describe(version, log)),
	)}, nil
}

// describe returns the attributes of this process in traces. The instance is new at each
// start, so that two replicas on a host are two instances. OTEL_RESOURCE_ATTRIBUTES
// replaces any of them, and OTEL_SERVICE_NAME the name.
func describe(version string, log *slog.Logger) *resource.Resource {
	attributes, err := resource.New(context.Background(),
		resource.WithTelemetrySDK(),
		resource.WithHost(),
		resource.WithService(), // service.instance.id
		resource.WithAttributes(attribute.String("service.name", "tokenbroker"), attribute.String("service.version", version)),
		resource.WithFromEnv(),
	)
	if err != nil {
		log.Warn("some attributes of this process are missing in traces: check OTEL_RESOURCE_ATTRIBUTES")
	}
	return attributes
}

// Tracer returns the Tracer for outgoing requests and requests over HTTP. Nil starts no
// spans.
func (p *Pipeline) Tracer() *tracing.Tracer {
	if p == nil {
		return nil
	}
	return tracing.New(p.provider)
}

// Handler returns the handler that makes the spans of gRPC calls. If it is nil, do not
// install it: even a handler that does nothing costs each call.
//
// Only existing methods have spans, because the method is the span's name. Baggage, which
// callers may fill with anything, is not read.
func (p *Pipeline) Handler() stats.Handler {
	if p == nil {
		return nil
	}
	known := map[string]bool{extauthz.Method: true}
	for _, desc := range []grpc.ServiceDesc{tokenbrokerv1.TokenBrokerService_ServiceDesc, tokenbrokerv1.AdminService_ServiceDesc} {
		for _, method := range desc.Methods {
			known["/"+desc.ServiceName+"/"+method.MethodName] = true
		}
		for _, stream := range desc.Streams {
			known["/"+desc.ServiceName+"/"+stream.StreamName] = true
		}
	}
	return otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(p.provider),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()),
		otelgrpc.WithPropagators(propagation.TraceContext{}),
		otelgrpc.WithFilter(func(info *stats.RPCTagInfo) bool { return known[info.FullMethodName] }),
	)
}

// Close sends the last spans.
func (p *Pipeline) Close() {
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = p.provider.Shutdown(ctx) // failures were logged by the exporter
	_ = p.exporter.Shutdown(ctx) // the provider does not, if it has no time left
	p.closeIdle()
}
