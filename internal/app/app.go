// Package app puts a broker together from its configuration file and runs it.
// `broker serve`, `broker dev` and brokers inside other programs are all
// assembled here, in the same way.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/cezzis/tokenbroker/internal/server"
)

// heapFloor is held, and never touched, so that it takes up no memory: the
// garbage collector runs when the heap has doubled, and with a heap as small as
// that of a broker with few tokens it would run so often that it took a fifth of
// a hit's CPU time.
const heapFloor = 32 << 20

// opsStopTimeout bounds the end of the ops listener's last answers.
const opsStopTimeout = 2 * time.Second

// Options are what a program adds to the configuration file.
type Options struct {
	// Logger is told of everything. Nil: slog.Default.
	Logger *slog.Logger
	// Transport replaces the network towards IdPs and issuers. Nil: the network.
	Transport http.RoundTripper
}

// App is a broker that listens already and serves once it is Run.
type App struct {
	config   *Config
	log      *slog.Logger
	parts    *parts
	registry *prometheus.Registry
	server   *server.Server
	grpc     net.Listener
	ops      net.Listener // nil: off
	ready    atomic.Bool
}

// New reads the secrets, assembles the broker and opens its listeners. It asks
// neither IdPs nor issuers anything. An App that is not Run must be Closed.
func New(config *Config, opts Options) (*App, error) {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())
	assembled, err := assemble(config, opts, registry)
	if err != nil {
		return nil, err
	}
	if err := assembled.storage.check(context.Background(), opts.Logger); err != nil {
		assembled.close()
		return nil, err
	}
	a := &App{config: config, log: opts.Logger, parts: assembled, registry: registry}
	a.server = server.New(server.Config{
		Broker:               assembled.broker,
		Deadline:             config.Server.Deadline,
		SlowCall:             config.Server.SlowCall,
		MaxConcurrentStreams: uint32(config.Server.MaxConcurrentStreams), //nolint:gosec // the configuration bounds it
		Reflection:           config.Server.Reflection,
		Logger:               opts.Logger,
		Registerer:           registry,
	})
	if a.grpc, err = listen("grpc", config.Listen.GRPC.Address); err != nil {
		a.Close()
		return nil, err
	}
	if config.Listen.Ops.Address == "" {
		return a, nil
	}
	if a.ops, err = listen("ops", config.Listen.Ops.Address); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

func listen(name, address string) (net.Listener, error) {
	var network net.ListenConfig
	listener, err := network.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen.%s: %w; is another process using the address?", name, err)
	}
	return listener, nil
}

// GRPCAddr is where the gRPC API is served.
func (a *App) GRPCAddr() string { return a.grpc.Addr().String() }

// OpsAddr is where metrics and health are served over HTTP; empty: nowhere.
func (a *App) OpsAddr() string {
	if a.ops == nil {
		return ""
	}
	return a.ops.Addr().String()
}

// Close lets go of what New opened. It is for an App that was not Run.
func (a *App) Close() {
	a.server.Shutdown(0, 0)
	a.parts.close()
	for _, listener := range []net.Listener{a.grpc, a.ops} {
		if listener != nil {
			_ = listener.Close()
		}
	}
}

// Run serves until ctx ends, and then drains: health turns to NOT_SERVING, calls
// in progress end, and everything that was started has stopped when Run returns.
// It may be called once.
func (a *App) Run(ctx context.Context) error {
	defer a.parts.close()
	defer runtime.KeepAlive(make([]byte, heapFloor))
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	group, failed := errgroup.WithContext(context.WithoutCancel(ctx))
	group.Go(func() error { a.parts.verifier.Run(background); return nil })
	group.Go(func() error { a.parts.storage.pollSecrets(background, a.log); return nil })
	group.Go(func() error { a.parts.storage.pollRing(background, a.log); return nil })
	group.Go(func() error { a.parts.broker.Run(background); return nil })
	group.Go(func() error { return a.server.Serve(a.grpc) })
	stopOps := a.serveOps(group)
	a.ready.Store(true)
	a.log.Info("serving", "grpc", a.GRPCAddr(), "ops", a.OpsAddr(),
		"store", a.parts.storage.kind, "clients", len(a.config.Clients), "issuers", len(a.config.Issuers), "version", Version())

	select {
	case <-ctx.Done():
		a.log.Info("draining", "delay", a.config.Server.DrainDelay, "timeout", a.config.Server.DrainTimeout)
	case <-failed.Done():
	}
	a.ready.Store(false)
	a.server.Shutdown(a.config.Server.DrainDelay, a.config.Server.DrainTimeout)
	stopBackground()
	stopOps()
	if err := group.Wait(); err != nil {
		return fmt.Errorf("serving: %w", err)
	}
	a.log.Info("stopped")
	return nil
}

// serveOps starts the ops listener and returns what stops it.
func (a *App) serveOps(group *errgroup.Group) (stop func()) {
	if a.ops == nil {
		return func() {}
	}
	ops := a.opsServer()
	group.Go(func() error {
		if err := ops.Serve(a.ops); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("ops listener: %w", err)
		}
		return nil
	})
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), opsStopTimeout)
		defer cancel()
		if ops.Shutdown(ctx) != nil {
			_ = ops.Close()
		}
	}
}
