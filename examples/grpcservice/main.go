// Command grpcservice is an example of a small gRPC service that uses package client. It
// requires a valid token from its callers, and calls another service with its own token.
// It has no secret and does not connect to an identity provider.
//
// Try it beside "broker dev":
//
//	go run ./examples/grpcservice
package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cezzis/tokenbroker/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		slog.Default().Error("the service ended", "error", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func run(ctx context.Context) error {
	broker, err := client.FromEnv(client.WithUserAgent("grpcservice/1.0"), client.WithLogger(slog.Default()))
	if err != nil {
		return err
	}
	defer func() { _ = broker.Close() }()
	served := &orders{open: 3}
	if addr := os.Getenv("ARCHIVE_ADDR"); addr != "" {
		archive, err := dialArchive(broker, addr)
		if err != nil {
			return err
		}
		defer func() { _ = archive.Close() }()
		served.archive = archive
	}
	var network net.ListenConfig
	listener, err := network.Listen(ctx, "tcp", "127.0.0.1:8081")
	if err != nil {
		return err
	}
	server := newServer(broker, served)
	stop := context.AfterFunc(ctx, server.GracefulStop)
	defer stop()
	return server.Serve(listener)
}

// dialArchive connects to the service that has older orders, and sends our token with
// each call. If the service responds with UNAUTHENTICATED, the call is repeated once with
// another token.
func dialArchive(broker *client.Client, addr string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	source := broker.TokenSource("orders-api", client.WithScopes("read"))
	return grpc.NewClient(addr, append([]grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(nil)), grpc.WithUnaryInterceptor(source.UnaryClientInterceptor()),
	}, opts...)...)
}

// newServer returns a server that requires a valid token.
func newServer(broker *client.Client, orders *orders) *grpc.Server {
	v := broker.Verifier(client.RequireAudience("https://orders.example.com"))
	rules := []client.InterceptorOption{
		client.PublicMethods("/grpc.health.v1.Health/"),
		client.MethodScopes(countMethod, "read"),
	}
	server := grpc.NewServer(
		grpc.ChainUnaryInterceptor(client.UnaryServerInterceptor(v, rules...)),
		grpc.ChainStreamInterceptor(client.StreamServerInterceptor(v, rules...)))
	registerOrders(server, orders)
	healthpb.RegisterHealthServer(server, health.NewServer())
	return server
}

// orders counts the open orders, and those in the archive if there is one.
type orders struct {
	open    int64
	archive grpc.ClientConnInterface
}

// Count counts the orders of the named user or, without a name, of the caller.
func (o *orders) Count(ctx context.Context, of *wrapperspb.StringValue) (*wrapperspb.Int64Value, error) {
	caller, _ := client.ClaimsFromContext(ctx)
	name := of.GetValue()
	if name == "" && caller.SubjectType == client.SubjectClientID {
		// The token has no user. A user with the client's name may exist, and the orders
		// belong to that user.
		return nil, status.Error(codes.PermissionDenied, "a client has no orders of its own: name a user")
	}
	if name == "" {
		name = caller.Subject
	}
	if o.archive == nil {
		return wrapperspb.Int64(o.open), nil
	}
	archived, err := callCount(ctx, o.archive, name)
	if err != nil {
		return nil, err
	}
	return wrapperspb.Int64(o.open + archived), nil
}
