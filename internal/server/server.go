// Package server is the gRPC API of the broker: it turns messages into
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

// Bounds of what one connection or message may take.
const (
	// connectionGrace is how long calls may go on over a connection that is too old.
	connectionGrace   = time.Minute
	minClientPing     = 20 * time.Second
	keepaliveInterval = 2 * time.Minute
	keepaliveTimeout  = 20 * time.Second
	// window is what a client may send of a call before it is read. Left to itself
	// gRPC would let it grow, which messages as small as these do not need.
	window = 64 << 10
	// workersPerCore goroutines serve calls one after the other: their stacks have
	// grown already, and growing one for each call costs a tenth of a hit. Calls
	// beyond their number get goroutines of their own.
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

// Config is what a Server is made of.
type Config struct {
	// Broker answers. Required.
	Broker *broker.Broker
	// TLS is what listeners on TCP prove themselves by, and have clients prove
	// themselves by. Nil: they are in plaintext.
	TLS *certs.Source
	// Audience is whom the JWTs by which callers are recognised must be for. Empty:
	// DefaultAudience.
	Audience string
	// Bound is the caller that everybody is who connects over TCP and proves nothing
	// else, BoundUnix who connects to a Unix socket. Empty: nobody.
	Bound, BoundUnix string
	// OpaqueIssuer is the issuer that is asked about opaque tokens which come over TCP
	// without the name of their issuer, OpaqueIssuerUnix over a Unix socket. Empty: the
	// only issuer with introspection.
	OpaqueIssuer, OpaqueIssuerUnix string
	// Limits are those of all callers together; their own are in the policy.
	Limits Limits
	// Deadline bounds every unary call. Zero: DefaultDeadline.
	Deadline time.Duration
	// SlowCall: successful calls that take longer are logged. Zero: none are.
	SlowCall time.Duration
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
	// Options are added to those of the gRPC server. Interceptors among them are
	// inside of those here.
	Options []grpc.ServerOption
}

// Limits bound what a server takes on. Of what is zero, the default holds.
type Limits struct {
	// Connections may be open at a time. More are refused.
	Connections int
	// Streams are the open calls that one connection may have. A client waits with
	// more of them by itself.
	Streams uint32
	// InFlight are unary calls that may be under way at a time. More are refused.
	InFlight int
	// Strangers are the calls that may be open on all connections together on which no
	// caller was identified yet. More are refused.
	Strangers int
	// ConnectionAge is after which time, give or take a tenth, a client is asked to
	// connect anew: so that it finds replicas that joined since, and proves anew who it
	// is.
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
	health    *health.Server // what it says ends with the first moment of Shutdown
	watched   *health.Server // what health watches of the first generation say
	callers   *callers
	limits    *limits
	transport *transport
	metrics   *metrics
	age       time.Duration      // of connections
	streams   uint32             // that a connection may have
	draining  context.Context    //nolint:containedctx // it ends when the watches are to end
	drain     context.CancelFunc // ends draining

	// What each gRPC server is made of.
	options, extra []grpc.ServerOption
	reflection     bool
	services       []addedService

	mu       sync.Mutex
	current  *generation // takes new connections
	relays   map[*relay]struct{}
	closed   bool // there are no listeners any more
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

// Door returns the door of other listeners.
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

// RegisterService adds a service of another API, before Serve: its calls are
// those of callers, and limited and counted, like all.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, implementation any) {
	s.metrics.resolve(desc)
	s.services = append(s.services, addedService{desc, implementation})
	s.current.grpc.RegisterService(desc, implementation)
	s.setServing(healthpb.HealthCheckResponse_NOT_SERVING)
}

// addedService is a service that was added with RegisterService.
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

// Serve answers on listener until Shutdown, which may have been called already.
// Health says SERVING from now on. It may be called for several listeners.
func (s *Server) Serve(listener net.Listener) error {
	s.setServing(healthpb.HealthCheckResponse_SERVING)
	return s.serve(listener)
}
