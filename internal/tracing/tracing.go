// Package tracing is what the broker's own spans are made with: of what it asks
// others, and of what it is asked over HTTP. Those of calls over gRPC are otelgrpc's.
//
// It keeps what is told of a trip to what may be known: a name from a fixed set, a
// host, counts, and why it failed as one of a few words. Errors' own texts, URLs with
// their paths and queries, keys and values never get into a span, because they
// cannot be given to one.
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

// Name is what a trip is for.
type Name string

// The names, but for those of Redis, which are "redis" and a command.
const (
	Token         Name = "idp token"
	Introspection Name = "idp introspection"
	Keys          Name = "issuer keys"
	Metadata      Name = "issuer metadata"
	// Other is what has no name of its own.
	Other Name = "http"
)

// The names of what is asked of the broker over HTTP.
const (
	ServeVerify        Name = "serve verify"
	ServeToken         Name = "serve token"
	ServeIntrospection Name = "serve introspection"
	ServeMetadata      Name = "serve metadata"
)

// Tracer starts spans. A nil Tracer starts none. It is safe for concurrent use.
type Tracer struct{ tracer trace.Tracer }

// New returns a Tracer whose spans the provider takes.
func New(provider trace.TracerProvider) *Tracer {
	return &Tracer{provider.Tracer("github.com/cezzis/tokenbroker")}
}

// Start begins the span of a trip. Its parent is the span in ctx.
func (t *Tracer) Start(ctx context.Context, name Name) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	ctx, span := t.tracer.Start(ctx, string(name), trace.WithSpanKind(trace.SpanKindClient)) //nolint:spancheck // who called ends it
	return ctx, Span{span}                                                                   //nolint:spancheck // who called ends it
}

// Serve begins the span of a request with these headers, of which nothing is looked at
// but what trace it is part of (W3C Trace Context). It ends with Served.
func (t *Tracer) Serve(ctx context.Context, name Name, header map[string][]string) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(header))
	ctx, span := t.tracer.Start(ctx, string(name), trace.WithSpanKind(trace.SpanKindServer)) //nolint:spancheck // who called ends it
	return ctx, Span{span}                                                                   //nolint:spancheck // who called ends it
}

// Served ends the span of a request that was answered with a status. What is wrong
// with a request is no error of who answers it.
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

// Span is a trip that was begun. The zero Span is none.
type Span struct{ span trace.Span }

// Host says whom the trip is to.
func (s Span) Host(host string) {
	if s.span != nil {
		s.span.SetAttributes(attribute.String("server.address", host))
	}
}

// HTTPStatus says what the other side answered.
func (s Span) HTTPStatus(status int) {
	if s.span == nil {
		return
	}
	s.span.SetAttributes(attribute.Int("http.response.status_code", status))
	if status >= 400 {
		s.span.SetStatus(codes.Error, "")
	}
}

// Commands says of how many commands and keys of a database the trip is.
func (s Span) Commands(commands, keys int) {
	if s.span != nil {
		s.span.SetAttributes(attribute.Int("db.operation.batch.size", commands), attribute.Int("tokenbroker.keys", keys))
	}
}

// End ends the span. Of err it tells the kind.
func (s Span) End(err error) {
	if s.span == nil {
		return
	}
	if err != nil {
		s.span.SetStatus(codes.Error, "")
		s.span.SetAttributes(attribute.String("error.type", kindOf(err)))
	}
	s.span.End()
}

// kindOf is one of a few words.
func kindOf(err error) string {
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

// nameKey is the key of a trip's name in a context.
type nameKey struct{}

// Named says what the next HTTP request with this context is for.
func Named(ctx context.Context, name Name) context.Context {
	return context.WithValue(ctx, nameKey{}, name)
}

// NameIn is what a request with this context is for.
func NameIn(ctx context.Context) Name {
	if name, ok := ctx.Value(nameKey{}).(Name); ok {
		return name
	}
	return Other
}

// Detached returns ctx as part of the trace that from is in: for what is done on
// account of a call and does not end with it.
func Detached(ctx, from context.Context) context.Context {
	span := trace.SpanContextFromContext(from)
	if !span.IsValid() {
		return ctx
	}
	return trace.ContextWithSpanContext(ctx, span)
}
