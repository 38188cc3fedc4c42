package app_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// otlp is a collector that keeps what it receives.
type otlp struct {
	collector.UnimplementedTraceServiceServer

	mu    sync.Mutex
	spans []*spans.Span
	whole []string // what came, as text

	resources []map[string]string // the attributes of the process, for each request
}

func (o *otlp) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, resource := range req.GetResourceSpans() {
		o.resources = append(o.resources, textOf(resource.GetResource().GetAttributes()))
		for _, scope := range resource.GetScopeSpans() {
			o.spans = append(o.spans, scope.GetSpans()...)
		}
	}
	o.whole = append(o.whole, req.String())
	return &collector.ExportTraceServiceResponse{}, nil
}

func startOTLP(t *testing.T) (*otlp, string) {
	t.Helper()
	var network net.ListenConfig
	listener, err := network.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o, server := &otlp{}, grpc.NewServer()
	collector.RegisterTraceServiceServer(server, o)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return o, listener.Addr().String()
}

// traced runs a broker, asks it, stops it, and returns what the collector got.
func traced(t *testing.T, config string, ask func(ctx context.Context, t *testing.T, token func(context.Context) string, verify func(context.Context, string))) *otlp {
	t.Helper()
	received, address := startOTLP(t)
	t.Run("broker", func(t *testing.T) {
		_, c := run(t, parsed(t, sampleText(t, 1)+fmt.Sprintf("tracing: {endpoint: \"http://%s\", %s}\n", address, config)), devIDP(t))
		ask(t.Context(), t, func(ctx context.Context) string {
			token, err := c.Token(ctx, "client-0")
			if err != nil {
				t.Fatal(err)
			}
			return token.AccessToken()
		}, func(ctx context.Context, token string) {
			if _, err := c.Verify(ctx, token); err != nil {
				t.Error(err)
			}
		})
	})
	return received
}

func (o *otlp) named(name string) (found []*spans.Span) {
	for _, span := range o.spans {
		if span.GetName() == name {
			found = append(found, span)
		}
	}
	return found
}

func (o *otlp) names() (names []string) {
	for _, span := range o.spans {
		names = append(names, span.GetName())
	}
	return names
}

func attributes(span *spans.Span) map[string]string { return textOf(span.GetAttributes()) }

func textOf(attributes []*common.KeyValue) map[string]string {
	found := map[string]string{}
	for _, a := range attributes {
		found[a.GetKey()] = strings.Trim(a.GetValue().String(), `"`)
	}
	return found
}

// Housekeeping makes no spans, however long the broker runs: all spans belong to the
// trace of a call.
func TestTrace_housekeepingHasNoSpans(t *testing.T) {
	ring := filepath.Join(t.TempDir(), "ring.json")
	testkit.WriteFile(t, ring, string(sealed.GenerateRing().Reveal()))
	redis := redistest.Start(t, redistest.Options{})
	received, address := startOTLP(t)
	t.Run("broker", func(t *testing.T) {
		broker, c := run(t, parsed(t, sampleText(t, 1)+fmt.Sprintf("store: {redis: {addresses: [%q]}, sealing_keys: %q}\ntracing: {endpoint: \"http://%s\", sample: 1}\n", redis.Addr(), "file:"+ring, address)), devIDP(t))
		metric := func(name string) float64 { return sampleOf(t, broker, name) }
		testkit.Eventually(t, "keys and polls", func() bool {
			return metric(`tokenbroker_jwks_fetches_total{issuer="`+idpIssuer+`",result="success"}`) > 0 && metric("tokenbroker_redis_trips_total") > 5
		})
		if _, err := c.Token(t.Context(), "client-0"); err != nil {
			t.Error(err)
		}
		trips := metric("tokenbroker_redis_trips_total")
		testkit.Eventually(t, "further polls", func() bool { return metric("tokenbroker_redis_trips_total") > trips })
	})
	calls := received.named(getToken)
	if len(calls) != 1 || len(received.named("idp token")) != 1 || len(received.named("redis evalsha")) == 0 {
		t.Fatalf("spans: %q", received.names())
	}
	for _, span := range received.spans {
		if !slices.Equal(span.GetTraceId(), calls[0].GetTraceId()) {
			t.Errorf("the span %s is not part of the call's trace", span.GetName())
		}
	}
}

