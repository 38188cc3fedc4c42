package redisstore_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

// Spans of all that a store does have names of a fixed set and show neither
// passwords nor keys nor values.
func TestRedisSpansShowNoContent(t *testing.T) {
	t.Parallel()
	for _, fleet := range fleets() {
		t.Run(fleet.name, func(t *testing.T) {
			exporter := tracetest.NewInMemoryExporter()
			provider := trace.NewTracerProvider(trace.WithSyncer(exporter))
			config := fleet.start(t)
			config.Tracer = tracing.New(provider)
			r := openPatient(t, config)

			const key, value, owner = "{canary}key", "canary-value", "canary-owner"
			ctx, call := config.Tracer.Serve(t.Context(), tracing.ServeToken, nil)
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			lease, _, err := claimLease(ctx, r, store.Claim{Key: "{canary}lease", Owner: owner, TTL: time.Minute, Counter: "{canary}count"})
			must(err)
			_, err = r.Renew(ctx, lease, time.Minute)
			must(err)
			_, err = r.Apply(ctx, store.Change{Puts: []store.Put{{Key: key, Number: 1, Value: []byte(value), TTL: time.Minute}}, Release: lease})
			must(err)
			_, err = r.Raise(ctx, "{canary}count", 0, 1)
			must(err)
			_, err = r.Get(ctx, key, "{canary}none")
			must(err)
			must(r.Close())
			call.Served(200)

			names := map[string]int{}
			for _, span := range exporter.GetSpans() {
				names[span.Name]++
				if span.Name != string(tracing.ServeToken) && !span.Parent.IsValid() {
					t.Errorf("housekeeping made the root span %s", span.Name)
				}
				if shown := fmt.Sprintf("%+v", span); strings.Contains(shown, "canary") || strings.Contains(shown, testPassword) {
					t.Errorf("a span shows what was sent: %s", shown)
				}
				for _, a := range span.Attributes {
					if a.Key == "tokenbroker.keys" && span.Name == "redis evalsha" && a.Value.AsInt64() == 0 {
						t.Errorf("a script without keys: %+v", span.Attributes)
					}
				}
			}
			if names["redis evalsha"] < 5 || names["redis other"] > 0 {
				t.Errorf("spans: %v", names)
			}
			t.Logf("spans: %v", names)
		})
	}
}
