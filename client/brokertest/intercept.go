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

// interceptor counts, delays and fails calls. It is safe for concurrent use.
type interceptor struct {
	mu       sync.Mutex
	counts   map[string]int // by method
	failures int
	code     codes.Code
	delay    time.Duration
}

func (i *interceptor) count(method string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.counts[method]
}

func (i *interceptor) failNext(n int, code codes.Code) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.failures, i.code = n, code
}

func (i *interceptor) setDelay(delay time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.delay = delay
}

// intercept counts a call, delays it, and returns the error that it must fail
// with, or nil.
func (i *interceptor) intercept(ctx context.Context, fullMethod string) error {
	if path.Dir(fullMethod) != "/tokenbroker.v1.TokenBrokerService" {
		return nil
	}
	delay, err := i.next(path.Base(fullMethod))
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

func (i *interceptor) next(method string) (time.Duration, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.counts == nil {
		i.counts = map[string]int{}
	}
	i.counts[method]++
	if i.failures == 0 {
		return i.delay, nil
	}
	i.failures--
	return i.delay, status.Error(i.code, "the test wants this call to fail")
}

func (i *interceptor) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := i.intercept(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

func (i *interceptor) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := i.intercept(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return handler(srv, stream)
}

// listener tracks its connections, so that they can be cut.
type listener struct {
	net.Listener

	mu     sync.Mutex
	conns  []net.Conn
	broken bool
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken {
		_ = conn.Close()
	}
	l.conns = append(l.conns, conn)
	return conn, nil
}

// cut breaks all current and future connections.
func (l *listener) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = true
	for _, conn := range l.conns {
		_ = conn.Close()
	}
}
