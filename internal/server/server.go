// Package server is the gRPC face of the broker: it turns messages into
// questions and answers into messages, and decides nothing itself.
//
// Nothing here logs a message, whole or in part: protobuf-go prints fields that
// are marked debug_redact like any other.
package server

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"runtime"
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
	// ConnectionAge is after which time, give or take a tenth, a client is asked to
	// connect anew: so that it finds replicas that joined since, and proves anew who it
	// is.
	ConnectionAge time.Duration
	// HandshakeTimeout is how long a client may take until it can make calls.
	HandshakeTimeout time.Duration
	// MessageSize and HeaderSize are what a call may carry, in bytes.
	MessageSize int
	HeaderSize  uint32
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Connections:      cmp.Or(l.Connections, DefaultConnections),
		Streams:          cmp.Or(l.Streams, DefaultStreams),
		InFlight:         cmp.Or(l.InFlight, DefaultInFlight),
		ConnectionAge:    cmp.Or(l.ConnectionAge, DefaultConnectionAge),
		HandshakeTimeout: cmp.Or(l.HandshakeTimeout, DefaultHandshakeTimeout),
		MessageSize:      cmp.Or(l.MessageSize, DefaultMessageSize),
		HeaderSize:       cmp.Or(l.HeaderSize, DefaultHeaderSize),
	}
}

// Server serves the broker over gRPC.
type Server struct {
	grpc      *grpc.Server
	health    *health.Server
	callers   *callers
	limits    *limits
	transport *transport
	metrics   *metrics
	age       time.Duration      // of connections
	drain     context.CancelFunc // ends the watches
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
	observe, transport := newObserver(cfg, who, held), newTransport(cfg, who)
	s := &Server{
		grpc:   grpc.NewServer(append(options(cfg, who, observe, transport), cfg.Options...)...),
		health: health.NewServer(), callers: who, limits: held, transport: transport, metrics: observe.metrics,
		age: cfg.Limits.ConnectionAge,
	}
	healthpb.RegisterHealthServer(s.grpc, s.health)
	var draining context.Context
	draining, s.drain = context.WithCancel(context.Background())
	tokenbrokerv1.RegisterTokenBrokerServiceServer(s.grpc, &service{
		broker: cfg.Broker, callers: who, limits: held, streams: cfg.Limits.Streams, draining: draining,
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

func newCallers(cfg Config, held *limits) *callers {
	who := &callers{
		broker: cfg.Broker, audience: cmp.Or(cfg.Audience, DefaultAudience), audit: cfg.Audit,
		authorities: func() *certs.Authorities { return nil },
		strangers:   &strangers{most: maxStrangerStreams, refused: held.refused.WithLabelValues(nobody, limitStrangers).Inc},
	}
	if cfg.TLS != nil {
		who.authorities = cfg.TLS.Authorities
	}
	return who
}

func newTransport(cfg Config, who *callers) *transport {
	t := &transport{
		callers: who, bound: cfg.Bound, boundUnix: cfg.BoundUnix, most: int64(cfg.Limits.Connections),
		failures: newHandshakes(cfg.Logger, cfg.Audit, cfg.Registerer),
	}
	if cfg.TLS != nil {
		t.source, t.tls = cfg.TLS, credentials.NewTLS(cfg.TLS.TLS())
	}
	return t
}

// RegisterService adds a service of another face, before Serve: its calls are
// those of callers, and limited and counted, like all.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, implementation any) {
	s.metrics.resolve(desc)
	s.grpc.RegisterService(desc, implementation)
	s.health.SetServingStatus(desc.ServiceName, healthpb.HealthCheckResponse_NOT_SERVING)
}

func options(cfg Config, who *callers, observe *observer, transport *transport) []grpc.ServerOption {
	most := cfg.Limits
	options := []grpc.ServerOption{
		grpc.Creds(transport),
		grpc.InTapHandle(who.strangers.tap),
		grpc.UnaryInterceptor(observe.unary),
		grpc.StreamInterceptor(observe.stream),
		grpc.MaxRecvMsgSize(most.MessageSize),
		grpc.MaxHeaderListSize(most.HeaderSize),
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
	for name := range s.grpc.GetServiceInfo() {
		s.health.SetServingStatus(name, healthpb.HealthCheckResponse_SERVING)
	}
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	if err := s.grpc.Serve(listener); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
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
