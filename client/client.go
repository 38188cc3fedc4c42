// Package client asks a token broker for access tokens and has it verify those
// that others present.
//
//	c, err := client.New("broker.internal:8443")
//	...
//	tok, err := c.Token(ctx, "orders-api", client.WithScopes("read"))
//	...
//	req.Header.Set("Authorization", tok.Type()+" "+tok.AccessToken())
//
// The broker keeps tokens fresh, so a caller may ask for one whenever it needs
// one. Errors are gRPC statuses: status.Code says what kind, and the message
// what to do.
package client

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// Client speaks to one broker, or to the replicas behind one name. It is safe
// for concurrent use and meant to live as long as the program.
type Client struct {
	conn *grpc.ClientConn
	api  tokenbrokerv1.TokenBrokerServiceClient
}

// Option changes how New connects.
type Option func(*options)

type options struct {
	credentials credentials.TransportCredentials
	dial        []grpc.DialOption
}

// WithPlaintext connects without TLS: tokens cross the network readable to
// whoever is on the way. For a broker on the same host, or inside a mesh that
// encrypts.
func WithPlaintext() Option {
	return func(o *options) { o.credentials = insecure.NewCredentials() }
}

// WithTLS connects with TLS as configured: other roots, or a certificate of the
// caller's own. Without it the system's roots are trusted.
func WithTLS(config *tls.Config) Option {
	return func(o *options) { o.credentials = credentials.NewTLS(config) }
}

// WithDialOptions adds gRPC's own options for what this package does not offer.
func WithDialOptions(opts ...grpc.DialOption) Option {
	return func(o *options) { o.dial = append(o.dial, opts...) }
}

// New returns a Client of the broker at target, a gRPC target such as
// "broker.internal:8443" or "dns:///broker:8443" (which balances over all
// addresses of the name). It does not wait for a connection.
func New(target string, opts ...Option) (*Client, error) {
	o := options{credentials: credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})}
	for _, opt := range opts {
		opt(&o)
	}
	dial := append([]grpc.DialOption{
		grpc.WithTransportCredentials(o.credentials),
		grpc.WithUserAgent("tokenbroker-go"),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
	}, o.dial...)
	conn, err := grpc.NewClient(target, dial...)
	if err != nil {
		return nil, fmt.Errorf("tokenbroker: connecting to %q: %w", target, err)
	}
	return &Client{conn: conn, api: tokenbrokerv1.NewTokenBrokerServiceClient(conn)}, nil
}

// Close ends the connection and the calls on it.
func (c *Client) Close() error { return c.conn.Close() }

// Token is an access token. It does not print itself: AccessToken gives the
// text. It is immutable and safe for concurrent use.
type Token struct {
	// message is behind a pointer to a pointer so that fmt, which prints
	// unexported fields without asking their methods, stops at an address.
	message **tokenbrokerv1.GetTokenResponse
}

func (t *Token) get() *tokenbrokerv1.GetTokenResponse { return *t.message }

// AccessToken returns the token's text. Do not log it.
func (t *Token) AccessToken() string { return t.get().GetAccessToken() }

// Type says how to present the token: "Bearer".
func (t *Token) Type() string { return t.get().GetTokenType() }

// ExpiresAt is when the token ends, by the broker's clock.
func (t *Token) ExpiresAt() time.Time { return t.get().GetExpiresAt().AsTime() }

// RefreshAt is when asking again pays.
func (t *Token) RefreshAt() time.Time { return t.get().GetRefreshAt().AsTime() }

// Scopes returns the scopes that the IdP granted. Do not change the slice.
func (t *Token) Scopes() []string { return t.get().GetScopes() }

// Extra returns another member of the IdP's answer, such as "instance_url", or
// "" where there is none or the broker does not let it through.
func (t *Token) Extra(name string) string { return t.get().GetExtras()[name] }

// Degraded reports that the token is good, but due for replacement and could
// not be replaced.
func (t *Token) Degraded() bool { return t.get().GetDegraded() }

// Source says where the broker had the token from: "memory", "shared" or
// "fetched".
func (t *Token) Source() string {
	switch t.get().GetSource() {
	case tokenbrokerv1.TokenSource_TOKEN_SOURCE_MEMORY:
		return "memory"
	case tokenbrokerv1.TokenSource_TOKEN_SOURCE_SHARED:
		return "shared"
	case tokenbrokerv1.TokenSource_TOKEN_SOURCE_FETCHED:
		return "fetched"
	default:
		return "unknown"
	}
}

const redacted = "[redacted]"

// String returns a placeholder.
func (t *Token) String() string { return redacted }

// GoString returns a placeholder.
func (t *Token) GoString() string { return redacted }

// Format writes a placeholder, whatever the verb.
func (t *Token) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue returns a placeholder.
func (t *Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns a placeholder.
func (t *Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// TokenOption says more about the token that is wanted.
type TokenOption func(*tokenbrokerv1.GetTokenRequest)

// WithAudience asks for a token for another audience than the client's own.
func WithAudience(audience string) TokenOption {
	return func(r *tokenbrokerv1.GetTokenRequest) { r.Audience = audience }
}

// WithResources asks for a token for other RFC 8707 resources than the client's
// own.
func WithResources(resources ...string) TokenOption {
	return func(r *tokenbrokerv1.GetTokenRequest) { r.Resources = resources }
}

// WithScopes asks for other scopes than the client's own.
func WithScopes(scopes ...string) TokenOption {
	return func(r *tokenbrokerv1.GetTokenRequest) { r.Scopes = scopes }
}

// WithMinTTL asks for a token that lives at least so long, 24 h at most.
func WithMinTTL(d time.Duration) TokenOption {
	return func(r *tokenbrokerv1.GetTokenRequest) { r.MinTtl = durationpb.New(d) }
}

// WithRejected tells the broker that an API refused this token (HTTP 401), so
// that it gets another if nobody else got one meanwhile.
func WithRejected(token *Token) TokenOption {
	sum := sha256.Sum256([]byte(token.AccessToken()))
	return func(r *tokenbrokerv1.GetTokenRequest) { r.RejectedTokenSha256 = sum[:] }
}

// Token returns an access token of the client that the broker's configuration
// calls name. A token that the broker does not hold yet takes as long as the IdP
// does: give ctx 10 s or more.
func (c *Client) Token(ctx context.Context, name string, opts ...TokenOption) (*Token, error) {
	req := &tokenbrokerv1.GetTokenRequest{ClientName: name}
	for _, opt := range opts {
		opt(req)
	}
	message, err := c.api.GetToken(ctx, req)
	if err != nil {
		return nil, err
	}
	return &Token{&message}, nil
}
