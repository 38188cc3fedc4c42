package client

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// AdapterOption changes how a source's tokens are presented.
type AdapterOption func(*adapter)

type adapter struct {
	source    *Source
	plaintext bool
}

// AllowPlaintext lets tokens cross a network in plaintext: without TLS, whoever
// is on the way can use them. For a mesh that encrypts. Loopback needs no leave
// over HTTP.
func AllowPlaintext() AdapterOption {
	return func(a *adapter) { a.plaintext = true }
}

func (s *Source) adapter(opts []AdapterOption) adapter {
	a := adapter{source: s}
	for _, opt := range opts {
		opt(&a)
	}
	return a
}

// PerRPCCredentials presents the source's token with each call of a gRPC
// connection: grpc.WithPerRPCCredentials. It refuses connections without TLS
// unless [AllowPlaintext].
//
// It does not learn whether the token was rejected;
// [Source.UnaryClientInterceptor] does.
func (s *Source) PerRPCCredentials(opts ...AdapterOption) credentials.PerRPCCredentials {
	return perRPC{s.adapter(opts)}
}

type perRPC struct{ adapter }

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (p perRPC) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	if !p.plaintext {
		if err := encrypted(ctx); err != nil {
			return nil, status.Error(codes.Unauthenticated, err.Error())
		}
	}
	token, err := p.source.Token(ctx)
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": token.Authorization()}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (p perRPC) RequireTransportSecurity() bool { return !p.plaintext }

// UnaryClientInterceptor presents the source's token with each unary call of a
// gRPC connection, as [Source.PerRPCCredentials] does, and instead of it. A call
// that the server answers with UNAUTHENTICATED is reported, and made once more if
// there is another token by then.
//
// Calls over connections without TLS fail unless [AllowPlaintext].
func (s *Source) UnaryClientInterceptor(opts ...AdapterOption) grpc.UnaryClientInterceptor {
	a := s.adapter(opts)
	return func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, callOpts ...grpc.CallOption) error {
		token, err := s.Token(ctx)
		if err != nil {
			return err
		}
		call := func(with *oneToken) error {
			return invoke(ctx, method, req, reply, conn, append(slices.Clip(callOpts), grpc.PerRPCCredentials(with))...)
		}
		first := &oneToken{token: token, secure: !a.plaintext}
		err = call(first)
		if status.Code(err) != codes.Unauthenticated || !first.sent.Load() {
			return err
		}
		other, unreported := s.Rejected(ctx, token)
		if unreported != nil || other.AccessToken() == token.AccessToken() {
			return err
		}
		return call(&oneToken{token: other, secure: !a.plaintext})
	}
}

// oneToken presents this token.
type oneToken struct {
	token  *Token
	secure bool
	// sent tells a server's UNAUTHENTICATED from gRPC's own, for a connection that
	// is not encrypted.
	sent atomic.Bool
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (o *oneToken) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	if o.secure {
		if err := encrypted(ctx); err != nil {
			return nil, status.Error(codes.Unauthenticated, err.Error())
		}
	}
	o.sent.Store(true)
	return map[string]string{"authorization": o.token.Authorization()}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (o *oneToken) RequireTransportSecurity() bool { return o.secure }

const (
	// oauth2Timeout bounds calls of oauth2.TokenSource, which have no context.
	oauth2Timeout = 30 * time.Second
	// oauth2Expiry is how far away the Expiry of an oauth2.Token is at most.
	oauth2Expiry = 70 * time.Second
)

// OAuth2 is the source as an oauth2.TokenSource, for libraries that want one.
// A call waits up to 30 s where no token is held.
//
// The Expiry of its tokens is at most 70 s away, however long they live:
// libraries wrap what they are given in oauth2.ReuseTokenSource, which keeps a
// token until 10 s before its Expiry. So they ask again within a minute, which
// costs them next to nothing, and a token that was replaced before its time is
// gone from there too. [Token.ExpiresAt] has the true one.
func (s *Source) OAuth2() oauth2.TokenSource { return oauth2Source{s} }

type oauth2Source struct{ source *Source }

// Token implements oauth2.TokenSource.
func (o oauth2Source) Token() (*oauth2.Token, error) {
	ctx, cancel := context.WithTimeout(context.Background(), oauth2Timeout)
	defer cancel()
	token, err := o.source.Token(ctx)
	if err != nil {
		return nil, err
	}
	expiry := time.Now().Add(oauth2Expiry)
	if end := token.ExpiresAt(); end.Before(expiry) {
		expiry = end
	}
	return &oauth2.Token{AccessToken: token.AccessToken(), TokenType: token.Type(), Expiry: expiry}, nil
}

// HTTPClient returns an http.Client that presents the source's token, as
// [Source.RoundTripper] does. It has no timeout of its own: give requests a
// context that ends, or set one.
func (s *Source) HTTPClient(opts ...AdapterOption) *http.Client {
	return &http.Client{Transport: s.RoundTripper(nil, opts...)}
}

var errPlaintext = errors.New("tokenbroker: a token is not sent over http:// beyond this host; use https, or allow it with AllowPlaintext")
