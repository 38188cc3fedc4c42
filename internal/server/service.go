package server

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/exchange"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

type service struct {
	tokenbrokerv1.UnimplementedTokenBrokerServiceServer

	broker   *broker.Broker
	callers  *caller.Admission
	draining context.Context //nolint:containedctx // it ends when the server drains
}

// GetToken returns a token of the broker.
func (s *service) GetToken(ctx context.Context, req *tokenbrokerv1.GetTokenRequest) (*tokenbrokerv1.GetTokenResponse, error) {
	request, invalid := getRequestOf(req)
	if invalid != nil {
		return nil, statusOf(invalid)
	}
	if subject := req.GetSubject(); subject != nil {
		return s.exchange(ctx, request, subject)
	}
	answer, err := s.broker.Get(ctx, CallerOf(ctx), request)
	if err != nil {
		dissuade(ctx, err)
		return nil, statusOf(err)
	}
	return tokenResponse(answer), nil
}

// exchange returns a token on behalf of a subject.
func (s *service) exchange(ctx context.Context, request broker.Ask, subject *tokenbrokerv1.Subject) (*tokenbrokerv1.GetTokenResponse, error) {
	presented, invalid := SubjectOf(subject.GetToken(), subject.GetTokenType())
	if invalid != nil {
		return nil, statusOf(invalid)
	}
	answer, err := exchange.Get(ctx, s.broker, CallerOf(ctx), request, presented)
	if err != nil {
		dissuade(ctx, err)
		return nil, statusOf(err)
	}
	response := tokenResponse(answer)
	response.IssuedTokenType = answer.Token.IssuedType
	return response, nil
}

// dissuade stops the retry policy of gRPC clients from immediately repeating a call
// that failed for a reason that the whole fleet shares.
func dissuade(ctx context.Context, err error) {
	if failure, ok := errors.AsType[*apierror.Error](err); ok && failure.Reason == apierror.ReasonIdPUnavailable {
		_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", "-1")) // fails only without a call
	}
}

// tokenResponse makes the message and its timestamps in one allocation, because every
// cache hit gets here.
func tokenResponse(answer broker.Answer) *tokenbrokerv1.GetTokenResponse {
	tok := answer.Token
	alloc := &struct {
		message          tokenbrokerv1.GetTokenResponse
		expires, refresh timestamppb.Timestamp
	}{}
	setTime(&alloc.expires, tok.ExpiresAt)
	setTime(&alloc.refresh, answer.RefreshAt)
	m := &alloc.message
	m.AccessToken = tok.Value.Reveal()
	m.TokenType = tok.Type
	m.ExpiresAt = &alloc.expires
	m.RefreshAt = &alloc.refresh
	m.Scopes = tok.Scopes
	m.Extras = tok.Extras
	m.Origin = origin(answer.Origin)
	m.Degraded = answer.Degraded
	return m
}

func setTime(to *timestamppb.Timestamp, t time.Time) {
	to.Seconds = t.Unix()
	to.Nanos = int32(t.Nanosecond()) //nolint:gosec // below 1e9
}

func origin(o broker.Origin) tokenbrokerv1.TokenOrigin {
	switch o {
	case broker.OriginMemory:
		return tokenbrokerv1.TokenOrigin_TOKEN_ORIGIN_MEMORY
	case broker.OriginShared:
		return tokenbrokerv1.TokenOrigin_TOKEN_ORIGIN_SHARED
	case broker.OriginFetched:
		return tokenbrokerv1.TokenOrigin_TOKEN_ORIGIN_FETCHED
	default:
		return tokenbrokerv1.TokenOrigin_TOKEN_ORIGIN_UNSPECIFIED
	}
}

// VerifyToken returns the broker's verification of a token.
func (s *service) VerifyToken(ctx context.Context, req *tokenbrokerv1.VerifyTokenRequest) (*tokenbrokerv1.VerifyTokenResponse, error) {
	request, invalid := verifyRequestOf(req)
	if invalid != nil {
		return nil, statusOf(invalid)
	}
	request.OpaqueIssuer = caller.OpaqueIssuer(ctx)
	result, err := s.broker.Verify(ctx, CallerOf(ctx), redact.New(req.GetToken()), request)
	if err != nil {
		return nil, statusOf(err)
	}
	if result.Facts == nil {
		return rejected(result.Rejection), nil
	}
	return verified(result), nil
}

func rejected(r *verify.Rejection) *tokenbrokerv1.VerifyTokenResponse {
	return &tokenbrokerv1.VerifyTokenResponse{Rejection: &tokenbrokerv1.Rejection{Reason: reason(r.Reason), Message: r.Message}}
}

// reason converts a reason; the API has the same numbers.
func reason(r verify.Reason) tokenbrokerv1.RejectionReason {
	return tokenbrokerv1.RejectionReason(r) //nolint:gosec // there are but a few
}

// verified makes the message and its timestamps in one allocation, as tokenResponse
// does. It shares the facts, which nothing changes.
func verified(result verify.Result) *tokenbrokerv1.VerifyTokenResponse {
	f := result.Facts
	alloc := &struct {
		message                tokenbrokerv1.VerifyTokenResponse
		issued, expires, until timestamppb.Timestamp
	}{}
	setTime(&alloc.expires, f.ExpiresAt)
	setTime(&alloc.until, result.ValidUntil)
	m := &alloc.message
	m.Active = true
	m.Issuer = f.Issuer
	m.Subject = f.Subject
	m.SubjectType = tokenbrokerv1.SubjectType(f.SubjectType) //nolint:gosec // the numbers are those of the API
	m.ClientId = f.ClientID
	m.Audiences = f.Audience
	m.Scopes = f.Scopes
	m.ExpiresAt = &alloc.expires
	m.TokenId = f.TokenID
	m.ClaimsJson = f.Claims
	m.ValidUntil = &alloc.until
	if !f.IssuedAt.IsZero() {
		setTime(&alloc.issued, f.IssuedAt)
		m.IssuedAt = &alloc.issued
	}
	m.Confirmation = confirmation(f.Confirmation)
	return m
}

// confirmation returns an empty message, which receivers must refuse, if its fields
// cannot describe the whole binding.
func confirmation(c *verify.Confirmation) *tokenbrokerv1.Confirmation {
	switch {
	case c == nil:
		return nil
	case c.Other:
		return &tokenbrokerv1.Confirmation{}
	default:
		return &tokenbrokerv1.Confirmation{Jkt: c.JKT, X5TS256: c.X5TS256}
	}
}
