// Package client is the Go client of the token broker: it supplies access
// tokens for outgoing calls and verifies the tokens of incoming calls.
//
//	c, err := client.FromEnv()
//	...
//	orders := c.TokenSource("orders-api", client.WithScopes("read"))
//	api := orders.HTTPClient()
//
// A [Source] keeps one token. It returns it from memory, has it replaced before
// it expires, and keeps returning it while it is valid if no broker is
// reachable. It never returns an expired token.
//
// A [Verifier] caches the broker's verification result of a token for as long
// as the broker allows. [HTTPMiddleware] and [UnaryServerInterceptor] protect a
// service with a Verifier. If the broker is unreachable they refuse the
// request, with a different status from that for a bad token.
//
// [Client.Token] and [Client.Verify] call the broker each time, without a
// cache. A service that calls another API for the user of a request passes
// [OnBehalfOf] to [Client.Token].
//
// Errors of calls are gRPC statuses: status.Code gives the kind, and the
// message says how to correct the error. Package brokertest runs a complete
// broker inside a test.
package client

import (
	"context"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// Client is a connection to one broker, or to all replicas behind one target.
// It is safe for concurrent use and meant to live as long as the program:
// create one with New or FromEnv, and Close it at the end.
type Client struct {
	conn *grpc.ClientConn
	api  tokenbrokerv1.TokenBrokerServiceClient
	cfg  settings

	// ctx is the context of all background work; Close cancels it.
	ctx    context.Context //nolint:containedctx // the client's own life
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	sources map[string]*Source // by keyOf the request
	watches int                // open or being opened
}

// New returns a Client of the broker at target, without waiting for a
// connection. The target is HOST:PORT, with all its addresses used in turn; a
// comma-separated list of HOST:PORT; unix:///PATH; or any other gRPC target.
//
// Connections use TLS with the system's root certificates unless an option
// changes that. Only a Unix socket uses plaintext by default.
//
// Replicas that are unreachable or report not serving, as while draining, are
// left out; if every connected replica reports not serving, all connected
// replicas are used. A call whose replica is gone is retried at another, with
// four attempts in all, within about a second.
func New(target string, opts ...Option) (*Client, error) {
	var cfg settings
	for _, opt := range opts {
		opt(&cfg)
	}
	return dial(target, cfg)
}

func dial(target string, cfg settings) (*Client, error) {
	if cfg.target != "" {
		target = cfg.target
	}
	grpcTarget, options, err := cfg.dialOptions(target)
	if err != nil {
		return nil, fmt.Errorf("tokenbroker: %w", err)
	}
	conn, err := grpc.NewClient(grpcTarget, options...)
	if err != nil {
		return nil, fmt.Errorf("tokenbroker: connecting to %q: %w", target, err)
	}
	c := &Client{conn: conn, api: tokenbrokerv1.NewTokenBrokerServiceClient(conn), cfg: cfg.withDefaults(), sources: map[string]*Source{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Close stops the sources, closes the connections, cancels the calls on them,
// and waits for all background work. From then on sources return errors with
// code Canceled. Closing again does nothing.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	for _, source := range c.sources { // no longer changes
		source.close()
	}
	err := c.conn.Close()
	c.work.Wait()
	return err
}

// Conn returns the connection to the broker, for use with the generated code:
// package gen has the RPCs that this package does not offer, such as those for
// operators.
func (c *Client) Conn() grpc.ClientConnInterface { return c.conn }

// spawn runs work in the background and reports true, unless the client is
// closed.
func (c *Client) spawn(work func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.work.Go(work)
	return true
}

func errClosed() error {
	return status.Error(codes.Canceled, "the client of the token broker is closed")
}

// Token requests an access token of the client with this name in the broker's
// configuration, by one call each time. A service that needs tokens repeatedly
// uses a [Source], which returns them from memory.
//
// If the broker does not hold the token yet, the call takes as long as the IdP
// does: give ctx 10 s or more.
func (c *Client) Token(ctx context.Context, name string, opts ...TokenOption) (*Token, error) {
	req := &tokenbrokerv1.GetTokenRequest{ClientName: name}
	for _, opt := range opts {
		opt.token(req)
	}
	if req.GetSubject() != nil && req.GetSubject().GetToken() == "" {
		return nil, errNoSubject()
	}
	resp, err := c.api.GetToken(ctx, req)
	if err != nil {
		return nil, err
	}
	return newToken(resp), nil
}

// Format writes the target of the client, for any verb, without its credentials.
func (c *Client) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "token broker at "+c.conn.Target())
}
