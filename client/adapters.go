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

// AllowPlaintext allows tokens over unencrypted connections, where anyone on
// the path can read and use them. Use it only inside a mesh that encrypts. HTTP
// requests to loopback do not need it.
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
// connection, by grpc.WithPerRPCCredentials. Connections without TLS fail
// unless [AllowPlaintext] is given.
//
// It does not notice that a server rejects the token;
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
// gRPC connection; use it instead of [Source.PerRPCCredentials]. If the server
// responds UNAUTHENTICATED, the token is reported as rejected, and the call is
// repeated once if another token is available by then.
//
// Calls over connections without TLS fail unless [AllowPlaintext] is given.
func (s *Source) UnaryClientInterceptor(opts ...AdapterOption) grpc.UnaryClientInterceptor {
	a := s.adapter(opts)
	return func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, callOpts ...grpc.CallOption) error {
		token, err := s.Token(ctx)
		if err != nil {
			return err
		}
		call := func(creds *callCredentials) error {
			return invoke(ctx, method, req, reply, conn, append(slices.Clip(callOpts), grpc.PerRPCCredentials(creds))...)
		}
		first := &callCredentials{token: token, secure: !a.plaintext}
		err = call(first)
		if status.Code(err) != codes.Unauthenticated || !first.sent.Load() {
			return err
		}
		replacement, errReport := s.Rejected(ctx, token)
		if errReport != nil || replacement.AccessToken() == token.AccessToken() {
			return err
		}
		return call(&callCredentials{token: replacement, secure: !a.plaintext})
	}
}

// callCredentials are per-call credentials with one fixed token.
type callCredentials struct {
	token  *Token
	secure bool
	// sent distinguishes a server's UNAUTHENTICATED from gRPC's own, which it
	// returns for a connection that is not encrypted.
	sent atomic.Bool
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (c *callCredentials) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	if c.secure {
		if err := encrypted(ctx); err != nil {
			return nil, status.Error(codes.Unauthenticated, err.Error())
		}
	}
	c.sent.Store(true)
	return map[string]string{"authorization": c.token.Authorization()}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (c *callCredentials) RequireTransportSecurity() bool { return c.secure }

const (
	// oauth2Timeout bounds calls of oauth2.TokenSource, which have no context.
	oauth2Timeout = 30 * time.Second
	// oauth2Expiry is the longest time until the Expiry of an oauth2.Token.
	oauth2Expiry = 70 * time.Second
	// oauth2Reuse is how long an oauth2.Token is returned again. Its Expiry is
	// meanwhile between a minute and oauth2Expiry away, or that of the token.
	oauth2Reuse = 10 * time.Second
)

// OAuth2 returns the source as an oauth2.TokenSource. A call waits up to 30 s
// if no token is held.
//
// Callers share the returned tokens, as those of oauth2.ReuseTokenSource: copy
// a token before you change it. Extra returns the same as [Token.Extra], or nil
// if there is no such member.
//
// The Expiry of its tokens is at most 70 s away, even if they live longer:
// libraries wrap a source in oauth2.ReuseTokenSource, which keeps a token until
// 10 s before its Expiry. They therefore call again within a minute, which is
// served from memory, and drop a token that was replaced early.
// [Token.ExpiresAt] has the real expiry.
func (s *Source) OAuth2() oauth2.TokenSource { return oauth2Source{s} }

type oauth2Source struct{ source *Source }

// Token implements oauth2.TokenSource.
func (o oauth2Source) Token() (*oauth2.Token, error) {
	if h, now := o.source.hit(); h != nil {
		return h.oauth2Token(now), nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), oauth2Timeout)
	defer cancel()
	token, err := o.source.wait(ctx)
	if err != nil {
		return nil, err
	}
	return newOAuth2Token(token, time.Now()), nil
}

// sharedOAuth2Token is an oauth2.Token that calls return until one of the clocks
// reaches the limit, as with heldToken. It is immutable.
type sharedOAuth2Token struct {
	token     *oauth2.Token
	until     time.Time
	untilWall int64 // Unix seconds
}

// oauth2Token returns the token as an oauth2.Token that other calls may share.
func (h *heldToken) oauth2Token(now time.Time) *oauth2.Token {
	shared := h.shared.Load()
	if shared == nil || !now.Before(shared.until) || now.Unix() >= shared.untilWall {
		until := now.Add(oauth2Reuse)
		shared = &sharedOAuth2Token{newOAuth2Token(h.token, now), until, until.Unix()}
		h.shared.Store(shared)
	}
	return shared.token
}

func newOAuth2Token(token *Token, now time.Time) *oauth2.Token {
	expiry := now.Add(oauth2Expiry)
	if end := token.ExpiresAt(); end.Before(expiry) {
		expiry = end
	}
	made := &oauth2.Token{AccessToken: token.AccessToken(), TokenType: token.Type(), Expiry: expiry}
	extras := token.get().GetExtras()
	if len(extras) == 0 {
		return made
	}
	members := make(map[string]any, len(extras))
	for name, value := range extras {
		members[name] = value
	}
	return made.WithExtra(members)
}

// HTTPClient returns an http.Client that presents the source's token, as
// [Source.RoundTripper] does. It has no timeout: give requests a context with a
// deadline, or set Timeout.
func (s *Source) HTTPClient(opts ...AdapterOption) *http.Client {
	return &http.Client{Transport: s.RoundTripper(nil, opts...)}
}

var errPlaintext = errors.New("tokenbroker: refused to send a token over http:// beyond this host; use https, or allow it with AllowPlaintext")
