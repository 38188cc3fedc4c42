package main

import (
	"errors"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/cezzis/tokenbroker/client"
)

const defaultAddr = "127.0.0.1:8443"

// connection is how the commands that ask a broker reach it.
type connection struct {
	addr      string
	plaintext bool
	timeout   time.Duration
}

func (c *connection) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&c.addr, "addr", fromEnv("TOKENBROKER_ADDR", defaultAddr), "broker to ask, HOST:PORT (environment: TOKENBROKER_ADDR)")
	flags.BoolVar(&c.plaintext, "plaintext", false, "connect without TLS; the default on loopback (environment: TOKENBROKER_PLAINTEXT)")
	flags.DurationVar(&c.timeout, "timeout", 20*time.Second, "how long to wait for an answer")
}

func fromEnv(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// unencrypted reports whether to connect without TLS: as the flag says, else as
// the environment says, else on loopback only.
func (c *connection) unencrypted(cmd *cobra.Command) (bool, error) {
	if cmd.Flags().Changed("plaintext") {
		return c.plaintext, nil
	}
	if value := os.Getenv("TOKENBROKER_PLAINTEXT"); value != "" {
		plaintext, err := strconv.ParseBool(value)
		if err != nil {
			return false, errors.New("TOKENBROKER_PLAINTEXT: want true or false")
		}
		return plaintext, nil
	}
	return onLoopback(c.addr), nil
}

func onLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

func (c *connection) open(cmd *cobra.Command) (*client.Client, error) {
	plaintext, err := c.unencrypted(cmd)
	if err != nil {
		return nil, err
	}
	var opts []client.Option
	if plaintext {
		opts = append(opts, client.WithPlaintext())
	}
	return client.New(c.addr, opts...)
}
