package verify

import (
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
)

// Reason is the first check that a token failed. The numbers equal the API's.
type Reason int

// The reasons, in the order of the checks.
const (
	_ Reason = iota
	// Malformed: the token is not in JWS compact form, or its header or payload is not
	// valid JSON.
	Malformed
	// Unsupported: the header uses a feature that is never accepted.
	Unsupported
	// UnknownIssuer: the issuer is not configured, or not the requested one.
	UnknownIssuer
	// AlgorithmNotAllowed: the issuer or the key does not permit the algorithm.
	AlgorithmNotAllowed
	// UnknownKey: the issuer publishes no usable key with this kid.
	UnknownKey
	// BadSignature: the signature is not valid.
	BadSignature
	// BadClaims: the signature is valid, but a claim is missing or invalid.
	BadClaims
	// WrongType: the token is not an access token.
	WrongType
	// Expired: the token is past its exp.
	Expired
	// NotYetValid: the token is before its nbf, or issued in the future.
	NotYetValid
	// LifetimeTooLong: the token's lifetime or age exceeds the configured bound.
	LifetimeTooLong
	// WrongAudience: the token has none of the accepted audiences.
	WrongAudience
	// InsufficientScope: the token lacks a requested scope.
	InsufficientScope
	// Revoked: an operator revoked the token. The caller of this package checks that.
	Revoked
	// Inactive: the issuer's introspection reports an opaque token as not active.
	Inactive
)

//nolint:gochecknoglobals // a constant table
var reasonNames = [...]string{
	"unspecified", "malformed", "unsupported", "unknown_issuer", "algorithm_not_allowed", "unknown_key", "bad_signature", "bad_claims",
	"wrong_type", "expired", "not_yet_valid", "lifetime_too_long", "wrong_audience", "insufficient_scope",
	"revoked", "inactive",
}

// String returns the name in metrics and logs, in snake case.
func (r Reason) String() string {
	if r < 0 || int(r) >= len(reasonNames) {
		r = 0
	}
	return reasonNames[r]
}

// Rejection states why a token is rejected. It is immutable.
type Rejection struct {
	Reason Reason
	// Message is a sentence for a developer. If the Reason is BadSignature or an earlier
	// check, it quotes nothing of the token.
	Message string
}

// Error returns the message. Within this package a Rejection is an error;
// [Verifier.Verify] returns it in a [Result].
func (r *Rejection) Error() string { return r.Message }

func reject(reason Reason, format string, args ...any) error {
	return &Rejection{reason, fmt.Sprintf(format, args...)}
}

// UnavailableError means that a token could not be verified, because the issuer's keys
// could not be fetched or the issuer could not introspect an opaque token.
type UnavailableError struct {
	// Issuer is the configured name of the issuer.
	Issuer string
	// Introspection is true if introspection failed, and false if the keys are missing.
	Introspection bool
	// RetryAfter is the time until the next attempt, 1 s to 1 min.
	RetryAfter time.Duration
	// Err is the error of the last attempt; nil if none has finished. It quotes nothing
	// of the issuer's response.
	Err error
}

func (e *UnavailableError) Error() string {
	switch {
	case e.Introspection:
		return fmt.Sprintf("the opaque tokens of the issuer %q cannot be introspected: %v", e.Issuer, e.Err)
	case e.Err == nil:
		return fmt.Sprintf("the keys of the issuer %q are still being fetched", e.Issuer)
	}
	return fmt.Sprintf("the keys of the issuer %q cannot be fetched: %v", e.Issuer, e.Err)
}

// ForCallers returns the error without the details for operators.
func (e *UnavailableError) ForCallers() *apierror.Error {
	reason, problem := apierror.ReasonKeysUnavailable, fmt.Sprintf("the signing keys of issuer %q could not be fetched", e.Issuer)
	if e.Introspection {
		reason, problem = apierror.ReasonUnintrospected, fmt.Sprintf("opaque tokens of issuer %q cannot be introspected", e.Issuer)
	}
	return &apierror.Error{
		Code:       apierror.Unavailable,
		Reason:     reason,
		RetryAfter: e.RetryAfter,
		Metadata:   map[string]string{"issuer": e.Issuer},
		Message:    problem + ", so the token can neither be accepted nor refused; try again, and treat it as not verified until then",
		Cause:      e,
	}
}

// Unwrap returns Err.
func (e *UnavailableError) Unwrap() error { return e.Err }
