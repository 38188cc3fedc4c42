package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/config"
)

func newHealthcheck() *cobra.Command {
	var (
		conn          connection
		service, file string
	)
	// Docker knows no exit code of a health check other than 0 and 1.
	cmd := exitWith(exitNegative, &cobra.Command{
		Use:   "healthcheck",
		Short: "Check the health of a broker",
		Long: `Call a broker's health service (grpc.health.v1) and exit with 0 if it serves. For
health checks of containers without a shell.

With --config the command checks the broker with that configuration on this machine: at its
address, and with TLS if the broker has TLS. It does not verify the broker's certificate
then: the call stays on this machine and presents no credential.

The exit code is 1 on each failure, because Docker knows no other.`,
		Example: `  broker healthcheck --addr 127.0.0.1:8443
  broker healthcheck --config /etc/tokenbroker/broker.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// With client-side health checking the client would send no request to a
			// broker that reports NOT_SERVING.
			options := []client.Option{client.WithDialOptions(grpc.WithDisableHealthCheck())}
			if file != "" {
				local, err := conn.local(file)
				if err != nil {
					return err
				}
				options = append(options, local)
			}
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
			}, options...)
		},
	})
	conn.flags(cmd)
	_ = cmd.Flags().Set("timeout", (3 * time.Second).String())
	cmd.Flags().Lookup("timeout").DefValue = "3s"
	cmd.Flags().StringVar(&service, "service", "", "service to check; empty: the broker as a whole")
	cmd.Flags().StringVar(&file, "config", "", "check the broker on this machine with this configuration file; without --addr and the flags for TLS")
	for _, other := range []string{"addr", "plaintext", "ca", "cert", "key", "server-name", "token-file"} {
		cmd.MarkFlagsMutuallyExclusive("config", other)
	}
	return cmd
}

// local makes the command connect to the broker on this machine that has the configuration
// in file.
func (c *connection) local(file string) (client.Option, error) {
	config, err := config.Load(file)
	if err != nil {
		return nil, err
	}
	address := localAddress(&config.Listen)
	if address == "" {
		return nil, fmt.Errorf("%s: listen.grpc has no fixed port: give the address with --addr in place of --config", file)
	}
	*c = connection{addr: address, timeout: c.timeout}
	if config.Listen.TLS == nil || config.Listen.GRPC.Plaintext || strings.HasPrefix(address, "unix:") {
		return client.WithPlaintext(), nil
	}
	return client.WithTLS(&tls.Config{InsecureSkipVerify: true}), nil //nolint:gosec // see the help
}
