package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func newHealthcheck() *cobra.Command {
	var (
		to      connection
		service string
	)
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask a broker whether it serves",
		Long: `Ask a broker for its health (grpc.health.v1) and exit with 0 if it serves. For
health checks of containers that have no shell.`,
		Example: `  broker healthcheck --addr 127.0.0.1:8443`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plaintext, err := to.unencrypted(cmd)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), to.timeout)
			defer cancel()
			status, err := health(ctx, to.addr, service, plaintext)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), status); err != nil {
				return err
			}
			if status != healthpb.HealthCheckResponse_SERVING {
				return exit(1)
			}
			return nil
		},
	}
	to.flags(cmd)
	_ = cmd.Flags().Set("timeout", (3 * time.Second).String())
	cmd.Flags().Lookup("timeout").DefValue = "3s"
	cmd.Flags().StringVar(&service, "service", "", "service to ask about; empty: the broker as a whole")
	return cmd
}

func health(ctx context.Context, addr, service string, plaintext bool) (healthpb.HealthCheckResponse_ServingStatus, error) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(transport(plaintext)))
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
	return resp.GetStatus(), err
}

func transport(plaintext bool) credentials.TransportCredentials {
	if plaintext {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(nil)
}
