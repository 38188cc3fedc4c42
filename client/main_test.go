package client_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cezzis/tokenbroker/client"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

const name = "orders-api"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stub is a broker for behavior that a real one does not have.
type stub struct {
	tokenbrokerv1.UnimplementedTokenBrokerServiceServer

	get   func(ctx context.Context, req *tokenbrokerv1.GetTokenRequest) (*tokenbrokerv1.GetTokenResponse, error)
	watch func(req *tokenbrokerv1.WatchTokenRequest, stream grpc.ServerStreamingServer[tokenbrokerv1.WatchTokenResponse]) error

	verify func(ctx context.Context, req *tokenbrokerv1.VerifyTokenRequest) (*tokenbrokerv1.VerifyTokenResponse, error)

	mu                   sync.Mutex
	getCalls, watchCalls int
}

func (s *stub) GetToken(ctx context.Context, req *tokenbrokerv1.GetTokenRequest) (*tokenbrokerv1.GetTokenResponse, error) {
	s.mu.Lock()
	s.getCalls++
	s.mu.Unlock()
	return s.get(ctx, req)
}

func (s *stub) VerifyToken(ctx context.Context, req *tokenbrokerv1.VerifyTokenRequest) (*tokenbrokerv1.VerifyTokenResponse, error) {
	if s.verify == nil {
		return s.UnimplementedTokenBrokerServiceServer.VerifyToken(ctx, req)
	}
	return s.verify(ctx, req)
}

func (s *stub) WatchToken(req *tokenbrokerv1.WatchTokenRequest, stream grpc.ServerStreamingServer[tokenbrokerv1.WatchTokenResponse]) error {
	s.mu.Lock()
	s.watchCalls++
	s.mu.Unlock()
	if s.watch == nil {
		return s.UnimplementedTokenBrokerServiceServer.WatchToken(req, stream)
	}
	return s.watch(req, stream)
}

func (s *stub) calls() (gets, watches int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.getCalls, s.watchCalls
}

// serve serves the stub and returns a client of it.
func (s *stub) serve(t *testing.T, opts ...client.Option) *client.Client {
	t.Helper()
	listener := bufconn.Listen(64 << 10)
	server := grpc.NewServer()
	tokenbrokerv1.RegisterTokenBrokerServiceServer(server, s)
	healthy := health.NewServer()
	healthy.SetServingStatus(tokenbrokerv1.TokenBrokerService_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(server, healthy)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	opts = append([]client.Option{client.WithPlaintext(), client.WithDialOptions(
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
	)}, opts...)
	c, err := client.New("passthrough:///stub", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		server.Stop()
		<-ended
	})
	return c
}

// newTokenResponse returns a token with this lifetime.
func newTokenResponse(text string, life time.Duration) *tokenbrokerv1.GetTokenResponse {
	now := time.Now()
	return &tokenbrokerv1.GetTokenResponse{
		AccessToken: text, TokenType: "Bearer",
		ExpiresAt: timestamppb.New(now.Add(life)), RefreshAt: timestamppb.New(now.Add(life * 3 / 4)),
	}
}

func mustToken(t *testing.T, source *client.Source) *client.Token {
	t.Helper()
	token, err := source.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func logTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
