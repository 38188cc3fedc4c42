package client

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// Claims are the claims of a verified token. Claims from a [Verifier] are
// shared by all callers that present the token: do not change them.
type Claims struct {
	// Issuer, SubjectType and Subject together identify the subject of the token: a
	// client and a user may have the same name.
	Issuer, Subject string
	SubjectType     SubjectType
	// ClientID is the client that the token was issued to; may be empty.
	ClientID string
	Audience []string
	Scopes   []string
	// IssuedAt is zero if the token does not have it.
	IssuedAt  time.Time
	ExpiresAt time.Time
	// TokenID is the jti claim; may be empty.
	TokenID string
	// JSON is the payload byte for byte as the issuer signed it.
	JSON []byte
	// Confirmation is nil for a bearer token. Otherwise the token is bound to a key
	// of its holder, and the broker has not checked that the presenter holds it:
	// the receiver must check it, or refuse the token. [HTTPMiddleware] and the
	// interceptors check a binding to a client certificate and refuse all others.
	Confirmation *Confirmation
	// ValidUntil is how long this result may be cached.
	ValidUntil time.Time
}

// SubjectType is the claim that the subject of a token comes from.
type SubjectType string

// The subject types.
const (
	SubjectSub SubjectType = "sub"
	// SubjectClientID means that the token has no sub, and was issued to a client
	// that acts for itself.
	SubjectClientID SubjectType = "client_id"
	// SubjectUnknown means that a newer broker sent a type that this client does
	// not know. [Claims.Subject] is empty.
	SubjectUnknown SubjectType = "unknown"
)

func subjectTypeOf(t tokenbrokerv1.SubjectType) SubjectType {
	switch t {
	case tokenbrokerv1.SubjectType_SUBJECT_TYPE_SUB:
		return SubjectSub
	case tokenbrokerv1.SubjectType_SUBJECT_TYPE_CLIENT_ID:
		return SubjectClientID
	case tokenbrokerv1.SubjectType_SUBJECT_TYPE_UNSPECIFIED:
		return "" // the broker is older than the field
	default:
		return SubjectUnknown
	}
}

// subjectOf returns an empty subject if a newer broker reports a type of
// subject that this client does not know: the receiver must not mistake it for
// another type.
func subjectOf(resp *tokenbrokerv1.VerifyTokenResponse) (string, SubjectType) {
	kind := subjectTypeOf(resp.GetSubjectType())
	if kind == SubjectUnknown {
		return "", kind
	}
	return resp.GetSubject(), kind
}

// Confirmation is the keys that a sender-constrained token is bound to. The
// presenter must prove possession of each of them. If both are empty, the token
// is bound in a way that is not represented here, and must be refused.
type Confirmation struct {
	// JKT is the SHA-256 thumbprint of a DPoP key (RFC 9449).
	JKT string
	// X5TS256 is the SHA-256 thumbprint of a client certificate (RFC 8705).
	X5TS256 string
}

// confirmationOf returns an empty Confirmation also if a newer broker reports
// more about the binding than this client knows.
func confirmationOf(c *tokenbrokerv1.Confirmation) *Confirmation {
	switch {
	case c == nil:
		return nil
	case len(c.ProtoReflect().GetUnknown()) > 0:
		return &Confirmation{}
	default:
		return &Confirmation{JKT: c.GetJkt(), X5TS256: c.GetX5TS256()}
	}
}

// HasScopes reports whether the token carries all of these scopes.
func (c *Claims) HasScopes(allOf ...string) bool {
	return !slices.ContainsFunc(allOf, func(scope string) bool { return !slices.Contains(c.Scopes, scope) })
}

// Reason is the first check that a token failed: a RejectionReason of the API,
// in snake case. Later versions may add reasons.
type Reason string

// The reasons, in the order of the checks. Those up to ReasonBadSignature
// reveal nothing that the presenter of the token cannot see in it.
const (
	ReasonMalformed           Reason = "malformed"
	ReasonUnsupported         Reason = "unsupported"
	ReasonUnknownIssuer       Reason = "unknown_issuer"
	ReasonAlgorithmNotAllowed Reason = "algorithm_not_allowed"
	ReasonUnknownKey          Reason = "unknown_key"
	ReasonBadSignature        Reason = "bad_signature"
	ReasonBadClaims           Reason = "bad_claims"
	ReasonWrongType           Reason = "wrong_type"
	ReasonExpired             Reason = "expired"
	ReasonNotYetValid         Reason = "not_yet_valid"
	ReasonLifetimeTooLong     Reason = "lifetime_too_long"
	ReasonWrongAudience       Reason = "wrong_audience"
	ReasonInsufficientScope   Reason = "insufficient_scope"
	ReasonRevoked             Reason = "revoked"
	ReasonInactive            Reason = "inactive"
	// ReasonWrongHolder means that the token is bound to a key that the presenter
	// has not shown. The middleware checks this, not the broker.
	ReasonWrongHolder Reason = "wrong_holder"
	// ReasonUnknown means that a newer broker sent a reason that this client does
	// not know.
	ReasonUnknown Reason = "unknown"
)

