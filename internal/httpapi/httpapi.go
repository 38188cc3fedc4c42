// Package httpapi is the HTTP API of the broker, for callers that do not use gRPC:
// gateways that check a request (/verify), and OAuth clients in any language that
// request a token (RFC 6749) or introspect one (RFC 7662). Like package server it
// translates requests and responses, and makes no decisions itself.
//
// It supports HTTP/1.1 only, serves only paths that are spelled exactly, and sends no
// redirects. Nothing here logs a request, in whole or in part: any part of it may hold a
// token.
package httpapi

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/server"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

// Bounds of one connection.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second
	// writeGrace is the time limit for writing a response.
	writeGrace = 5 * time.Second
	// idleTimeout is longer than that of gateways, so that gateways close idle
	// connections: if the broker closes one, a request may already be on its way.
	idleTimeout = 3 * time.Minute
	// linesPerSecond is how many failures are logged in a second.
	linesPerSecond = 10
)

// clientClosedRequest is the status that metrics count if the client
// disconnected before the broker had a response. nginx uses the same number.
const clientClosedRequest = 499

// The paths.
const (
	verifyPath     = "/verify"
	tokenPath      = "/oauth2/token"
	introspectPath = "/oauth2/introspect"
	metadataPath   = "/.well-known/oauth-authorization-server"
)

// Config is the configuration of a Server.
type Config struct {
	// Broker fetches and verifies tokens, Callers identifies callers, Judge decides for
	// gateways. Required.
	Broker  *broker.Broker
	Callers *caller.HTTP
	Judge   *gateway.Judge
	// NeedsInHeaders: gateways send the requirements for a token in headers, and not in
	// the query.
	NeedsInHeaders bool
	// URL is the URL of the server for clients, used in its metadata (RFC 8414); empty:
	// no metadata.
	URL string
	// Resources are the protected resources whose metadata (RFC 9728) the server serves.
	// Nil: none.
	Resources *gateway.Resources
	// Deadline bounds every request for a token; a verification has a shorter bound of
	// its own. Zero: server.DefaultDeadline.
	Deadline time.Duration
	// MessageSize and HeaderSize bound the body and the headers of a request, tokens
	// included, in bytes. Zero: the defaults of package server.
	MessageSize, HeaderSize int
	// Tracer makes spans of requests. Nil: no spans.
	Tracer *tracing.Tracer
	// Logger receives failures. Nil: slog.Default.
	Logger *slog.Logger
	// Registerer registers the metrics. Nil: they are counted but not exported.
	Registerer prometheus.Registerer
}

// Server serves the broker over HTTP.
type Server struct {
	cfg         Config
	http        *http.Server
	metrics     *metrics
	lines       *rate.Limiter
	routes      map[string]route
	parsedNeeds needsCache
	// draining makes clients close their connections, so that their next requests go to
	// another replica and no request is on its way when the broker closes a connection.
	draining atomic.Bool
}

// route is the handler of a path. Its function returns the status of the response and
// the error for the log.
type route struct {
	name    string
	span    tracing.Name
	methods []string // nil: any
	serve   func(w http.ResponseWriter, r *http.Request) (status int, err error)
}