// sampleOf returns the value of a metric; 0 if it is absent.
func sampleOf(t *testing.T, broker *app.App, name string) float64 {
	t.Helper()
	_, metrics := read(t, "http://"+broker.OpsAddr()+"/metrics")
	_, rest, _ := strings.Cut(metrics, "\n"+name+" ")
	text, _, _ := strings.Cut(rest, "\n")
	value, _ := strconv.ParseFloat(text, 64)
	return value
}

const getToken = "tokenbroker.v1.TokenBrokerService/GetToken"

func TestTrace_callWithItsCauses(t *testing.T) {
	const traceID, spanID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	var token string
	got := traced(t, "sample: 1", func(ctx context.Context, _ *testing.T, get func(context.Context) string, verify func(context.Context, string)) {
		ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", "00-"+traceID+"-"+spanID+"-01", "baggage", "secret=canary")
		token = get(ctx)
		verify(ctx, token)
	})
	calls, trips := got.named(getToken), got.named("idp token")
	if len(calls) != 1 || len(trips) != 1 || len(got.named("tokenbroker.v1.TokenBrokerService/VerifyToken")) != 1 {
		t.Fatalf("spans: %q", got.names())
	}
	if fmt.Sprintf("%x %x", calls[0].GetTraceId(), calls[0].GetParentSpanId()) != traceID+" "+spanID {
		t.Errorf("the call is not in its caller's trace: %x", calls[0].GetTraceId())
	}
	if !slices.Equal(trips[0].GetParentSpanId(), calls[0].GetSpanId()) || !slices.Equal(trips[0].GetTraceId(), calls[0].GetTraceId()) {
		t.Error("the trip to the IdP is not the call's")
	}
	if a := attributes(trips[0]); a["server.address"] != `string_value:"idp.example.com` || a["http.response.status_code"] != "int_value:200" || len(a) != 2 {
		t.Errorf("attributes of the trip: %v", a)
	}
	parts := strings.Split(token, ".")
	for _, secret := range []string{token, parts[1], parts[2], "right", "abc:", "canary", idpIssuer + "/"} {
		if strings.Contains(strings.Join(got.whole, "\n"), secret) {
			t.Errorf("%.20q is in a span", secret)
		}
	}
}

func TestTrace_sampling(t *testing.T) {
	sampled := func(flag string) func(context.Context, *testing.T, func(context.Context) string, func(context.Context, string)) {
		return func(ctx context.Context, _ *testing.T, get func(context.Context) string, _ func(context.Context, string)) {
			get(metadata.AppendToOutgoingContext(ctx, "traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-"+flag))
		}
	}
	for _, tt := range []struct {
		config, flag string
		want         int
	}{
		{"sample: 0", "01", 0}, // whoever can connect could have each of its calls traced
		{"sample: 1", "00", 1},
		{"sample: 0, follow_callers: true", "01", 1},
		{"sample: 1, follow_callers: true", "00", 0},
	} {
		if got := len(traced(t, tt.config, sampled(tt.flag)).named(getToken)); got != tt.want {
			t.Errorf("%s, caller says %s: %d spans, want %d", tt.config, tt.flag, got, tt.want)
		}
	}
}

func TestTrace_unknownMethodsHaveNoSpan(t *testing.T) {
	received, address := startOTLP(t)
	t.Run("broker", func(t *testing.T) {
		broker, _ := run(t, parsed(t, sampleText(t, 1)+fmt.Sprintf("tracing: {endpoint: \"http://%s\", sample: 1}\n", address)), devIDP(t))
		conn := dial(t, broker.GRPCAddr())
		_ = conn.Invoke(t.Context(), "/canary/Canary", &collector.ExportTraceServiceRequest{}, &collector.ExportTraceServiceResponse{})
		_ = conn.Invoke(t.Context(), "/grpc.health.v1.Health/Check", &collector.ExportTraceServiceRequest{}, &collector.ExportTraceServiceResponse{})
	})
	for _, span := range received.spans {
		if strings.Contains(span.GetName(), "anary") || strings.Contains(span.GetName(), "Check") {
			t.Errorf("span %s", span.GetName())
		}
	}
}

