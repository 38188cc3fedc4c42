package jwks_test

import (
	"bytes"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/tracing"
	"github.com/cezzis/tokenbroker/internal/verify/jwks"
)

type roundTrip func(*http.Request) *http.Response

func (r roundTrip) RoundTrip(request *http.Request) (*http.Response, error) { return r(request), nil }

// A fetch that a token needs belongs to the trace of the call that presents the token.
// Regular fetches have no span.
func TestFetch_spans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spans := tracetest.NewSpanRecorder()
		tracer := tracing.New(trace.NewTracerProvider(trace.WithSpanProcessor(spans)))
		old, fresh := josetest.New(t, "EdDSA", "old"), josetest.New(t, "EdDSA", "fresh")
		set, fetches := josetest.Set(old.JWK()), 0
		network := discovery.NewNetwork(roundTrip(func(r *http.Request) *http.Response {
			fetches++
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(set)), Request: r}
		}))
		network.Observe(tracer, func(tracing.Name) {})
		source := newSource(t, jwks.Config{URL: "https://a.example/keys", HTTP: network.ClientFor("https://a.example", false)})
		run(t, source)
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := spans.Started(); fetches < 4 || len(got) != 0 {
			t.Errorf("%d regular fetches made the spans %v", fetches, got)
		}

		set = josetest.Set(fresh.JWK())
		time.Sleep(10 * time.Second) // so that a token may cause a fetch again
		call, serving := tracer.Serve(t.Context(), tracing.ServeVerify, nil)
		if _, err := source.Find(call, fresh.KeyID, fresh.Algorithm); err != nil {
			t.Fatal(err)
		}
		serving.Served(http.StatusOK)
		time.Sleep(time.Hour)
		synctest.Wait()
		got := spans.Ended()
		if len(got) != 2 || got[0].Name() != string(tracing.Keys) || got[0].Parent().SpanID() != got[1].SpanContext().SpanID() {
			t.Errorf("spans: %v", got)
		}
	})
}
