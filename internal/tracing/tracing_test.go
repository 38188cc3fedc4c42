package tracing_test

import (
	"context"
	"testing"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/cezzis/tokenbroker/internal/tracing"
)

func TestStart_needsAParent(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	tracer := tracing.New(trace.NewTracerProvider(trace.WithSpanProcessor(spans)))

	background, none := tracer.Start(t.Context(), tracing.Token)
	none.Host("idp.example.com")
	none.HTTPStatus(500)
	none.Commands(1, 1)
	none.End(context.Canceled)
	if got := spans.Started(); len(got) != 0 {
		t.Fatalf("spans without a parent: %v", got)
	}
	if background != t.Context() {
		t.Error("Start changed a context without a span")
	}

	call, serving := tracer.Serve(t.Context(), tracing.ServeToken, nil)
	_, request := tracer.Start(tracing.Detached(t.Context(), call), tracing.Token)
	request.End(nil)
	serving.Served(200)
	got := spans.Ended()
	if len(got) != 2 || got[0].Parent().SpanID() != got[1].SpanContext().SpanID() {
		t.Errorf("spans: %v", got)
	}
}