// No handler of statistics is given to a server without tracing: even one that
// does nothing would cost each call.
func TestTrace_offInstallsNoHandler(t *testing.T) {
	broker, _ := run(t, sample(t, 1), devIDP(t))
	if n := broker.StatsHandlers(); n != 0 {
		t.Errorf("%d handlers", n)
	}
	_, address := startOTLP(t)
	broker, _ = run(t, parsed(t, sampleText(t, 1)+fmt.Sprintf("tracing: {endpoint: \"http://%s\"}\n", address)), devIDP(t))
	if n := broker.StatsHandlers(); n != 1 {
		t.Errorf("%d handlers with tracing on: this test counts the wrong thing", n)
	}
}

func TestTrace_collectorIsDown(t *testing.T) {
	var network net.ListenConfig
	taken, err := network.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = taken.Close()
	begun := time.Now()
	t.Run("broker", func(t *testing.T) {
		broker, c := run(t, parsed(t, sampleText(t, 1)+fmt.Sprintf("tracing: {endpoint: \"http://%s\", sample: 1}\n", taken.Addr())), devIDP(t))
		if _, err := c.Token(t.Context(), "client-0"); err != nil {
			t.Error(err)
		}
		testkit.Eventually(t, "failed exports", func() bool { return sampleOf(t, broker, `tokenbroker_traces_exported_total{result="failed"}`) > 0 })
	})
	if took := time.Since(begun); took > time.Minute {
		t.Errorf("it took %v", took)
	}
}

func TestStart_invalidCollectorAuthorities(t *testing.T) {
	_, err := app.New(parsed(t, sampleText(t, 1)+"tracing: {endpoint: \"https://127.0.0.1:4317\", ca: /nowhere/ca.crt}\n"), app.Options{Logger: quiet()})
	if err == nil || !strings.Contains(err.Error(), "tracing.ca: ") {
		t.Errorf("New: %v", err)
	}
}

// resourceOf runs a broker that sends a span, and returns the attributes of its process.
func resourceOf(t *testing.T) map[string]string {
	t.Helper()
	received := traced(t, "sample: 1", func(ctx context.Context, _ *testing.T, get func(context.Context) string, _ func(context.Context, string)) {
		get(ctx)
	})
	if len(received.resources) == 0 {
		t.Fatal("no spans")
	}
	return received.resources[0]
}

func TestTrace_instances(t *testing.T) {
	uuid := regexp.MustCompile(`^string_value:"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	first, second := resourceOf(t), resourceOf(t)
	const instance = "service.instance.id"
	if !uuid.MatchString(first[instance]) || !uuid.MatchString(second[instance]) || first[instance] == second[instance] {
		t.Errorf("instances of two replicas on a host: %s and %s", first[instance], second[instance])
	}
	host, _ := os.Hostname()
	for name, want := range map[string]string{"service.name": "tokenbroker", "service.version": app.Version(), "host.name": host, "telemetry.sdk.language": "go"} {
		if got := first[name]; got != `string_value:"`+want {
			t.Errorf("%s is %s", name, got)
		}
	}
}

func TestTrace_resourceFromTheEnvironment(t *testing.T) {
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=lost,service.instance.id=pod-7,deployment.environment.name=a%20b")
	if got := resourceOf(t); got["service.name"] != `string_value:"lost` || got["service.instance.id"] != `string_value:"pod-7` ||
		got["deployment.environment.name"] != `string_value:"a b` || got["service.version"] != `string_value:"`+app.Version() {
		t.Errorf("%v", got)
	}
	t.Setenv("OTEL_SERVICE_NAME", "token-broker-eu")
	if got := resourceOf(t); got["service.name"] != `string_value:"token-broker-eu` || got["service.instance.id"] != `string_value:"pod-7` {
		t.Errorf("%v", got)
	}
}