// New makes a Server; Serve starts it.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	cfg.Deadline = cmp.Or(cfg.Deadline, server.DefaultDeadline)
	cfg.MessageSize = cmp.Or(cfg.MessageSize, caller.DefaultMessageSize)
	cfg.HeaderSize = cmp.Or(cfg.HeaderSize, caller.DefaultHeaderSize+caller.DefaultTokenSize)
	s := &Server{cfg: cfg, lines: rate.NewLimiter(linesPerSecond, linesPerSecond)}
	s.routes = map[string]route{
		verifyPath:     {"verify", tracing.ServeVerify, nil, s.verify},
		tokenPath:      {"token", tracing.ServeToken, []string{http.MethodPost}, s.token},
		introspectPath: {"introspect", tracing.ServeIntrospection, []string{http.MethodPost}, s.introspect},
	}
	if cfg.URL != "" {
		s.routes[metadataPath] = route{"metadata", tracing.ServeMetadata, []string{http.MethodGet, http.MethodHead}, s.metadata}
	}
	for _, path := range cfg.Resources.Paths() {
		s.routes[path] = route{"metadata", tracing.ServeMetadata, []string{http.MethodGet, http.MethodHead}, s.resourceMetadata}
	}
	s.metrics = newMetrics(cfg.Registerer, s.routes)
	s.http = &http.Server{
		Handler:                      s,
		ReadHeaderTimeout:            readHeaderTimeout,
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 cfg.Deadline + writeGrace,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               cfg.HeaderSize,
		DisableGeneralOptionsHandler: true,
		ConnContext:                  cfg.Callers.Connected,
		ConnState: func(conn net.Conn, now http.ConnState) {
			if now == http.StateClosed {
				cfg.Callers.Closed(conn)
			}
		},
		Protocols: new(http.Protocols),
		ErrorLog:  slog.NewLogLogger(&limited{cfg.Logger.Handler(), s.lines}, slog.LevelInfo),
	}
	s.http.Protocols.SetHTTP1(true)
	return s
}

// Serve serves on listener until Shutdown, in plaintext if secure is nil. It may be
// called for several listeners.
func (s *Server) Serve(listener net.Listener, secure *tls.Config) error {
	listener = s.cfg.Callers.Listen(listener)
	if secure != nil {
		listener = tls.NewListener(listener, secure)
	}
	if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Drain makes clients close their connections after the next response.
func (s *Server) Drain() { s.draining.Store(true) }

// Shutdown accepts no new requests and waits for those in progress, at most for timeout.
func (s *Server) Shutdown(timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	// RawPath is set if the encoding of the path is not the default one.
	at, ok := s.at(cmp.Or(r.URL.RawPath, r.URL.Path))
	header := w.Header()
	header["Cache-Control"] = noStore
	header["X-Content-Type-Options"] = noSniff
	if s.draining.Load() || s.cfg.Callers.Overdue(r.Context(), start) || MustClose(r) {
		header["Connection"] = closing
	}
	if !ok {
		s.metrics.ended(otherEndpoint, http.StatusNotFound, time.Since(start))
		w.WriteHeader(http.StatusNotFound)
		return
	}
	status, err := s.traced(w, r, at)
	if status >= http.StatusInternalServerError && r.Context().Err() != nil {
		status, err = clientClosedRequest, nil // the client disconnected; the broker did not fail
	}
	s.metrics.ended(at.name, status, time.Since(start))
	if err != nil {
		s.log(r.Context(), at.name, status, err)
	}
}

// MustClose reports whether the connection must close after the response to r, because
// another recipient could find the end of its body elsewhere (RFC 9112 section 6.1).
// net/http hides the evidence from handlers: it removes a Content-Length that stands
// beside a chunked coding, and any Transfer-Encoding of HTTP/1.0. So every request with
// a coding and every request below HTTP/1.1 counts. A response 200 to CONNECT would
// turn the connection into a tunnel.
func MustClose(r *http.Request) bool {
	return len(r.TransferEncoding) > 0 || !r.ProtoAtLeast(1, 1) || r.Method == http.MethodConnect
}

func (s *Server) traced(w http.ResponseWriter, r *http.Request, at route) (status int, err error) {
	if s.cfg.Tracer == nil {
		return s.answer(w, r, at)
	}
	ctx, span := s.cfg.Tracer.Serve(r.Context(), at.span, r.Header)
	status, err = s.answer(w, r.WithContext(ctx), at)
	span.Served(status)
	return status, err
}

// Header values that all responses share; they are never modified.
//
//nolint:gochecknoglobals // values of headers that are shared by all responses
var (
	noStore = []string{"no-store"}
	noSniff = []string{"nosniff"}
	closing = []string{"close"}
)

// route returns the route of a path. Some gateways append the path of the checked
// request to /verify; it is ignored.
func (s *Server) at(path string) (route, bool) {
	if strings.HasPrefix(path, verifyPath+"/") {
		path = verifyPath
	}
	at, ok := s.routes[path]
	return at, ok
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, at route) (status int, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			status, err = s.crashed(r.Context(), w, at, cause), nil
		}
	}()
	if at.methods != nil && !slices.Contains(at.methods, r.Method) {
		w.Header().Set("Allow", strings.Join(at.methods, ", "))
		w.WriteHeader(http.StatusMethodNotAllowed)
		return http.StatusMethodNotAllowed, nil
	}
	return at.serve(w, r)
}

