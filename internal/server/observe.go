package server

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/cezzis/tokenbroker/internal/caller"
)

// metrics counts calls, with the names and labels of the gRPC ecosystem. The children
// of each method are resolved at the start: looking them up would cost more than
// counting, and a series that starts at 0 shows its first increase.
type metrics struct {
	handled *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	methods map[string]*methodMetrics
	unknown *methodMetrics
}

type methodMetrics struct {
	handled [codes.Unauthenticated + 1]prometheus.Counter // by gRPC code
	seconds prometheus.Observer                           // nil: a stream
}

func newMetrics(registerer prometheus.Registerer) *metrics {
	m := &metrics{
		handled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "grpc_server_handled_total",
			Help: "Calls that ended, by type, service, method and gRPC code.",
		}, []string{"grpc_type", "grpc_service", "grpc_method", "grpc_code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "grpc_server_handling_seconds",
			Help:    "How long unary calls took, by service and method.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .1, .25, 1, 2.5, 10, 30},
		}, []string{"grpc_type", "grpc_service", "grpc_method"}),
		methods: map[string]*methodMetrics{},
	}
	// The type is that of the handler of unknown methods.
	m.unknown = m.child(typeBidiStream, unknownMethodName, unknownMethodName)
	if registerer != nil {
		registerer.MustRegister(m.handled, m.seconds)
	}
	return m
}

// resolve creates the children for the methods of services.
func (m *metrics) resolve(services map[string]grpc.ServiceInfo) {
	for service, info := range services {
		for _, method := range info.Methods {
			child := m.child(typeOf(method), service, method.Name)
			if typeOf(method) == typeUnary {
				child.seconds = m.seconds.WithLabelValues(typeUnary, service, method.Name)
			}
			m.methods["/"+service+"/"+method.Name] = child
		}
	}
}

func (m *metrics) child(kind, service, method string) *methodMetrics {
	child := &methodMetrics{}
	for code := range child.handled {
		child.handled[code] = m.handled.WithLabelValues(kind, service, method, codes.Code(code).String())
	}
	return child
}

// Types of methods: the values of a label.
const (
	typeUnary        = "unary"
	typeClientStream = "client_stream"
	typeServerStream = "server_stream"
	typeBidiStream   = "bidi_stream"
)

func typeOf(method grpc.MethodInfo) string {
	switch {
	case method.IsClientStream && method.IsServerStream:
		return typeBidiStream
	case method.IsClientStream:
		return typeClientStream
	case method.IsServerStream:
		return typeServerStream
	default:
		return typeUnary
	}
}

// ended counts a call.
func (m *metrics) ended(method string, took time.Duration, err error) {
	child, ok := m.methods[method]
	if !ok {
		child = m.unknown
	}
	if child.seconds != nil {
		child.seconds.Observe(took.Seconds())
	}
	code := codes.OK
	if err != nil {
		code = status.Code(err)
	}
	if int(code) >= len(child.handled) {
		code = codes.Unknown
	}
	child.handled[code].Inc()
}

// observer counts and logs every call, admits only calls of callers, and bounds the
// duration of unary ones. It is one interceptor because gRPC allocates for each
// interceptor on each call.
type observer struct {
	callers  *caller.Admission
	metrics  *metrics
	log      *callLog
	deadline time.Duration
	// recovering turns a panic of a stream into an error. It runs within the observer, so
	// that a panic is counted and logged too.
	recovering grpc.StreamServerInterceptor
}

func newObserver(cfg Config, callers *caller.Admission) *observer {
	o := &observer{callers: callers, metrics: newMetrics(cfg.Registerer), log: &callLog{log: cfg.Logger, slow: cfg.SlowCall}, deadline: cfg.Deadline}
	o.recovering = recovery.StreamServerInterceptor(recovery.WithRecoveryHandlerContext(o.log.crashed))
	return o
}

// recovered does the same for unary calls, in a function that defers it: the interceptor
// for those takes a closure and an allocation for each call.
func (o *observer) recovered(ctx context.Context, err *error) {
	if cause := recover(); cause != nil {
		*err = o.log.crashed(ctx, cause)
	}
}

// beginning checks each call when it begins, in the goroutine that reads the
// connection.
func beginning(callers *caller.Admission) tap.ServerInHandle {
	return func(ctx context.Context, call *tap.Info) (context.Context, error) {
		if err := callers.Begin(ctx, call.Header); err != nil {
			return nil, statusOf(err)
		}
		return ctx, nil
	}
}

