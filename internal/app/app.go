// Package app puts a broker together from its configuration file and runs it.
// `broker serve`, `broker dev` and brokers inside other programs are all
// assembled here, in the same way.
package app

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/extauthz"
	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/httpapi"
	"github.com/cezzis/tokenbroker/internal/server"
	"github.com/cezzis/tokenbroker/internal/traceexport"
)

// heapFloor is held, and never touched, so that it takes up no memory: the garbage
// collector runs when the heap has doubled, and with a heap as small as that of a broker
// with few tokens it would run so often that it took a fifth of the CPU time of a cache
// hit.
const heapFloor = 32 << 20

// opsStopTimeout bounds the shutdown of the listeners for operations and public keys.
const opsStopTimeout = 2 * time.Second

// Options are settings of a program that the configuration file does not contain.
type Options struct {
	// Logger receives all log records. Nil: slog.Default.
	Logger *slog.Logger
	// File is the path of the configuration file, which is read again when it changes.
	// Empty: it is not reloaded.
	File string
	// Hangup triggers a reload of the file. Nil: only changes of the file do.
	Hangup <-chan os.Signal
	// Transport replaces the HTTP transport to IdPs and issuers. Nil: the real network.
	Transport http.RoundTripper
	// Listener serves the gRPC API in place of the configured address. Nil: that address.
	Listener net.Listener
	// ServerOptions are added to those of the gRPC server, for programs that
	// observe or disturb its calls.
	ServerOptions []grpc.ServerOption
}

// App is a broker with open listeners; it serves after Run is called.
type App struct {
	config   *config.Config // of the start
	file     string
	hangup   <-chan os.Signal
	log      *slog.Logger
	parts    *parts
	metrics  *reloadMetrics
	status   *statusSource
	registry *prometheus.Registry
	server   *server.Server
	http     *httpapi.Server // nil: off
	listen   listeners
	ready    atomic.Bool

	// background is the parent context of the goroutines that refresh a setup. They end
	// when Run ends or the setup is replaced.
	background context.Context //nolint:containedctx // it is the lifetime of the App's own work
	stop       context.CancelFunc
	running    sync.WaitGroup
	reloading  sync.Mutex // held while the setup is replaced
	stopSetup  func()
}

// New reads the secrets, assembles the broker and opens its listeners. It sends no
// requests to IdPs or issuers. An App that is not Run must be Closed.
func New(config *config.Config, opts Options) (*App, error) {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())
	observers := observers{log: opts.Logger, registerer: registry}
	assembled, err := open(config, opts, &observers)
	if err != nil {
		observers.close()
		return nil, err
	}
	a := &App{
		config: config, file: opts.File, hangup: opts.Hangup, log: opts.Logger,
		parts: assembled, metrics: newReloadMetrics(registry), registry: registry, stopSetup: func() {},
	}
	a.background, a.stop = context.WithCancel(context.Background())
	a.logWarnings(assembled.setup.Load())
	if a.listen.certs, err = openCerts(a.background, &config.Listen, registry); err != nil {
		a.stop()
		assembled.close()
		observers.close()
		return nil, err
	}
	a.status = newStatusSource(a)
	a.server = server.New(a.serverConfig(opts.ServerOptions))
	a.openGateways()
	if err := a.listen.open(&config.Listen, opts.Listener); err != nil {
		a.Close()
		return nil, err
	}
	if a.listen.certs != nil {
		a.logCerts()
	}
	return a, nil
}

// open opens the observers and assembles the rest. The caller closes the observers, also
// after an error.
func open(config *config.Config, opts Options, observers *observers) (*parts, error) {
	var err error
	if observers.audit, err = openAudit(config.Audit, observers.log, observers.registerer); err != nil {
		return nil, err
	}
	if observers.traces, err = traceexport.Open(config.Tracing, Version(), observers.log, observers.registerer); err != nil {
		return nil, err
	}
	assembled, err := assemble(config, opts.Transport, *observers)
	if err != nil {
		return nil, err
	}
	if err := assembled.storage.Check(context.Background(), observers.log); err != nil {
		assembled.close()
		return nil, err
	}
	return assembled, nil
}

func (a *App) serverConfig(options []grpc.ServerOption) server.Config {
	config := a.config
	c := server.Config{
		Broker:   a.parts.broker,
		Rotator:  a.parts.rotator(),
		Status:   a.status.summary,
		TLS:      a.listen.certs,
		Audience: config.Server.CallerAudience,
		Bound:    caller.Bound{TCP: config.Listen.GRPC.Caller, OpaqueTCP: config.Listen.GRPC.OpaqueIssuer},

		Limits:     serverLimits(&config.Limits),
		Deadline:   config.Server.Deadline,
		SlowCall:   config.Server.SlowCall,
		Reflection: config.Server.Reflection,
		Logger:     a.log,
		Registerer: a.registry,
		Options:    options,
		Audit:      a.parts.audit,
		Stats:      a.parts.traces.Handler(),
	}
	if config.Listen.Unix != nil {
		c.Bound.Unix, c.Bound.OpaqueUnix = config.Listen.Unix.Caller, config.Listen.Unix.OpaqueIssuer
	}
	return c
}

