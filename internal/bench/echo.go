package main

import (
	"context"
	"flag"
	"fmt"
	"net"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

const echoCommand = "echo"

// fixed sends the same response to every call. It looks at nothing, except at the
// signatures of tokens if it has a checker: the rest is the cost of gRPC.
type fixed struct {
	tokenbrokerv1.UnimplementedTokenBrokerServiceServer
	checker

	token    *tokenbrokerv1.GetTokenResponse
	verified *tokenbrokerv1.VerifyTokenResponse
}

func (f *fixed) GetToken(context.Context, *tokenbrokerv1.GetTokenRequest) (*tokenbrokerv1.GetTokenResponse, error) {
	return f.token, nil
}

func (f *fixed) VerifyToken(_ context.Context, req *tokenbrokerv1.VerifyTokenRequest) (*tokenbrokerv1.VerifyTokenResponse, error) {
	return f.verified, f.check(req.GetToken())
}

// echo serves on the first address, until ctx is done, the response of the broker at the
// second for a client: the same bytes, so that sizes and codec are equal.
func echo(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet(echoCommand, flag.ContinueOnError)
	by := proofFlags(flags)
	http := flags.String("http", "", "answer gateways at `ADDR`")
	from := flags.String("from", "", "as the broker at `ADDR` does")
	keys := flags.String("keys", "", "verify the signatures of tokens with the JWK set at `URL`; empty: not")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 3 {
		return fmt.Errorf("usage: bench %s [-tls DIR] [-http LISTEN -from BROKER] [-keys URL] LISTEN BROKER CLIENT", echoCommand)
	}
	answers, err := learn(ctx, flags.Arg(1), *by, flags.Arg(2))
	if err != nil {
		return fmt.Errorf("asking the broker for the answers to repeat: %w", err)
	}
	if answers.checker, err = newChecker(ctx, *keys); err != nil {
		return fmt.Errorf("reading the keys that verify tokens: %w", err)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", flags.Arg(0))
	if err != nil {
		return err
	}
	options, err := by.server()
	if err != nil {
		return err
	}
	server := grpc.NewServer(options...)
	healthpb.RegisterHealthServer(server, health.NewServer())
	tokenbrokerv1.RegisterTokenBrokerServiceServer(server, answers)
	if *http != "" {
		gatewayServer, err := learnGateways(ctx, flags.Arg(1), *from, *by, answers.token.GetAccessToken())
		if err != nil {
			return fmt.Errorf("asking the broker for the answers to repeat to gateways: %w", err)
		}
		gatewayServer.checker = answers.checker
		authv3.RegisterAuthorizationServer(server, gatewayServer)
		if err := gatewayServer.serve(ctx, *http, *by); err != nil {
			return err
		}
	}
	defer context.AfterFunc(ctx, server.Stop)()
	return server.Serve(listener)
}

func learn(ctx context.Context, address string, by proof, client string) (*fixed, error) {
	connection, err := connect(address, by)
	if err != nil {
		return nil, err
	}
	defer func() { _ = connection.Close() }()
	broker := tokenbrokerv1.NewTokenBrokerServiceClient(connection)
	answers := &fixed{}
	if answers.token, err = broker.GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: client}); err != nil {
		return nil, err
	}
	request := &tokenbrokerv1.VerifyTokenRequest{Token: answers.token.GetAccessToken()}
	if answers.verified, err = broker.VerifyToken(ctx, request); err != nil {
		return nil, err
	}
	return answers, nil
}
