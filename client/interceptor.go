package client

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// InterceptorOption sets the requirements of methods of a gRPC server.
type InterceptorOption interface{ interceptor(rules *methodRules) }

type interceptorOption func(*methodRules)

func (set interceptorOption) interceptor(rules *methodRules) { set(rules) }

// methodRules are the requirements of methods, by full method name.
type methodRules struct {
	scopes map[string][]string
	public []string
}

// MethodScopes requires all of these scopes for calls of a method, such as
// "/shop.v1.Orders/Create", instead of the Verifier's scopes.
func MethodScopes(method string, allOf ...string) InterceptorOption {
	return interceptorOption(func(rules *methodRules) { rules.scopes[method] = allOf })
}

// PublicMethods allows calls of these methods without a token. A name that ends
// in "/" stands for all methods of a service, such as
// "/grpc.health.v1.Health/". All other methods, including unknown ones, require
// a token.
func PublicMethods(names ...string) InterceptorOption {
	return interceptorOption(func(rules *methodRules) { rules.public = append(rules.public, names...) })
}

func rulesOf(opts []InterceptorOption) *methodRules {
	rules := &methodRules{scopes: map[string][]string{}}
	for _, opt := range opts {
		opt.interceptor(rules)
	}
	return rules
}

func (r *methodRules) isPublic(method string) bool {
	return slices.ContainsFunc(r.public, func(name string) bool {
		return name == method || strings.HasSuffix(name, "/") && strings.HasPrefix(method, name)
	})
}

// ErrorDomain is the domain of the ErrorInfo in the statuses of the
// interceptors. The broker's own errors have the domain "tokenbroker".
const ErrorDomain = "client.tokenbroker"

// UnaryServerInterceptor passes on only calls that present a valid bearer token
// in the metadata "authorization". The handler gets the token's claims from
// [ClaimsFromContext]. Other calls fail with
//
//	UNAUTHENTICATED    no token, more than one, or an invalid one
//	PERMISSION_DENIED  a valid token without a required scope
//	UNAVAILABLE        the broker was unreachable or could not decide
//
// and an ErrorInfo of domain [ErrorDomain]. Its reason is that of the
// rejection, NO_TOKEN, or TOKEN_NOT_VERIFIED for UNAVAILABLE. The trailer
// "www-authenticate" has the challenge that [HTTPMiddleware] sends.
func UnaryServerInterceptor(v *Verifier, opts ...InterceptorOption) grpc.UnaryServerInterceptor {
	rules := rulesOf(opts)
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		ctx, err := v.verifyCall(ctx, info.FullMethod, rules, func(trailer metadata.MD) { _ = grpc.SetTrailer(ctx, trailer) })
		if err != nil {
			return nil, err
		}
		return handler(ctx, req)
	}
}

// StreamServerInterceptor is [UnaryServerInterceptor] for streams. The token is
// verified once, when the stream begins.
func StreamServerInterceptor(v *Verifier, opts ...InterceptorOption) grpc.StreamServerInterceptor {
	rules := rulesOf(opts)
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, err := v.verifyCall(stream.Context(), info.FullMethod, rules, stream.SetTrailer)
		if err != nil {
			return err
		}
		return handler(srv, &verifiedStream{stream, ctx})
	}
}

type verifiedStream struct {
	grpc.ServerStream

	ctx context.Context //nolint:containedctx // a stream carries its context
}

// Context implements grpc.ServerStream.
func (s *verifiedStream) Context() context.Context { return s.ctx }

// verifyCall returns the context for the handler of a call, or the status error
// for the caller.
func (v *Verifier) verifyCall(ctx context.Context, method string, rules *methodRules, setTrailer func(metadata.MD)) (context.Context, error) {
	if rules.isPublic(method) {
		return ctx, nil
	}
	required := v.required
	if scopes, ok := rules.scopes[method]; ok {
		required.scopes = scopes
	}
	var certificate *x509.Certificate
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
			certificate = info.State.PeerCertificates[0]
		}
	}
	verified, err := v.verifyHeaders(ctx, metadata.ValueFromIncomingContext(ctx, "authorization"), certificate, required)
	if err == nil {
		return verified, nil
	}
	rejected, isRejected := errors.AsType[*RejectedError](err)
	if isRejected || errors.Is(err, errNoToken) {
		setTrailer(metadata.Pairs("www-authenticate", v.challenges.value(rejected, required.scopes)))
	}
	switch {
	case isRejected && rejected.Reason == ReasonInsufficientScope:
		return nil, statusError(codes.PermissionDenied, rejected.Message, string(rejected.Reason), nil)
	case isRejected:
		return nil, statusError(codes.Unauthenticated, rejected.Message, string(rejected.Reason), nil)
	case errors.Is(err, errNoToken):
		return nil, statusError(codes.Unauthenticated, err.Error(), "NO_TOKEN", nil)
	default:
		v.log(ctx, err)
		wait := max(retryAfter(err), minRetryAfter)
		return nil, statusError(codes.Unavailable, unverifiedMessage, "TOKEN_NOT_VERIFIED", &errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	}
}

func statusError(code codes.Code, message, reason string, retry *errdetails.RetryInfo) error {
	st := status.New(code, message)
	detailed, err := st.WithDetails(&errdetails.ErrorInfo{Reason: strings.ToUpper(reason), Domain: ErrorDomain})
	if err == nil && retry != nil {
		detailed, err = detailed.WithDetails(retry)
	}
	if err != nil {
		return st.Err()
	}
	return detailed.Err()
}
