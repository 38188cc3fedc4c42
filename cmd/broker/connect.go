package main

import (
	"cmp"
	"context"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/cezzis/tokenbroker/client"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

const defaultAddr = client.DefaultTarget

// connection has the settings for connecting to a broker: from the environment
// (client.FromEnv), overridden by flags.
type connection struct {
	addr      string
	plaintext bool
	files     client.TLSFiles
	tokenFile string
	timeout   time.Duration
}

func (c *connection) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&c.addr, "addr", cmp.Or(os.Getenv("TOKENBROKER_ADDR"), defaultAddr), "address of the broker, HOST:PORT (environment: TOKENBROKER_ADDR)")
	flags.BoolVar(&c.plaintext, "plaintext", false, "connect without TLS; the default on loopback (environment: TOKENBROKER_PLAINTEXT)")
	flags.StringVar(&c.files.CA, "ca", os.Getenv("TOKENBROKER_CA"), "file with the CAs that may have issued the broker's certificate; empty: those of the system (environment: TOKENBROKER_CA)")
	flags.StringVar(&c.files.Cert, "cert", os.Getenv("TOKENBROKER_CERT"), "file with the client certificate to present (environment: TOKENBROKER_CERT)")
	flags.StringVar(&c.files.Key, "key", os.Getenv("TOKENBROKER_KEY"), "file with its private key (environment: TOKENBROKER_KEY)")
	flags.StringVar(&c.files.ServerName, "server-name", os.Getenv("TOKENBROKER_SERVER_NAME"), "name in the broker's certificate; empty: the host of --addr (environment: TOKENBROKER_SERVER_NAME)")
	flags.StringVar(&c.tokenFile, "token-file", os.Getenv("TOKENBROKER_TOKEN_FILE"), "file with the JWT to present; empty: the one that broker dev left, if any (environment: TOKENBROKER_TOKEN_FILE)")
	flags.DurationVar(&c.timeout, "timeout", 20*time.Second, "how long to wait for a response")
}

func (c *connection) open(cmd *cobra.Command, opts ...client.Option) (*client.Client, error) {
	opts = append(opts, client.WithTarget(c.addr), client.WithTokenFile(c.tokenFile))
	switch plaintext := cmd.Flags().Changed("plaintext"); {
	case plaintext && c.plaintext:
		opts = append(opts, client.WithPlaintext())
	case c.files != (client.TLSFiles{}):
		opts = append(opts, client.WithTLSFiles(c.files))
	case plaintext:
		opts = append(opts, client.WithTLS(nil))
	}
	return client.FromEnv(opts...)
}

// callAdmin runs call with a connection to the broker.
func (c *connection) callAdmin(cmd *cobra.Command, call func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error) error {
	broker, err := c.open(cmd)
	if err != nil {
		return err
	}
	defer func() { _ = broker.Close() }()
	ctx, cancel := context.WithTimeout(cmd.Context(), c.timeout)
	defer cancel()
	return call(ctx, tokenbrokerv1.NewAdminServiceClient(broker.Conn()))
}
