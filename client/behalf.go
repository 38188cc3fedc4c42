package client

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// OnBehalfOf requests a token on behalf of the user or service whose token the request of
// ctx presented: the broker exchanges the token that [HTTPMiddleware] or an interceptor has
// verified. One line in a handler suffices:
//
//	token, err := c.Token(r.Context(), "orders-for-user", client.OnBehalfOf(r.Context()))
//
// The broker keeps the result, so call it for each request. There is no [Source] for a
// user: it would keep the user's token for as long as it lives. Without a verified token in
// ctx, Token returns an error with the code FailedPrecondition.
func OnBehalfOf(ctx context.Context) TokenOption {
	subject := &tokenbrokerv1.Subject{}
	if presented, ok := ctx.Value(presentedKey{}).(func() string); ok {
		subject.Token = presented()
	}
	return tokenOption(func(r *tokenbrokerv1.GetTokenRequest) { r.Subject = subject })
}

type presentedKey struct{}

// contextWithPresented returns a copy of ctx with a verified token. It is behind a function,
// so that printing ctx does not print it.
func contextWithPresented(ctx context.Context, token string) context.Context {
	return context.WithValue(ctx, presentedKey{}, func() string { return token })
}

func errNoSubject() error {
	return status.Error(codes.FailedPrecondition, "OnBehalfOf: the context has no verified token: pass the context of a request behind HTTPMiddleware or an interceptor of this package")
}
