package client

import (
	"context"
	"fmt"
	"strings"
	"time"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// Claims are what a verified token says.
type Claims struct {
	// Issuer and Subject together identify whom the token speaks of.
	Issuer, Subject string
	// ClientID of the client that the token was issued to; may be empty.
	ClientID string
	Audience []string
	Scopes   []string
	// IssuedAt is zero if the token does not say.
	IssuedAt  time.Time
	ExpiresAt time.Time
	// TokenID is the jti claim; may be empty.
	TokenID string
	// JSON is the payload byte for byte as the issuer signed it.
	JSON []byte
	// JKT and X5T name the key that a sender-constrained token is bound to (RFC
	// 9449, RFC 8705). The broker does not check the binding: if one is not
	// empty, the receiver of the token must.
	JKT, X5T string
	// ValidUntil is how long this answer may be kept.
	ValidUntil time.Time
}

// RejectedError says that a token is not good. Any other error of Verify means
// that the broker could not decide: treat the token as not verified and answer
// 503, not 401.
type RejectedError struct {
	// Reason is stable and in snake case, such as "expired" or
	// "insufficient_scope".
	Reason string
	// Message is a sentence for a developer.
	Message string
}

func (e *RejectedError) Error() string {
	return fmt.Sprintf("the token is rejected (%s): %s", e.Reason, e.Message)
}

// VerifyOption says what the token must be good for.
type VerifyOption func(*tokenbrokerv1.VerifyTokenRequest)

// Audience wants the token to be for at least one of these audiences. Without
// it, one of those that the broker is configured with for the issuer.
func Audience(anyOf ...string) VerifyOption {
	return func(r *tokenbrokerv1.VerifyTokenRequest) { r.Audience = anyOf }
}

// Scopes wants the token to carry all of these scopes.
func Scopes(allOf ...string) VerifyOption {
	return func(r *tokenbrokerv1.VerifyTokenRequest) { r.RequiredScopes = allOf }
}

// Issuer wants the token to be of this issuer.
func Issuer(issuer string) VerifyOption {
	return func(r *tokenbrokerv1.VerifyTokenRequest) { r.Issuer = issuer }
}

// Verify has the broker verify a token, given without "Bearer ". The error is a
// *RejectedError if the token is not good.
func (c *Client) Verify(ctx context.Context, token string, opts ...VerifyOption) (*Claims, error) {
	req := &tokenbrokerv1.VerifyTokenRequest{Token: token}
	for _, opt := range opts {
		opt(req)
	}
	resp, err := c.api.VerifyToken(ctx, req)
	if err != nil {
		return nil, err
	}
	if !resp.GetActive() {
		reason := strings.TrimPrefix(resp.GetRejection().GetReason().String(), "REJECTION_REASON_")
		return nil, &RejectedError{Reason: strings.ToLower(reason), Message: resp.GetRejection().GetMessage()}
	}
	claims := &Claims{
		Issuer:     resp.GetIssuer(),
		Subject:    resp.GetSubject(),
		ClientID:   resp.GetClientId(),
		Audience:   resp.GetAudience(),
		Scopes:     resp.GetScopes(),
		ExpiresAt:  resp.GetExpiresAt().AsTime(),
		TokenID:    resp.GetTokenId(),
		JSON:       resp.GetClaimsJson(),
		JKT:        resp.GetConfirmation().GetJkt(),
		X5T:        resp.GetConfirmation().GetX5TS256(),
		ValidUntil: resp.GetValidUntil().AsTime(),
	}
	if at := resp.GetIssuedAt(); at != nil {
		claims.IssuedAt = at.AsTime()
	}
	return claims, nil
}