func rejectionReasonOf(r tokenbrokerv1.RejectionReason) Reason {
	name, ok := tokenbrokerv1.RejectionReason_name[int32(r)]
	if !ok || r == tokenbrokerv1.RejectionReason_REJECTION_REASON_UNSPECIFIED {
		return ReasonUnknown
	}
	return Reason(strings.ToLower(strings.TrimPrefix(name, "REJECTION_REASON_")))
}

// RejectedError means that a token is invalid. Any other error of Verify means
// that the broker could not decide: treat the token as not verified and respond
// 503, not 401.
type RejectedError struct {
	Reason Reason
	// Message is a sentence for a developer.
	Message string
}

func (e *RejectedError) Error() string {
	return fmt.Sprintf("the token is rejected (%s): %s", e.Reason, e.Message)
}

// VerifyOption is a requirement for a token. Each is also an option of a
// [Verifier] and of the middleware.
type VerifyOption interface {
	VerifierOption
	MiddlewareOption
	verify(r *requirements)
}

// requirements are the requirements for a token.
type requirements struct {
	audience []string // any of
	scopes   []string // all of
	issuer   string
	// cacheKey is equal for requirements with the same result of the broker. It
	// ignores scopes, which the client compares.
	cacheKey string
}

func (r requirements) with(opts []VerifyOption) requirements {
	for _, opt := range opts {
		opt.verify(&r)
	}
	return r.withCacheKey()
}

// withCacheKey returns r with cacheKey set.
func (r requirements) withCacheKey() requirements {
	r.cacheKey = ""
	if len(r.audience) > 0 || r.issuer != "" {
		r.cacheKey = fmt.Sprintf("%q%q", r.issuer, r.audience)
	}
	return r
}

type verifyOption func(*requirements)

func (set verifyOption) verify(r *requirements) { set(r) }

func (set verifyOption) verifier(v *Verifier) { set(&v.required) }

func (set verifyOption) middleware(r *requirements) { set(r) }

// RequireAudience accepts only tokens for at least one of these audiences. Without
// it, a token must be for one of the audiences that the broker's configuration lists
// for the issuer.
func RequireAudience(anyOf ...string) VerifyOption {
	return verifyOption(func(r *requirements) { r.audience = slices.Clone(anyOf) })
}

// RequireScopes accepts only tokens with all of these scopes.
func RequireScopes(allOf ...string) VerifyOption {
	return verifyOption(func(r *requirements) { r.scopes = slices.Clone(allOf) })
}

// RequireIssuer accepts only tokens of this issuer.
func RequireIssuer(issuer string) VerifyOption {
	return verifyOption(func(r *requirements) { r.issuer = issuer })
}

// Verify verifies a token, given without "Bearer ", by one call to the broker
// each time. The error is a [*RejectedError] if the token is invalid. A service
// that verifies the tokens of its requests uses a [Verifier], which caches
// results.
func (c *Client) Verify(ctx context.Context, token string, opts ...VerifyOption) (*Claims, error) {
	return c.verify(ctx, token, requirements{}.with(opts))
}

func (c *Client) verify(ctx context.Context, token string, required requirements) (*Claims, error) {
	resp, err := c.api.VerifyToken(ctx, &tokenbrokerv1.VerifyTokenRequest{
		Token: token, Audiences: required.audience, RequiredScopes: required.scopes, Issuer: required.issuer,
	})
	if err != nil {
		return nil, err
	}
	if !resp.GetActive() {
		return nil, &RejectedError{Reason: rejectionReasonOf(resp.GetRejection().GetReason()), Message: resp.GetRejection().GetMessage()}
	}
	subject, subjectType := subjectOf(resp)
	return &Claims{
		Issuer:     resp.GetIssuer(),
		Subject:    subject,
		ClientID:   resp.GetClientId(),
		Audience:   resp.GetAudiences(),
		Scopes:     resp.GetScopes(),
		IssuedAt:   timeOf(resp.GetIssuedAt()),
		ExpiresAt:  timeOf(resp.GetExpiresAt()),
		TokenID:    resp.GetTokenId(),
		JSON:       resp.GetClaimsJson(),
		ValidUntil: timeOf(resp.GetValidUntil()),

		SubjectType:  subjectType,
		Confirmation: confirmationOf(resp.GetConfirmation()),
	}, nil
}
