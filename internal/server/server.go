// Package server is the gRPC API of the broker: it converts messages to requests and
// results to messages. The broker makes all decisions.
//
// Nothing here logs a message, whole or in part: protobuf-go prints fields that are
// marked debug_redact like any other.
package server

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/stats"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/certs"
	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/rotation"
)

// Bounds of one connection or message.
const (
	// connectionGrace is how long calls may continue over a connection that is too old.
	connectionGrace   = time.Minute
	minClientPing     = 20 * time.Second
	keepaliveInterval = 2 * time.Minute
	keepaliveTimeout  = 20 * time.Second
	// window is how much of a call a client may send before it is read. By default gRPC
	// lets it grow, which messages as small as these do not need.
	window = 64 << 10
	// workersPerCore goroutines serve one call after another: their stacks have grown
	// already, and growing a stack for each call costs a tenth of a cache hit. Calls
	// beyond their number get their own goroutines.
	workersPerCore = 32
)

// DefaultDeadline is the default of Config.Deadline.
const DefaultDeadline = 30 * time.Second

// Config configures a Server.
type Config struct {
	// Broker serves the requests. Required.
	Broker *broker.Broker
	// Rotator changes secrets. Nil: one without backups.
	Rotator *rotation.Rotator
	// Status returns the status of the fleet. Nil: it is unknown.
	Status func(ctx context.Context) fleet.Summary
	// TLS holds the server certificate and the client authorities of listeners on TCP.
	// Nil: they are in plaintext.
	TLS *certs.Source
	// Audience is the required audience of the JWTs of callers. Empty: DefaultAudience.
	Audience string
	// Bound holds the settings of the listeners.
	Bound caller.Bound
	// Limits apply to all callers together; the limits of each caller are in the
	// policy.
	Limits caller.Limits
	// Deadline bounds every unary call. Zero: DefaultDeadline.
	Deadline time.Duration
	// SlowCall is the duration beyond which successful calls are logged. Zero: never.
	SlowCall time.Duration
	// Reflection enables gRPC server reflection.
	Reflection bool
	// Audit records refused calls and connections. Nil: they are not recorded.
	Audit *audit.Log
	// Stats makes spans of calls. Nil: no spans.
	Stats stats.Handler
	// Logger logs failed and slow calls. Nil: slog.Default.
	Logger *slog.Logger
	// Registerer registers the metrics. Nil: they are counted but not exported.
	Registerer prometheus.Registerer
	// Options are added to the options of the gRPC server. Interceptors among them run
	// inside of the ones here.
	Options []grpc.ServerOption
}

// Server serves the broker over gRPC.
type Server struct {
	broker    *broker.Broker
	rotator   *rotation.Rotator
	status    func(context.Context) fleet.Summary
	health    *health.Server // NOT_SERVING from the start of Shutdown
	watched   *health.Server // health for the watches of the first generation
	callers   *caller.Admission
	transport credentials.TransportCredentials
	metrics   *metrics
	draining  context.Context    //nolint:containedctx // it ends when the watches are to end
	drain     context.CancelFunc // ends draining

	// The parts of each gRPC server.
	options, extra []grpc.ServerOption
	reflection     bool
	services       []addedService

	mu       sync.Mutex
	current  *generation // accepts new connections
	relays   map[*relay]struct{}
	closed   bool // all listeners are closed
	stopped  chan struct{}
	stopOnce sync.Once
}

// New makes a Server; Serve starts it.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Deadline <= 0 {
		cfg.Deadline = DefaultDeadline
	}
	cfg.Limits = cfg.Limits.WithDefaults()
	callers := caller.New(caller.Config{
		Broker: cfg.Broker, TLS: cfg.TLS, Audience: cfg.Audience, Limits: cfg.Limits, Audit: cfg.Audit, Logger: cfg.Logger, Registerer: cfg.Registerer,
	})
	observe := newObserver(cfg, callers)
	s := &Server{
		broker: cfg.Broker, rotator: cmp.Or(cfg.Rotator, rotation.New(cfg.Broker, nil)), status: cfg.Status,
		health: health.NewServer(), watched: health.NewServer(), callers: callers, transport: callers.Transport(cfg.Bound), metrics: observe.metrics,
		options: options(cfg, callers, observe), extra: cfg.Options, reflection: cfg.Reflection,
		relays: map[*relay]struct{}{}, stopped: make(chan struct{}),
	}
	s.draining, s.drain = context.WithCancel(context.Background())
	s.current = s.newGeneration(s.watched)
	s.metrics.resolve(s.current.grpc.GetServiceInfo())
	s.setServing(healthpb.HealthCheckResponse_NOT_SERVING)
	return s
}

// Callers returns the Admission of this server, for other APIs.
func (s *Server) Callers() *caller.Admission { return s.callers }

// register adds all services to a gRPC server.
func (s *Server) register(to *grpc.Server, watched *health.Server) {
	healthpb.RegisterHealthServer(to, &healthService{callers: s.callers, now: s.health, watched: watched, draining: s.draining})
	tokenbrokerv1.RegisterTokenBrokerServiceServer(to, &service{broker: s.broker, callers: s.callers, draining: s.draining})
	tokenbrokerv1.RegisterAdminServiceServer(to, &admin{broker: s.broker, rotator: s.rotator, status: s.status})
	for _, added := range s.services {
		to.RegisterService(added.desc, added.implementation)
	}
	if s.reflection {
		reflection.Register(to)
	}
}

// setServing sets the health of every service and of the broker as a whole.
func (s *Server) setServing(to healthpb.HealthCheckResponse_ServingStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, reported := range []*health.Server{s.health, s.watched} {
		for name := range s.current.grpc.GetServiceInfo() {
			reported.SetServingStatus(name, to)
		}
		reported.SetServingStatus("", to)
	}
}

// RegisterService adds a service of another API, before Serve. Its calls are
// authenticated, limited and counted like all others.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, implementation any) {
	s.services = append(s.services, addedService{desc, implementation})
	s.current.grpc.RegisterService(desc, implementation)
	s.metrics.resolve(s.current.grpc.GetServiceInfo())
	s.setServing(healthpb.HealthCheckResponse_NOT_SERVING)
}

// addedService is a service that RegisterService added.
type addedService struct {
	desc           *grpc.ServiceDesc
	implementation any
}

func options(cfg Config, callers *caller.Admission, observe *observer) []grpc.ServerOption {
	most := cfg.Limits
	options := []grpc.ServerOption{
		grpc.InTapHandle(beginning(callers)),
		grpc.UnaryInterceptor(observe.unary),
		grpc.StreamInterceptor(observe.stream),
		grpc.UnknownServiceHandler(unknownMethod),
		grpc.MaxRecvMsgSize(most.MessageSize),
		grpc.MaxHeaderListSize(most.ReadHeaders()),
		grpc.MaxConcurrentStreams(most.Streams),
		grpc.ConnectionTimeout(most.HandshakeTimeout),
		grpc.StaticStreamWindowSize(window),
		grpc.NumStreamWorkers(workersPerCore * uint32(runtime.GOMAXPROCS(0))), //nolint:gosec // a number of cores fits
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minClientPing, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge:      most.ConnectionAge,
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

// Serve serves listener until Shutdown, which may have been called already. Health is
// SERVING from now on. Serve may be called for several listeners.
func (s *Server) Serve(listener net.Listener) error {
	s.setServing(healthpb.HealthCheckResponse_SERVING)
	return s.serve(listener)
}
