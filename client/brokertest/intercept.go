package brokertest

import (
	"context"
	"net"
	"path"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// disturber counts calls and disturbs them. It is safe for concurrent use.
type disturber struct {
	mu       sync.Mutex
	counts   map[string]int // by method
	failures int
	code     codes.Code
	delay    time.Duration
}

func (d *disturber) count(method string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts[method]
}

func (d *disturber) failNext(n int, code codes.Code) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failures, d.code = n, code
}

func (d *disturber) setDelay(delay time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.delay = delay
}

// disturb counts a call, delays it, and returns the error that it must fail
// with, or nil.
func (d *disturber) disturb(ctx context.Context, fullMethod string) error {
	if path.Dir(fullMethod) != "/tokenbroker.v1.TokenBrokerService" {
		return nil
	}
	delay, err := d.next(path.Base(fullMethod))
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	return err
}

func (d *disturber) next(method string) (time.Duration, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.counts == nil {
		d.counts = map[string]int{}
	}
	d.counts[method]++
	if d.failures == 0 {
		return d.delay, nil
	}
	d.failures--
	return d.delay, status.Error(d.code, "the test wants this call to fail")
}

func (d *disturber) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := d.disturb(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

func (d *disturber) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := d.disturb(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return handler(srv, stream)
}

// listener tracks its connections, so that they can be cut.
type listener struct {
	net.Listener

	mu    sync.Mutex
	conns []net.Conn
	gone  bool
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		_ = conn.Close()
	}
	l.conns = append(l.conns, conn)
	return conn, nil
}

// cut breaks all current and future connections.
func (l *listener) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = true
	for _, conn := range l.conns {
		_ = conn.Close()
	}
}