// crashed responds after a panic. The value of the panic may hold anything, so the log
// gets its type and the stack.
func (s *Server) crashed(ctx context.Context, w http.ResponseWriter, at route, cause any) int {
	s.cfg.Logger.ErrorContext(ctx, "a handler crashed", "endpoint", at.name, "type", fmt.Sprintf("%T", cause), "stack", string(debug.Stack()))
	status := http.StatusInternalServerError
	if at.name == "verify" {
		status = http.StatusServiceUnavailable
	}
	w.WriteHeader(status)
	return status
}

// log writes the error's own message: it is written for callers, and so holds no secret.
func (s *Server) log(ctx context.Context, endpoint string, status int, err error) {
	if !s.lines.Allow() {
		return
	}
	level := slog.LevelInfo
	if status >= http.StatusInternalServerError {
		level = slog.LevelWarn
	}
	message := "an unforeseen error"
	if failure, ok := errors.AsType[*apierror.Error](err); ok {
		message = failure.Message
	}
	s.cfg.Logger.Log(ctx, level, "request failed", "endpoint", endpoint, "status", status, "error", message)
}

// limited writes no more lines than the limiter admits: lines of net/http are about
// connections that any peer can open.
type limited struct {
	slog.Handler

	lines *rate.Limiter
}

// Handle implements slog.Handler.
func (l *limited) Handle(ctx context.Context, record slog.Record) error {
	// Callers.Closed logs failed handshakes.
	if strings.HasPrefix(record.Message, "http: TLS handshake error ") || !l.lines.Allow() {
		return nil
	}
	return l.Handler.Handle(ctx, record)
}

// metrics counts requests. The children for the usual responses are resolved at the
// start.
type metrics struct {
	handled *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	by      map[string]endpointMetrics
}

type endpointMetrics struct {
	ok      prometheus.Counter
	seconds prometheus.Observer
}

// usualStatuses are the statuses whose counters start at 0, so that their first increase
// is visible.
//
//nolint:gochecknoglobals // a list that Go cannot express as a constant
var usualStatuses = []int{
	http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusMethodNotAllowed, http.StatusTooManyRequests,
	clientClosedRequest, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable,
}

// otherEndpoint is the label of requests for paths that are not served.
const otherEndpoint = "other"

func newMetrics(registerer prometheus.Registerer, routes map[string]route) *metrics {
	m := &metrics{
		handled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenbroker_http_requests_total",
			Help: "HTTP requests, by endpoint and status code.",
		}, []string{"endpoint", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "tokenbroker_http_request_duration_seconds",
			Help:    "Duration of HTTP requests, by endpoint.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .1, .25, 1, 2.5, 10, 30},
		}, []string{"endpoint"}),
		by: map[string]endpointMetrics{},
	}
	for _, at := range routes {
		m.by[at.name] = endpointMetrics{m.handled.WithLabelValues(at.name, "200"), m.seconds.WithLabelValues(at.name)}
		for _, status := range usualStatuses {
			m.handled.WithLabelValues(at.name, strconv.Itoa(status))
		}
	}
	m.handled.WithLabelValues(otherEndpoint, strconv.Itoa(http.StatusNotFound))
	if registerer != nil {
		registerer.MustRegister(m.handled, m.seconds)
	}
	return m
}

func (m *metrics) ended(endpoint string, status int, elapsed time.Duration) {
	own, ok := m.by[endpoint]
	if ok {
		own.seconds.Observe(elapsed.Seconds())
	}
	if ok && status == http.StatusOK {
		own.ok.Inc()
		return
	}
	m.handled.WithLabelValues(endpoint, strconv.Itoa(status)).Inc()
}
