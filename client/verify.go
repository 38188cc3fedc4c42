package client

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// Claims are what a verified token says. Claims that a [Verifier] gives are
// shared by all who ask about the token: do not change them.
type Claims struct {
	// Issuer, SubjectType and Subject together identify whom the token speaks of: a
	// client and a user may have the same name.
	Issuer, Subject string
	SubjectType     SubjectType
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
	// Confirmation is nil for a bearer token. Otherwise the token is bound to a key
	// of its holder, and the broker has not checked that the presenter holds it:
	// the receiver must, or refuse the token. [HTTPMiddleware] and the interceptors
	// check a binding to a client certificate and refuse all others.
	Confirmation *Confirmation
	// ValidUntil is how long this answer may be kept.
	ValidUntil time.Time
}

// SubjectType names the claim that the subject of a token is.
type SubjectType string

// The claims.
const (
	SubjectSub SubjectType = "sub"
	// SubjectClientID: the token has no sub, and was issued to a client that acts for
	// itself.
	SubjectClientID SubjectType = "client_id"
	// SubjectUnknown: a newer broker names a claim that this client does not know.
	// [Claims.Subject] is empty.
	SubjectUnknown SubjectType = "unknown"
)

func subjectTypeOf(t tokenbrokerv1.SubjectType) SubjectType {
	switch t {
	case tokenbrokerv1.SubjectType_SUBJECT_TYPE_SUB:
		return SubjectSub
	case tokenbrokerv1.SubjectType_SUBJECT_TYPE_CLIENT_ID:
		return SubjectClientID
	case tokenbrokerv1.SubjectType_SUBJECT_TYPE_UNSPECIFIED:
		return "" // of a broker that is older than the field
	default:
		return SubjectUnknown
	}
}

// subjectOf is empty if a newer broker reports a kind of subject that this client does
// not know: the receiver must not take it for another kind.
func subjectOf(resp *tokenbrokerv1.VerifyTokenResponse) (string, SubjectType) {
	kind := subjectTypeOf(resp.GetSubjectType())
	if kind == SubjectUnknown {
		return "", kind
	}
	return resp.GetSubject(), kind
}

// Confirmation names the keys that a sender-constrained token is bound to. The
// presenter must prove possession of each of them. If both are empty, the token
// is bound in a way that is not described here, and must be refused.
type Confirmation struct {
	// JKT is the SHA-256 thumbprint of a DPoP key (RFC 9449).
	JKT string
	// X5TS256 is the SHA-256 thumbprint of a client certificate (RFC 8705).
	X5TS256 string
}

// confirmationOf is empty also where a newer broker says more about the binding
// than this client knows.
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

// Reason is the first check that a token failed: a RejectionReason of the API, in
// snake case. Later versions may add reasons.
type Reason string

// The reasons, in the order of the checks. Those up to ReasonBadSignature tell
// nothing that whoever presents the token cannot see.
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
	// ReasonWrongHolder: the token is bound to a key that whoever presents it has
	// not shown. The broker does not check that; the middleware does.
	ReasonWrongHolder Reason = "wrong_holder"
	// ReasonUnknown: a newer broker gives a reason that this client does not know.
	ReasonUnknown Reason = "unknown"
)

func rejectionReasonOf(r tokenbrokerv1.RejectionReason) Reason {
	name, known := tokenbrokerv1.RejectionReason_name[int32(r)]
	if !known || r == tokenbrokerv1.RejectionReason_REJECTION_REASON_UNSPECIFIED {
		return ReasonUnknown
	}
	return Reason(strings.ToLower(strings.TrimPrefix(name, "REJECTION_REASON_")))
}

// RejectedError says that a token is not good. Any other error of Verify means
// that the broker could not decide: treat the token as not verified and answer
// 503, not 401.
type RejectedError struct {
	Reason Reason
	// Message is a sentence for a developer.
	Message string
}

func (e *RejectedError) Error() string {
	return fmt.Sprintf("the token is rejected (%s): %s", e.Reason, e.Message)
}

// VerifyOption says what a token must be good for. Each is also an option of a
// [Verifier] and of the middleware.
type VerifyOption interface {
	VerifierOption
	MiddlewareOption
	verify(want *wanted)
}

// wanted is what a token must be good for.
type wanted struct {
	audience []string // any of
	scopes   []string // all of
	issuer   string
	// answer is the same where the broker's answer is: scopes apart, which are
	// compared here.
	answer string
}

func (w wanted) with(opts []VerifyOption) wanted {
	for _, opt := range opts {
		opt.verify(&w)
	}
	return w.ready()
}

// ready is w once all is said.
func (w wanted) ready() wanted {
	w.answer = ""
	if len(w.audience) > 0 || w.issuer != "" {
		w.answer = fmt.Sprintf("%q%q", w.issuer, w.audience)
	}
	return w
}

type verifyOption func(*wanted)

func (set verifyOption) verify(w *wanted) { set(w) }

func (set verifyOption) verifier(v *Verifier) { set(&v.want) }

func (set verifyOption) middleware(want *wanted) { set(want) }

// RequireAudience accepts only tokens for at least one of these audiences. Without
// it, a token must be for one of the audiences that the broker's configuration lists
// for the issuer.
func RequireAudience(anyOf ...string) VerifyOption {
	return verifyOption(func(w *wanted) { w.audience = slices.Clone(anyOf) })
}

// RequireScopes accepts only tokens with all of these scopes.
func RequireScopes(allOf ...string) VerifyOption {
	return verifyOption(func(w *wanted) { w.scopes = slices.Clone(allOf) })
}

// RequireIssuer accepts only tokens of this issuer.
func RequireIssuer(issuer string) VerifyOption {
	return verifyOption(func(w *wanted) { w.issuer = issuer })
}

// Verify has the broker verify a token, given without "Bearer ": one call, each
// time. The error is a [*RejectedError] if the token is not good. A service that
// verifies what it is presented with takes a [Verifier], which remembers.
func (c *Client) Verify(ctx context.Context, token string, opts ...VerifyOption) (*Claims, error) {
	return c.verify(ctx, token, wanted{}.with(opts))
}

func (c *Client) verify(ctx context.Context, token string, want wanted) (*Claims, error) {
	resp, err := c.api.VerifyToken(ctx, &tokenbrokerv1.VerifyTokenRequest{
		Token: token, Audiences: want.audience, RequiredScopes: want.scopes, Issuer: want.issuer,
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
