// Package server is the gRPC face of the broker: it turns messages into
// questions and answers into messages, and decides nothing itself.
//
// Nothing here logs a message, whole or in part: protobuf-go prints fields that
// are marked debug_redact like any other.
package server

import (
	"context"
	"log/slog"
	"net"
	"runtime"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/broker"
)

// Bounds of what one connection or message may take.
const (
	maxMessage    = 128 << 10 // a backup of three private keys fits
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
)

// Config is what a Server is made of.
type Config struct {
	// Broker answers. Required.
	Broker *broker.Broker
	// Deadline bounds every unary call. Zero: DefaultDeadline.
	Deadline time.Duration
	// SlowCall: successful calls that take longer are logged. Zero: none are.
	SlowCall time.Duration
	// MaxConcurrentStreams bounds the open calls of one connection. Zero:
	// DefaultMaxConcurrentStreams.
	MaxConcurrentStreams uint32
	// Reflection lets tools ask which services there are.
	Reflection bool
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
	s := &Server{grpc: grpc.NewServer(options(cfg)...), health: health.NewServer()}
	healthpb.RegisterHealthServer(s.grpc, s.health)
	var draining context.Context
	draining, s.drain = context.WithCancel(context.Background())
	tokenbrokerv1.RegisterTokenBrokerServiceServer(s.grpc, &service{
		broker: cfg.Broker, watches: newWatches(cfg.MaxConcurrentStreams), draining: draining,
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

// options puts the interceptors in the order that holds: what counts and logs is
// outside of what recovers, so that a panic is counted and logged too.
func options(cfg Config) []grpc.ServerOption {
	observe := &observer{newMetrics(cfg.Registerer), &callLog{log: cfg.Logger, slow: cfg.SlowCall}, cfg.Deadline}
	crashed := recovery.WithRecoveryHandlerContext(observe.log.crashed)
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(observe.unary, recovery.UnaryServerInterceptor(crashed)),
		grpc.ChainStreamInterceptor(observe.stream, recovery.StreamServerInterceptor(crashed)),
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
