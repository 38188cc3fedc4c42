package server

import (
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
)

// gRPC sends GOAWAY to the clients of a server only together with closing its
// listeners, and drops connections that it accepted just before. A draining broker
// needs other behavior: clients must reconnect at once, so that a load balancer sends
// them to another replica, while connections that load balancers still send here are
// served. So the listeners belong to the Server, which hands new connections to a
// second gRPC server when it begins to drain.

// errHandedOver ends the Serve call of a gRPC server that accepts no more connections.
var errHandedOver = errors.New("new connections are handed to another gRPC server")

// generation is a gRPC server and the connections that it accepted.
type generation struct {
	grpc *grpc.Server
	// over is closed when the generation accepts no more connections.
	over chan struct{}
	// serving counts its Serve calls. arriving counts the accepted connections before
	// their handshake: gRPC drops them when it stops.
	serving, arriving sync.WaitGroup
	// next accepts later connections. It is set before over is closed.
	next *generation
}

// newGeneration makes a gRPC server with all services. Its health watches report the
// status in watched.
func (s *Server) newGeneration(watched *health.Server) *generation {
	g := &generation{over: make(chan struct{})}
	options := append(slices.Clone(s.options), grpc.Creds(&arrivals{s.transport, &g.arriving}))
	g.grpc = grpc.NewServer(append(options, s.extra...)...)
	s.register(g.grpc, watched)
	return g
}

// arrivals removes a connection from arriving when its handshake begins.
type arrivals struct {
	credentials.TransportCredentials

	arriving *sync.WaitGroup
}

// ServerHandshake implements credentials.TransportCredentials.
func (a *arrivals) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	a.arriving.Done()
	return a.TransportCredentials.ServerHandshake(raw)
}

// Clone implements credentials.TransportCredentials. Servers do not call it.
func (a *arrivals) Clone() credentials.TransportCredentials { return a }

// end sends GOAWAY to the clients of a generation that accepts no more connections, and
// returns when their calls have ended.
func (g *generation) end() {
	g.serving.Wait()
	g.arriving.Wait()
	g.grpc.GracefulStop()
}

// relay accepts the connections of a listener for the current generation.
type relay struct {
	net.Listener

	accepted chan acceptedConn // closed with the listener
	closing  atomic.Bool
}

type acceptedConn struct {
	conn net.Conn
	err  error
}

func newRelay(listener net.Listener) *relay {
	r := &relay{Listener: listener, accepted: make(chan acceptedConn)}
	go r.run()
	return r
}

func (r *relay) run() {
	defer close(r.accepted)
	for {
		conn, err := r.Listener.Accept()
		if err != nil && r.closing.Load() {
			return
		}
		r.accepted <- acceptedConn{conn, err}
		if temporary, ok := errors.AsType[interface {
			error
			Temporary() bool
		}](err); err != nil && (!ok || !temporary.Temporary()) {
			return
		}
	}
}

// close closes the listener. Connections accepted before are still served.
func (r *relay) close() {
	r.closing.Store(true)
	_ = r.Listener.Close()
}

// generationListener is the listener of one generation.
type generationListener struct {
	*relay

	of *generation
}

// Accept implements net.Listener.
func (t *generationListener) Accept() (net.Conn, error) {
	select {
	case <-t.of.over:
		return nil, errHandedOver
	default:
	}
	select {
	case <-t.of.over:
		return nil, errHandedOver
	case next, open := <-t.accepted:
		if !open {
			return nil, errHandedOver
		}
		if next.err == nil {
			t.of.arriving.Add(1)
		}
		return next.conn, next.err
	}
}

// Close implements net.Listener. The listener is closed by Shutdown, because another
// generation may use it.
func (*generationListener) Close() error { return nil }

// open adds a listener. It returns nil if Shutdown has closed all listeners.
func (s *Server) open(listener net.Listener) (*relay, *generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = listener.Close()
		return nil, nil
	}
	r := newRelay(listener)
	s.relays[r] = struct{}{}
	s.current.serving.Add(1)
	return r, s.current
}

// drop removes a listener that failed while g served it.
func (s *Server) drop(r *relay, g *generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.relays, r)
	for g = g.next; g != nil; g = g.next {
		g.serving.Done()
	}
}

// serve serves a listener with one generation after the other.
func (s *Server) serve(listener net.Listener) error {
	r, g := s.open(listener)
	for ; g != nil; g = g.next {
		err := g.grpc.Serve(&generationListener{r, g})
		g.serving.Done()
		if err != nil && !errors.Is(err, errHandedOver) && !errors.Is(err, grpc.ErrServerStopped) {
			s.drop(r, g)
			return err
		}
	}
	<-s.stopped
	return nil
}

// handOver sends new connections to a new generation and returns the old one, or nil if
// all listeners are closed.
func (s *Server) handOver() (old *generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	old = s.current
	old.next = s.newGeneration(s.health)
	old.next.serving.Add(len(s.relays))
	s.current = old.next
	close(old.over)
	return old
}

// closeListeners closes the listeners and returns the generation that accepted the last
// connections.
func (s *Server) closeListeners() (last *generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for r := range s.relays {
		r.close()
	}
	return s.current
}

// Shutdown drains the server. For delay, health is NOT_SERVING and GOAWAY makes clients
// reconnect, which sends them to another replica as soon as the load balancer has
// noticed; calls and new connections are still served. Then Shutdown closes the
// listeners, ends the watches and waits at most timeout for the calls in progress.
//
// Health watches of older connections report NOT_SERVING only after delay: a client
// that saw it earlier would fail its calls until it has reconnected.
func (s *Server) Shutdown(delay, timeout time.Duration) {
	s.health.Shutdown()
	var ending sync.WaitGroup
	var ended []*generation
	end := func(g *generation) {
		ended = append(ended, g)
		ending.Go(g.end)
	}
	if delay > 0 {
		if old := s.handOver(); old != nil {
			end(old)
		}
		<-time.After(delay)
	}
	last := s.closeListeners()
	s.drain()
	end(last)
	cutOff := time.AfterFunc(timeout, func() {
		for _, g := range ended {
			g.grpc.Stop()
		}
	})
	defer cutOff.Stop()
	ending.Wait()
	s.stopOnce.Do(func() { close(s.stopped) })
}