// forAll reports whether a method needs no caller. The health service itself decides
// which peers may see which status.
func forAll(method string) bool {
	return method == healthpb.Health_Check_FullMethodName || method == healthpb.Health_Watch_FullMethodName
}

// forGateways reports whether a method belongs to a service that gateways call on
// behalf of others. There a JWT belongs to the client of the gateway and never
// identifies the gateway.
func forGateways(method string) bool { return strings.HasPrefix(method, "/envoy.service.auth.") }

func (o *observer) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	begun := time.Now()
	resp, err := o.serve(ctx, begun, req, info, handler)
	took := time.Since(begun)
	o.metrics.ended(info.FullMethod, took, err)
	o.log.ended(ctx, info.FullMethod, took, err)
	return resp, err
}

func (o *observer) serve(ctx context.Context, begun time.Time, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer o.recovered(ctx, &err)
	var call caller.Call
	if !forAll(info.FullMethod) {
		if call, err = o.callers.Enter(ctx, info.FullMethod, forGateways(info.FullMethod), begun); err != nil {
			return nil, statusOf(err)
		}
		defer call.Leave()
	}
	bounded := withDeadline(ctx, begun.Add(o.deadline), call.Caller)
	defer bounded.release()
	return handler(bounded, req)
}

func (o *observer) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	begun := time.Now()
	observed, method := &clientStream{ServerStream: stream}, info.FullMethod
	if srv == nil { // see unknownMethod
		method = unknownMethodName
	}
	err := observed.result(o.recovering(srv, observed, info, func(srv any, stream grpc.ServerStream) error {
		return o.serveStream(srv, stream, method, handler)
	}))
	took := time.Since(begun)
	o.metrics.ended(method, took, err)
	if err != nil {
		o.log.failed(stream.Context(), method, took, err)
	}
	return err
}

func (o *observer) serveStream(srv any, stream grpc.ServerStream, method string, handler grpc.StreamHandler) error {
	if !forAll(method) {
		if _, err := o.callers.Identify(stream.Context(), method, forGateways(method), time.Now()); err != nil {
			return statusOf(err)
		}
	}
	return handler(srv, stream)
}

// unknownMethodName stands for every method that the broker does not implement: the
// name comes from the client and must not get into metrics.
const unknownMethodName = "unknown"

// unknownMethod handles calls of unknown methods. The default response of gRPC would
// reveal to an unidentified peer which services exist. It is called without a service.
func unknownMethod(any, grpc.ServerStream) error {
	return status.Error(codes.Unimplemented, "the token broker has no such service or method")
}

// callLog logs only calls that failed or were slow: a line for each call would cost
// more than the call. It also limits the rate of lines in a flood of failures; the
// metrics count them all.
type callLog struct {
	log  *slog.Logger
	slow time.Duration
	// By gRPC code.
	lines [codes.Unauthenticated + 1]caller.PerSecond
}

// failuresPerSecond is how many failures of one code are logged in a second.
const failuresPerSecond = 10

func (l *callLog) ended(ctx context.Context, method string, took time.Duration, err error) {
	switch {
	case err != nil:
		l.failed(ctx, method, took, err)
	case l.slow > 0 && took > l.slow && l.lines[codes.OK].Admits(time.Now(), failuresPerSecond):
		l.log.InfoContext(ctx, "slow call", "method", method, "took", took.Round(time.Millisecond))
	}
}

// failed logs the message of the status: it is written for callers and so contains no
// secrets.
func (l *callLog) failed(ctx context.Context, method string, took time.Duration, err error) {
	failure := status.Convert(err)
	code := min(failure.Code(), codes.Unauthenticated)
	if !l.lines[code].Admits(time.Now(), failuresPerSecond) {
		return
	}
	l.log.Log(ctx, level(code), "call failed", "method", method, "code", failure.Code().String(),
		"took", took.Round(time.Millisecond), "error", failure.Message())
}

// level returns the log level of a failure: the caller's errors need no action by the
// operator, and a canceled call is normal, because watches end that way.
func level(code codes.Code) slog.Level {
	switch code {
	case codes.Internal, codes.Unknown, codes.DataLoss:
		return slog.LevelError
	case codes.FailedPrecondition, codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded:
		return slog.LevelWarn
	case codes.Canceled:
		return slog.LevelDebug
	default:
		return slog.LevelInfo
	}
}

// crashed turns a panic into a status without details. The value of a panic may hold
// anything, so the log gets only its type and the stack.
func (l *callLog) crashed(ctx context.Context, cause any) error {
	l.log.ErrorContext(ctx, "a handler crashed", "type", fmt.Sprintf("%T", cause), "stack", string(debug.Stack()))
	return statusOf(nil)
}
