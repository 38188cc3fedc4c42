package app

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"github.com/prometheus/client_golang/prometheus"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/extauthz"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

// tracingStopTimeout bounds the sending of the last spans.
const tracingStopTimeout = 2 * time.Second

// traces makes spans and sends them. A nil traces does neither.
type traces struct {
	provider *trace.TracerProvider
	exporter *otlptrace.Exporter
	queue    *spanQueue
	// closeIdle closes the exporter's connections.
	closeIdle func()
}

// failing reports whether the collector did not accept the last spans.
func (t *traces) failing() bool { return t != nil && t.queue.failing.Load() }

// openTraces opens the tracing of the configuration and the environment, or returns nil if
// it is off. It does not wait for the collector, which may be unavailable at times. version
// is that of this program.
func openTraces(configured *config.Tracing, version string, log *slog.Logger, registerer prometheus.Registerer) (*traces, error) {
	if tracingIsOff(configured, log) {
		return nil, nil //nolint:nilnil // nothing is traced
	}
	// OpenTelemetry writes to the standard error what it finds in its variables, and that
	// may be a token.
	otel.SetLogger(logr.Discard())
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {}))
	config := cmp.Or(configured, &config.Tracing{})
	to, err := readCollector(config, log)
	if err != nil {
		return nil, err
	}
	exporter, closeIdle, err := to.open()
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	log.Info("traces are sent to a collector", "host", to.endpoint.Host, "http", to.overHTTP, "tls", to.tls != nil)
	queue := newSpanQueue(exporter, log, registerer)
	return &traces{exporter: exporter, queue: queue, closeIdle: closeIdle, provider: trace.NewTracerProvider(
		trace.WithSpanProcessor(queue),
		trace.WithSampler(sampler(config, log)),
		trace.WithResource(describe(version, log)),
	)}, nil
}

// describe returns the attributes of this process in traces. The instance is new at each
// start, so that two replicas on a host are two instances. OTEL_RESOURCE_ATTRIBUTES
// replaces any of them, and OTEL_SERVICE_NAME the name.
func describe(version string, log *slog.Logger) *resource.Resource {
	described, err := resource.New(context.Background(),
		resource.WithTelemetrySDK(),
		resource.WithHost(),
		resource.WithService(), // service.instance.id
		resource.WithAttributes(attribute.String("service.name", "tokenbroker"), attribute.String("service.version", version)),
		resource.WithFromEnv(),
	)
	if err != nil {
		log.Warn("some attributes of this process are missing in traces: check OTEL_RESOURCE_ATTRIBUTES")
	}
	return described
}

// tracer makes the spans of outgoing requests. Nil: no spans.
func (t *traces) tracer() *tracing.Tracer {
	if t == nil {
		return nil
	}
	return tracing.New(t.provider)
}

// handler makes the spans of calls. If it is nil, do not install it: even a handler that
// does nothing costs each call.
//
// Only existing methods have spans, because the method is the span's name. Baggage, which
// callers may fill with anything, is not read.
func (t *traces) handler() stats.Handler {
	if t == nil {
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
		otelgrpc.WithTracerProvider(t.provider),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()),
		otelgrpc.WithPropagators(propagation.TraceContext{}),
		otelgrpc.WithFilter(func(info *stats.RPCTagInfo) bool { return known[info.FullMethodName] }),
	)
}

// close sends the last spans.
func (t *traces) close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), tracingStopTimeout)
	defer cancel()
	_ = t.provider.Shutdown(ctx) // failures were logged by the exporter
	_ = t.exporter.Shutdown(ctx) // the provider does not, if it has no time left
	t.closeIdle()
}
