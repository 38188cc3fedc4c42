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
	"github.com/cezzis/tokenbroker/internal/certs"
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

// Defaults of Config.
const (
	DefaultDeadline         = 30 * time.Second
	DefaultAudience         = "tokenbroker"
	DefaultConnections      = 10_000
	DefaultStreams          = 250
	DefaultInFlight         = 10_000
	DefaultConnectionAge    = 30 * time.Minute
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultMessageSize      = 64 << 10
	DefaultHeaderSize       = 16 << 10
	DefaultTokenSize        = 16 << 10
)

// Config configures a Server.
type Config struct {
	// Broker serves the requests. Required.
	Broker *broker.Broker
	// TLS holds the server certificate and the client authorities of listeners on TCP.
	// Nil: they are in plaintext.
	TLS *certs.Source
	// Audience is the required audience of the JWTs of callers. Empty: DefaultAudience.
	Audience string
	// Bound is the caller of connections over TCP that prove no other identity,
	// BoundUnix that of connections to a Unix socket. They may be empty.
	Bound, BoundUnix string
	// OpaqueIssuer is the issuer that introspects opaque tokens which come over TCP
	// without an issuer name, OpaqueIssuerUnix that for a Unix socket. Empty: the only
	// issuer with introspection.
	OpaqueIssuer, OpaqueIssuerUnix string
	// Limits apply to all callers together; the limits of each caller are in the
	// policy.
	Limits Limits
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

// Limits bound the load of a server. Zero fields take their defaults.
type Limits struct {
	// Connections is how many connections may be open at a time. More are refused.
	Connections int
	// Streams is how many open calls one connection may have. gRPC clients queue
	// further calls by themselves.
	Streams uint32
	// InFlight is how many unary calls may be in progress at a time. More are refused.
	InFlight int
	// Strangers is how many calls may be open, over all connections together, on
	// connections without an identified caller. More are refused.
	Strangers int
	// ConnectionAge is the time, randomized by a tenth either way, after which a client
	// must reconnect, so that it finds new replicas and authenticates again.
	ConnectionAge time.Duration
	// HandshakeTimeout is how long a client may take until it can make calls.
	HandshakeTimeout time.Duration
	// MessageSize and HeaderSize bound the message and the headers of a call, in bytes.
	// The headers may have another TokenSize bytes in authorization.
	MessageSize           int
	HeaderSize, TokenSize uint32
}

func (l *Limits) withDefaults() Limits {
	return Limits{
		Connections:      cmp.Or(l.Connections, DefaultConnections),
		Streams:          cmp.Or(l.Streams, DefaultStreams),
		InFlight:         cmp.Or(l.InFlight, DefaultInFlight),
		Strangers:        cmp.Or(l.Strangers, DefaultStrangers),
		ConnectionAge:    cmp.Or(l.ConnectionAge, DefaultConnectionAge),
		HandshakeTimeout: cmp.Or(l.HandshakeTimeout, DefaultHandshakeTimeout),
		MessageSize:      cmp.Or(l.MessageSize, DefaultMessageSize),
		HeaderSize:       cmp.Or(l.HeaderSize, DefaultHeaderSize),
		TokenSize:        cmp.Or(l.TokenSize, DefaultTokenSize),
	}
}

// Server serves the broker over gRPC.
type Server struct {
	broker    *broker.Broker
	health    *health.Server // NOT_SERVING from the start of Shutdown
	watched   *health.Server // health for the watches of the first generation
	callers   *callers
	limits    *limits
	transport *transport
	metrics   *metrics
	age       time.Duration      // of connections
	streams   uint32             // per connection
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
	cfg.Limits = cfg.Limits.withDefaults()
	held := newLimits(cfg.Broker, cfg.Limits.InFlight, cfg.Registerer)
	who := newCallers(cfg, held)
	observe := newObserver(cfg, who, held)
	s := &Server{
		broker: cfg.Broker, health: health.NewServer(), watched: health.NewServer(),
		callers: who, limits: held, transport: newTransport(cfg, who), metrics: observe.metrics,
		age: cfg.Limits.ConnectionAge, streams: cfg.Limits.Streams,
		options: options(cfg, who, observe), extra: cfg.Options, reflection: cfg.Reflection,
		relays: map[*relay]struct{}{}, stopped: make(chan struct{}),
	}
	s.draining, s.drain = context.WithCancel(context.Background())
	s.current = s.newGeneration(s.watched)
	s.setServing(healthpb.HealthCheckResponse_NOT_SERVING)
	return s
}

// Door returns a Door for the listeners of other protocols.
func (s *Server) Door(bound Bound) *Door {
	return &Door{callers: s.callers, limits: s.limits, transport: s.transport, bound: bound, age: s.age}
}

// register adds all services to a gRPC server.
func (s *Server) register(to *grpc.Server, watched *health.Server) {
	healthpb.RegisterHealthServer(to, &healthService{callers: s.callers, now: s.health, watched: watched, draining: s.draining})
	tokenbrokerv1.RegisterTokenBrokerServiceServer(to, &service{
		broker: s.broker, callers: s.callers, limits: s.limits, streams: s.streams, draining: s.draining,
	})
	tokenbrokerv1.RegisterAdminServiceServer(to, &admin{broker: s.broker})
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
	for _, told := range []*health.Server{s.health, s.watched} {
		for name := range s.current.grpc.GetServiceInfo() {
			told.SetServingStatus(name, to)
		}
		told.SetServingStatus("", to)
	}
}

func newCallers(cfg Config, held *limits) *callers {
	who := &callers{
		broker: cfg.Broker, audience: cmp.Or(cfg.Audience, DefaultAudience), audit: cfg.Audit,
		authorities: func() *certs.Authorities { return nil },
		strangers:   &strangers{most: cfg.Limits.Strangers, refused: held.refused.WithLabelValues(nobody, limitStrangers).Inc},
		headers: headerLimit{
			most: int(cfg.Limits.HeaderSize), token: int(cfg.Limits.TokenSize), refused: held.refused.WithLabelValues(nobody, limitHeaders).Inc,
		},
	}
	if cfg.TLS != nil {
		who.authorities = cfg.TLS.Authorities
	}
	return who
}

func newTransport(cfg Config, who *callers) *transport {
	t := &transport{
		callers: who, bound: cfg.Bound, boundUnix: cfg.BoundUnix, opaque: cfg.OpaqueIssuer, opaqueUnix: cfg.OpaqueIssuerUnix, most: int64(cfg.Limits.Connections),
		failures: newHandshakes(cfg.Logger, cfg.Audit, cfg.Registerer), allowed: strangerAllowance(cfg.Limits.Streams),
	}
	if cfg.TLS != nil {
		t.source, t.tls = cfg.TLS, credentials.NewTLS(cfg.TLS.TLS())
	}
	return t
}

// RegisterService adds a service of another API, before Serve. Its calls are
// authenticated, limited and counted like all others.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, implementation any) {
	s.metrics.resolve(desc)
	s.services = append(s.services, addedService{desc, implementation})
	s.current.grpc.RegisterService(desc, implementation)
	s.setServing(healthpb.HealthCheckResponse_NOT_SERVING)
}

// addedService is a service that RegisterService added.
type addedService struct {
	desc           *grpc.ServiceDesc
	implementation any
}

func options(cfg Config, who *callers, observe *observer) []grpc.ServerOption {
	most := cfg.Limits
	options := []grpc.ServerOption{
		grpc.InTapHandle(beginning(who)),
		grpc.UnaryInterceptor(observe.unary),
		grpc.StreamInterceptor(observe.stream),
		grpc.UnknownServiceHandler(unknownMethod),
		grpc.MaxRecvMsgSize(most.MessageSize),
		grpc.MaxHeaderListSize(most.readHeaders()),
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
