// Package client is what a Go service needs of a token broker: access tokens for
// the calls that it makes, and verification of those that it receives.
//
//	c, err := client.FromEnv()
//	...
//	orders := c.TokenSource("orders-api", client.WithScopes("read"))
//	api := orders.HTTPClient()
//
// A [Source] keeps one token: it answers from memory, has the token replaced
// before it ends, and goes on answering with a token that is still good while no
// broker can be reached. It never answers with one that has expired.
//
// A [Verifier] remembers what the broker found of a token, for as long as the
// broker says. [HTTPMiddleware] and [UnaryServerInterceptor] put one in front of
// a service. Where the broker cannot be asked they refuse, in a way that differs
// from how they refuse a bad token.
//
// [Client.Token] and [Client.Verify] are the calls behind the two: they ask the
// broker each time.
//
// Errors of calls are gRPC statuses: status.Code says what kind, and the message
// what to do. Package brokertest runs a whole broker inside a test.
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

// Client speaks to one broker, or to all replicas behind one target. It is safe
// for concurrent use and meant to live as long as the program: make one with New
// or FromEnv, and Close it at the end.
type Client struct {
	conn *grpc.ClientConn
	api  tokenbrokerv1.TokenBrokerServiceClient
	set  settings

	// ctx is that of all that runs behind callers' backs; it ends with Close.
	ctx    context.Context //nolint:containedctx // the client's own life
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	sources map[string]*Source // by question
	watches int                // that are open or being opened
}

// New returns a Client of the broker at target, without waiting for a
// connection. The target is HOST:PORT, whose addresses are all used, in turn; a
// list of those, separated by commas; unix:///PATH; or any other target of gRPC.
//
// Connections are encrypted and the system's roots trusted unless an option says
// otherwise. Only a Unix socket is used in plaintext without being told.
//
// Replicas that cannot be connected to are left out until they can, and so are
// replicas that say that they are not serving, as they do while they drain: unless
// every replica that is connected says so. A call that finds its replica gone is made
// again at another, up to four times within about a second.
func New(target string, opts ...Option) (*Client, error) {
	var set settings
	for _, opt := range opts {
		opt(&set)
	}
	return dial(target, set)
}

func dial(target string, set settings) (*Client, error) {
	if set.target != "" {
		target = set.target
	}
	dialed, options, err := set.dialOptions(target)
	if err != nil {
		return nil, fmt.Errorf("tokenbroker: %w", err)
	}
	conn, err := grpc.NewClient(dialed, options...)
	if err != nil {
		return nil, fmt.Errorf("tokenbroker: connecting to %q: %w", target, err)
	}
	c := &Client{conn: conn, api: tokenbrokerv1.NewTokenBrokerServiceClient(conn), set: set.withDefaults(), sources: map[string]*Source{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Close ends the sources, the connections and the calls on them, and waits for
// all that runs in the background. Sources answer with an error from then on,
// whose code is Canceled. Closing again does nothing.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	for _, source := range c.sources { // nobody adds to them any more
		source.close()
	}
	err := c.conn.Close()
	c.work.Wait()
	return err
}

// Conn is the connection to the broker, for the generated code: the package gen
// has what this one does not offer, such as the RPCs for operators.
func (c *Client) Conn() grpc.ClientConnInterface { return c.conn }

// spawn runs work in the background, unless the client is closed.
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

// Token asks the broker for an access token of the client that its configuration
// calls name: one call, each time. A service that needs tokens again and again
// takes a [Source] instead, which answers from memory.
//
// A token that the broker does not hold yet takes as long as the IdP does: give
// ctx 10 s or more.
func (c *Client) Token(ctx context.Context, name string, opts ...TokenOption) (*Token, error) {
	req := &tokenbrokerv1.GetTokenRequest{ClientName: name}
	for _, opt := range opts {
		opt.token(req)
	}
	message, err := c.api.GetToken(ctx, req)
	if err != nil {
		return nil, err
	}
	return newToken(message), nil
}

// Format writes where the client connects to, whatever the verb, and nothing
// that it presents there.
func (c *Client) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "token broker at "+c.conn.Target())
}
