// Package server is the gRPC face of the broker: it turns messages into
// questions and answers into messages, and decides nothing itself.
//
// Nothing here logs a message, whole or in part: protobuf-go prints fields that
// are marked debug_redact like any other.
package server

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/stats"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/broker"
)

// Bounds of what one connection or message may take.
const (
	maxMessage    = 64 << 10
	maxHeaderList = 16 << 10
	// maxConnectionAge makes clients connect anew, so that they find replicas
	// that joined since.
	maxConnectionAge  = 30 * time.Minute
	connectionGrace   = time.Minute
	handshakeTimeout  = 10 * time.Second
	minClientPing     = 20 * time.Second
	keepaliveInterval = 2 * time.Minute
	keepaliveTimeout  = 20 * time.Second
	// workersPerCore goroutines serve calls one after the other: their stacks have
	// grown already, and growing one for each call costs a tenth of a hit. Calls
	// beyond their number get goroutines of their own.
	workersPerCore = 32
)

// Defaults of Config.
const (
	DefaultDeadline             = 30 * time.Second
	DefaultMaxConcurrentStreams = 1000
	DefaultAudience             = "tokenbroker"
)

// Config is what a Server is made of.
type Config struct {
	// Broker answers. Required.
	Broker *broker.Broker
	// Audience is whom the JWTs by which callers are recognised must be for. Empty:
	// DefaultAudience.
	Audience string
	// Bound is the caller that everybody is who connects and proves nothing else.
	// Empty: nobody.
	Bound string
	// Deadline bounds every unary call. Zero: DefaultDeadline.
	Deadline time.Duration
	// SlowCall: successful calls that take longer are logged. Zero: none are.
	SlowCall time.Duration
	// MaxConcurrentStreams bounds the open calls of one connection. Zero:
	// DefaultMaxConcurrentStreams.
	MaxConcurrentStreams uint32
	// Reflection lets tools ask which services there are.
	Reflection bool
	// Audit is where it is written down who was refused at the door. Nil: nowhere.
	Audit *audit.Log
	// Stats makes spans of calls. Nil: there are none, and none is asked to make any.
	Stats stats.Handler
	// Logger is told of failed and slow calls. Nil: slog.Default.
	Logger *slog.Logger
	// Registerer takes the metrics. Nil: they are counted but not shown.
	Registerer prometheus.Registerer
}

// Server serves the broker over gRPC.
type Server struct {
	grpc   *grpc.Server
	health *health.Server
	drain  context.CancelFunc // ends the watches
}

// New makes a Server; Serve starts it.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Deadline <= 0 {
		cfg.Deadline = DefaultDeadline
	}
	if cfg.MaxConcurrentStreams == 0 {
		cfg.MaxConcurrentStreams = DefaultMaxConcurrentStreams
	}
	who := &callers{broker: cfg.Broker, audience: cmp.Or(cfg.Audience, DefaultAudience), bound: cfg.Bound, audit: cfg.Audit}
	s := &Server{grpc: grpc.NewServer(options(cfg, who)...), health: health.NewServer()}
	healthpb.RegisterHealthServer(s.grpc, s.health)
	var draining context.Context
	draining, s.drain = context.WithCancel(context.Background())
	tokenbrokerv1.RegisterTokenBrokerServiceServer(s.grpc, &service{
		broker: cfg.Broker, callers: who, watches: newWatches(cfg.MaxConcurrentStreams), draining: draining,
	})
	tokenbrokerv1.RegisterAdminServiceServer(s.grpc, &admin{broker: cfg.Broker})
	if cfg.Reflection {
		reflection.Register(s.grpc)
	}
	for name := range s.grpc.GetServiceInfo() {
		s.health.SetServingStatus(name, healthpb.HealthCheckResponse_NOT_SERVING)
	}
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	return s
}

func options(cfg Config, who *callers) []grpc.ServerOption {
	observe := newObserver(cfg, who)
	options := []grpc.ServerOption{
		grpc.UnaryInterceptor(observe.unary),
		grpc.StreamInterceptor(observe.stream),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaderList),
		grpc.MaxConcurrentStreams(cfg.MaxConcurrentStreams),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.NumStreamWorkers(workersPerCore * uint32(runtime.GOMAXPROCS(0))), //nolint:gosec // a number of cores fits
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minClientPing, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge:      maxConnectionAge,
			MaxConnectionAgeGrace: connectionGrace,
			Time:                  keepaliveInterval,
			Timeout:               keepaliveTimeout,
		}),
	}
	if cfg.Stats != nil {
		options = append(options, grpc.StatsHandler(cfg.Stats))
	}
	return options
}

// Serve answers on listener until Shutdown. Health says SERVING from now on.
func (s *Server) Serve(listener net.Listener) error {
	for name := range s.grpc.GetServiceInfo() {
		s.health.SetServingStatus(name, healthpb.HealthCheckResponse_SERVING)
	}
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	return s.grpc.Serve(listener)
}

// Shutdown says NOT_SERVING, goes on answering for delay so that load balancers
// notice, then ends the watches, takes no new calls and lets those in progress
// end until timeout is over. It returns when nothing is served any more.
func (s *Server) Shutdown(delay, timeout time.Duration) {
	s.health.Shutdown()
	if delay > 0 {
		<-time.After(delay)
	}
	s.drain()
	cutOff := time.AfterFunc(timeout, s.grpc.Stop)
	defer cutOff.Stop()
	s.grpc.GracefulStop()
}
