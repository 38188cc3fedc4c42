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
	// plaintextSet is set by open if the flag is given.
	plaintextSet bool
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

// open connects to the broker. An error is that of a flag, the environment or a file.
func (c *connection) open(cmd *cobra.Command, opts ...client.Option) (*client.Client, error) {
	opts = append(opts, client.WithTarget(c.addr), client.WithTokenFile(c.tokenFile))
	c.plaintextSet = cmd.Flags().Changed("plaintext")
	switch {
	case c.plaintextSet && c.plaintext:
		opts = append(opts, client.WithPlaintext())
	case c.files != (client.TLSFiles{}):
		opts = append(opts, client.WithTLSFiles(c.files))
	case c.plaintextSet:
		opts = append(opts, client.WithTLS(nil))
	}
	broker, err := client.FromEnv(opts...)
	if err != nil {
		return nil, codedError{err, exitTrouble}
	}
	return broker, nil
}

// call runs call with a connection to the broker, and explains its error.
func (c *connection) call(cmd *cobra.Command, call func(ctx context.Context, broker *client.Client) error, opts ...client.Option) error {
	broker, err := c.open(cmd, opts...)
	if err != nil {
		return err
	}
	defer func() { _ = broker.Close() }()
	ctx, cancel := context.WithTimeout(cmd.Context(), c.timeout)
	defer cancel()
	if err := call(ctx, broker); err != nil {
		return c.explain(cmd.Context(), broker, err)
	}
	return nil
}

// callAdmin is call for the API of operators.
func (c *connection) callAdmin(cmd *cobra.Command, call func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error) error {
	return c.call(cmd, func(ctx context.Context, broker *client.Client) error {
		return call(ctx, tokenbrokerv1.NewAdminServiceClient(broker.Conn()))
	})
}