// openGateways creates the servers for ext_authz and HTTP.
func (a *App) openGateways() {
	config, judge := a.config, a.forGateways()
	resources := gateway.NewResources(config.Gateways.ProtectedResources())
	if envoy := config.Gateways.ExtAuthz; envoy != nil {
		extauthz.Register(a.server, extAuthzConfig(envoy, judge, resources))
	}
	if !config.Listen.ServesHTTP() {
		return
	}
	bound := caller.Bound{TCP: config.Listen.HTTP.Caller, OpaqueTCP: config.Listen.HTTP.OpaqueIssuer}
	if config.Listen.HTTPUnix != nil {
		bound.Unix, bound.OpaqueUnix = config.Listen.HTTPUnix.Caller, config.Listen.HTTPUnix.OpaqueIssuer
	}
	a.http = httpapi.New(httpapi.Config{
		Broker:         a.parts.broker,
		Callers:        a.server.Callers().HTTP(bound),
		Judge:          judge,
		NeedsInHeaders: config.Gateways.Needs == "headers",
		URL:            config.Listen.HTTPURL(),
		Resources:      resources,
		Deadline:       config.Server.Deadline,
		MessageSize:    config.Limits.MessageSize(),
		HeaderSize:     config.Limits.HeaderSize(),
		Tracer:         a.parts.traces.Tracer(),
		Logger:         a.log,
		Registerer:     a.registry,
	})
}

// HTTPAddr is the address of the HTTP API for gateways and OAuth clients; empty if it is
// off.
func (a *App) HTTPAddr() string {
	if a.listen.http == nil {
		return ""
	}
	return a.listen.http.Addr().String()
}

// GRPCAddr is the address of the gRPC API.
func (a *App) GRPCAddr() string { return a.listen.grpc.Addr().String() }

// OpsAddr is the address of the ops listener (metrics and health); empty if it is off.
func (a *App) OpsAddr() string {
	if a.listen.ops == nil {
		return ""
	}
	return a.listen.ops.Addr().String()
}

// Close releases the resources that New opened. It is for an App that was not Run.
func (a *App) Close() {
	a.stop()
	a.server.Shutdown(0, 0)
	a.running.Wait()
	a.parts.close()
	a.listen.close()
	a.parts.observers.close()
}

// Run serves until ctx ends, and then drains: health changes to NOT_SERVING and calls in
// progress finish. All goroutines have stopped when Run returns. It may be called once.
func (a *App) Run(ctx context.Context) error {
	defer a.end()
	defer runtime.KeepAlive(make([]byte, heapFloor))
	defer a.running.Wait()
	defer a.stop()
	group, failed := errgroup.WithContext(context.WithoutCancel(ctx))
	a.parts.audit.Record(&audit.Event{Event: audit.Start, Version: Version(), ConfigSHA256: a.config.Digest})
	a.begin()
	group.Go(func() error { return a.server.Serve(a.listen.grpc) })
	if a.listen.unix != nil {
		group.Go(func() error { return a.server.Serve(a.listen.unix) })
	}
	if a.listen.http != nil {
		group.Go(func() error { return a.serveHTTP(a.listen.http, a.config.Listen.EncryptedHTTP()) })
	}
	if a.listen.httpUnix != nil {
		group.Go(func() error { return a.serveHTTP(a.listen.httpUnix, false) })
	}
	stopOps := serveUntilStopped(group, "ops", a.listen.ops, a.opsServer())
	stopKeys := serveUntilStopped(group, "public keys", a.listen.keys, a.publicKeysServer())
	a.ready.Store(true)
	a.log.Info("serving", "grpc", a.GRPCAddr(), "tls", a.listen.certs != nil, "http", a.HTTPAddr(), "ops", a.OpsAddr(),
		"store", a.parts.storage.Kind, "clients", len(a.config.Clients), "issuers", len(a.config.Issuers), "version", Version())

	select {
	case <-ctx.Done():
		a.log.Info("draining", "delay", a.config.Server.DrainDelay, "timeout", a.config.Server.DrainTimeout)
	case <-failed.Done():
	}
	a.ready.Store(false)
	a.shutdown()
	a.stop()
	stopKeys()
	stopOps()
	if err := group.Wait(); err != nil {
		return fmt.Errorf("serving: %w", err)
	}
	a.log.Info("stopped")
	return nil
}

// shutdown stops the gRPC and HTTP servers concurrently.
func (a *App) shutdown() {
	delay, timeout := a.config.Server.DrainDelay, a.config.Server.DrainTimeout
	var ending sync.WaitGroup
	if a.http != nil {
		a.http.Drain()
		ending.Go(func() {
			if delay > 0 {
				<-time.After(delay)
			}
			a.http.Shutdown(timeout)
		})
	}
	a.server.Shutdown(delay, timeout)
	ending.Wait()
}

func (a *App) serveHTTP(on net.Listener, encrypted bool) error {
	var secure *tls.Config
	if encrypted {
		secure = a.listen.certs.TLS()
	}
	if err := a.http.Serve(on, secure); err != nil {
		return fmt.Errorf("HTTP listener: %w", err)
	}
	return nil
}

// end releases all resources after the servers have stopped.
func (a *App) end() {
	a.parts.close()
	a.parts.audit.Record(&audit.Event{Event: audit.Stop})
	a.parts.observers.close()
}

// begin starts the background work beside the servers.
func (a *App) begin() {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	a.stopSetup = a.runSetup(a.parts.setup.Load())
	a.running.Go(func() { a.parts.storage.PollSecrets(a.background, a.log) })
	a.running.Go(func() { a.parts.storage.PollRing(a.background, a.log) })
	a.running.Go(func() { a.parts.broker.Run(a.background) })
	a.running.Go(func() { a.parts.keys.Run(a.background) })
	a.running.Go(func() { a.parts.feeder.Run(a.background) })
	a.running.Go(func() { a.status.run(a.background) })
	if a.listen.certs != nil {
		a.running.Go(func() { a.listen.certs.Poll(a.background, a.certsChanged) })
	}
	if a.file != "" {
		a.running.Go(func() { a.watchFile(a.background, a.hangup) })
	}
}
