// Package tracing creates the spans of the broker's outgoing requests and of HTTP
// requests to the broker. Package otelgrpc creates the spans of gRPC calls.
//
// A span contains a name from a fixed set, a host, counts, and the kind of an error from
// a fixed set. The API accepts no other text, so that error messages, paths, queries,
// keys and values cannot get into a span.
package tracing

import (
	"context"
	"errors"
	"net"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Name is the name of a span.
type Name string

// Names of outgoing requests. Those to Redis are "redis" and a command.
const (
	Token         Name = "idp token"
	Introspection Name = "idp introspection"
	Keys          Name = "issuer keys"
	Metadata      Name = "issuer metadata"
	// Other is the default of NameIn.
	Other Name = "http"
)

// Names of HTTP requests to the broker.
const (
	ServeVerify        Name = "serve verify"
	ServeToken         Name = "serve token"
	ServeIntrospection Name = "serve introspection"
	ServeMetadata      Name = "serve metadata"
)

// Tracer starts spans. A nil Tracer starts none. It is safe for concurrent use.
type Tracer struct{ tracer trace.Tracer }

// New returns a Tracer that sends its spans to provider.
func New(provider trace.TracerProvider) *Tracer {
	return &Tracer{provider.Tracer("github.com/cezzis/tokenbroker")}
}

// Start begins the span of an outgoing request. Its parent is the span in ctx. Without a
// parent there is no span: the request is housekeeping, such as a poll, and a trace of one
// span each would hide the traces of calls. The caller ends the span with [Span.End].
func (t *Tracer) Start(ctx context.Context, name Name) (context.Context, Span) {
	if t == nil || !trace.SpanContextFromContext(ctx).IsValid() {
		return ctx, Span{}
	}
	ctx, span := t.tracer.Start(ctx, string(name), trace.WithSpanKind(trace.SpanKindClient)) //nolint:spancheck // the caller ends it
	return ctx, Span{span}                                                                   //nolint:spancheck // the caller ends it
}

// Serve begins the span of a request to the broker. Its parent is in the header (W3C
// Trace Context). The caller ends it with [Span.Served].
func (t *Tracer) Serve(ctx context.Context, name Name, header map[string][]string) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(header))
	ctx, span := t.tracer.Start(ctx, string(name), trace.WithSpanKind(trace.SpanKindServer)) //nolint:spancheck // the caller ends it
	return ctx, Span{span}                                                                   //nolint:spancheck // the caller ends it
}

// Served ends the span of a request to the broker. A status below 500 is not an error of
// the broker.
func (s Span) Served(status int) {
	if s.span == nil {
		return
	}
	s.span.SetAttributes(attribute.Int("http.response.status_code", status))
	if status >= 500 {
		s.span.SetStatus(codes.Error, "")
	}
	s.span.End()
}

// Span is a started span. The methods of the zero Span do nothing.
type Span struct{ span trace.Span }

// Host records the host to which the request goes.
func (s Span) Host(host string) {
	if s.span != nil {
		s.span.SetAttributes(attribute.String("server.address", host))
	}
}

// HTTPStatus records the status of the response.
func (s Span) HTTPStatus(status int) {
	if s.span == nil {
		return
	}
	s.span.SetAttributes(attribute.Int("http.response.status_code", status))
	if status >= 400 {
		s.span.SetStatus(codes.Error, "")
	}
}

// Commands records the numbers of commands and keys in a request to a database.
func (s Span) Commands(commands, keys int) {
	if s.span != nil {
		s.span.SetAttributes(attribute.Int("db.operation.batch.size", commands), attribute.Int("tokenbroker.keys", keys))
	}
}

// End ends the span of an outgoing request and records the kind of err, which may be
// nil.
func (s Span) End(err error) {
	if s.span == nil {
		return
	}
	if err != nil {
		s.span.SetStatus(codes.Error, "")
		s.span.SetAttributes(attribute.String("error.type", KindOf(err)))
	}
	s.span.End()
}

// KindOf returns the kind of an error, from a fixed set.
func KindOf(err error) string {
	var (
		dns     *net.DNSError
		timeout interface{ Timeout() bool }
		op      *net.OpError
	)
	switch {
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.As(err, &dns):
		return "name_resolution"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.As(err, &op):
		return "connection"
	default:
		return "other"
	}
}

// nameKey is the context key of a Name.
type nameKey struct{}

// Named returns a context with the name of the span for the next HTTP request.
func Named(ctx context.Context, name Name) context.Context {
	return context.WithValue(ctx, nameKey{}, name)
}

// NameIn returns the name that Named put into ctx, or Other.
func NameIn(ctx context.Context) Name {
	if name, ok := ctx.Value(nameKey{}).(Name); ok {
		return name
	}
	return Other
}

// Detached returns ctx with the span of from as its parent, for work that a call starts
// and that continues after the call.
func Detached(ctx, from context.Context) context.Context {
	span := trace.SpanContextFromContext(from)
	if !span.IsValid() {
		return ctx
	}
	return trace.ContextWithSpanContext(ctx, span)
}
