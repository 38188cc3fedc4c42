package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/cezzis/tokenbroker/client"
)

func newHealthcheck() *cobra.Command {
	var (
		conn    connection
		service string
	)
	// Docker knows no exit code of a health check other than 0 and 1.
	cmd := exitWith(exitNegative, &cobra.Command{
		Use:   "healthcheck",
		Short: "Check the health of a broker",
		Long: `Call a broker's health service (grpc.health.v1) and exit with 0 if it serves. For
health checks of containers without a shell.`,
		Example: `  broker healthcheck --addr 127.0.0.1:8443`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// With client-side health checking the client would send no request to a
			// broker that reports NOT_SERVING.
			return conn.call(cmd, func(ctx context.Context, broker *client.Client) error {
				resp, err := healthpb.NewHealthClient(broker.Conn()).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
				if err != nil {
					return err
				}
				status := resp.GetStatus()
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), status); err != nil {
					return err
				}
				if status != healthpb.HealthCheckResponse_SERVING {
					return exit(exitNegative)
				}
				return nil
			}, client.WithDialOptions(grpc.WithDisableHealthCheck()))
		},
	})
	conn.flags(cmd)
	_ = cmd.Flags().Set("timeout", (3 * time.Second).String())
	cmd.Flags().Lookup("timeout").DefValue = "3s"
	cmd.Flags().StringVar(&service, "service", "", "service to check; empty: the broker as a whole")
	return cmd
}
