package client

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// Token is an access token. Printing it writes a placeholder; AccessToken
// returns the text. It is immutable and safe for concurrent use. Tokens come
// from a Client or a Source; the zero value contains no token, see
// [Token.IsZero].
type Token struct {
	// message is behind a pointer to a pointer so that fmt, which prints unexported
	// fields without calling their methods, stops at an address.
	message **tokenbrokerv1.GetTokenResponse
}

func newToken(message *tokenbrokerv1.GetTokenResponse) *Token { return &Token{&message} }

func (t *Token) get() *tokenbrokerv1.GetTokenResponse {
	if t == nil || t.message == nil {
		return nil
	}
	return *t.message
}

// AccessToken returns the token's text. Do not log it.
func (t *Token) AccessToken() string { return t.get().GetAccessToken() }

// Type returns how to present the token: "Bearer".
func (t *Token) Type() string { return t.get().GetTokenType() }

// Authorization returns the value of an Authorization header that presents the
// token, such as "Bearer abc". It is empty for a zero Token. Do not log it.
func (t *Token) Authorization() string {
	if t.IsZero() {
		return ""
	}
	return t.Type() + " " + t.AccessToken()
}

// IsZero reports whether t is nil or the zero value, which contains no token.
func (t *Token) IsZero() bool { return t.get() == nil }

// ExpiresAt returns when the token expires, by the broker's clock. It is the zero
// time for a zero Token.
func (t *Token) ExpiresAt() time.Time { return timeOf(t.get().GetExpiresAt()) }

// RefreshAt returns when to request the token again, by the broker's clock. It is the
// zero time for a zero Token.
func (t *Token) RefreshAt() time.Time { return timeOf(t.get().GetRefreshAt()) }

// timeOf returns the zero time for an unset timestamp, whose AsTime is 1970.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

// Scopes returns the scopes that the IdP granted. Do not change the slice.
func (t *Token) Scopes() []string { return t.get().GetScopes() }

// Extra returns another member of the IdP's response, such as "instance_url",
// or "" if the response has no such member or the broker does not pass it on.
func (t *Token) Extra(name string) string { return t.get().GetExtras()[name] }

// Degraded reports that the token is valid and due for replacement, but could
// not be replaced.
func (t *Token) Degraded() bool { return t.get().GetDegraded() }

// Origin returns where the broker found the token: "memory", "shared" or "fetched".
// It is "unknown" for a zero Token, and for an origin that a newer broker added.
func (t *Token) Origin() string {
	switch t.get().GetOrigin() {
	case tokenbrokerv1.TokenOrigin_TOKEN_ORIGIN_MEMORY:
		return "memory"
	case tokenbrokerv1.TokenOrigin_TOKEN_ORIGIN_SHARED:
		return "shared"
	case tokenbrokerv1.TokenOrigin_TOKEN_ORIGIN_FETCHED:
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

// Format writes a placeholder, for any verb.
func (t *Token) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue returns a placeholder.
func (t *Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns a placeholder.
func (t *Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// digest returns the SHA-256 that identifies the token in requests to the
// broker.
func (t *Token) digest() [sha256.Size]byte { return sha256.Sum256([]byte(t.AccessToken())) }

// TokenOption is an option of a request by [Client.Token].
type TokenOption interface {
	token(req *tokenbrokerv1.GetTokenRequest)
}

// SourceOption is an option of a [Source]. Each is also an option of
// [Client.Token].
type SourceOption interface {
	TokenOption
	source()
}

type tokenOption func(*tokenbrokerv1.GetTokenRequest)

func (set tokenOption) token(req *tokenbrokerv1.GetTokenRequest) { set(req) }

type sourceOption struct{ tokenOption }

func (sourceOption) source() {}

// WithAudience requests a token for another audience than the client's default.
func WithAudience(audience string) SourceOption {
	return sourceOption{func(r *tokenbrokerv1.GetTokenRequest) { r.Audience = audience }}
}

// WithResources requests a token for other RFC 8707 resources than the client's
// default. Their order is kept.
func WithResources(resources ...string) SourceOption {
	return sourceOption{func(r *tokenbrokerv1.GetTokenRequest) { r.Resources = resources }}
}

// WithScopes requests other scopes than the client's default. Their order does
// not matter.
func WithScopes(scopes ...string) SourceOption {
	return sourceOption{func(r *tokenbrokerv1.GetTokenRequest) { r.Scopes = scopes }}
}

// WithMinTTL requests a token with at least this time to live; the maximum is
// 24 h.
func WithMinTTL(d time.Duration) TokenOption {
	return tokenOption(func(r *tokenbrokerv1.GetTokenRequest) { r.MinTtl = durationpb.New(d) })
}

// WithRejected reports that an API refused this token (HTTP 401), so that the
// broker fetches another unless it has replaced the token already.
// [Source.Rejected] does this for all users of a source.
func WithRejected(token *Token) TokenOption {
	sum := token.digest()
	return tokenOption(func(r *tokenbrokerv1.GetTokenRequest) { r.RejectedTokenSha256 = sum[:] })
}
