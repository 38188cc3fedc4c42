package verify

import (
	"fmt"
	"time"
)

// Reason is the first check that a token failed. The numbers are those of the
// API.
type Reason int

// The reasons, in the order of the checks.
const (
	_ Reason = iota
	// Malformed: not in JWS compact form, or its header or payload are not sound
	// JSON.
	Malformed
	// Unsupported: the header asks for something that is never accepted.
	Unsupported
	// UnknownIssuer: not one of those configured, or not the one asked for.
	UnknownIssuer
	// AlgorithmNotAllowed: not for this issuer, or not for the key.
	AlgorithmNotAllowed
	// UnknownKey: the issuer publishes no usable key of that id.
	UnknownKey
	// BadSignature: the signature does not hold.
	BadSignature
	// BadClaims: a good signature over claims that are missing or not sound.
	BadClaims
	// WrongType: not an access token.
	WrongType
	// Expired: past exp.
	Expired
	// NotYetValid: before nbf, or issued in the future.
	NotYetValid
	// LifetimeTooLong: issued for longer, or longer ago, than is configured.
	LifetimeTooLong
	// WrongAudience: not for any of the audiences asked for.
	WrongAudience
	// InsufficientScope: without a scope that was asked for.
	InsufficientScope
	// Revoked: an operator revoked it. This package does not judge that; who
	// calls it does.
	Revoked
	// Inactive: opaque, and the issuer's introspection says that it is not
	// active.
	Inactive
)

//nolint:gochecknoglobals // a table that nothing writes
var reasonNames = [...]string{
	"unspecified", "malformed", "unsupported", "unknown_issuer", "algorithm_not_allowed", "unknown_key", "bad_signature", "bad_claims",
	"wrong_type", "expired", "not_yet_valid", "lifetime_too_long", "wrong_audience", "insufficient_scope",
	"revoked", "inactive",
}

// String returns the reason's name in snake case, as metrics and logs have it.
func (r Reason) String() string {
	if r < 0 || int(r) >= len(reasonNames) {
		r = 0
	}
	return reasonNames[r]
}

// Rejection says why a token is not good. It is immutable.
type Rejection struct {
	Reason Reason
	// Message is a sentence for a developer. Up to BadSignature it quotes
	// nothing of the token.
	Message string
}

// Error lets the steps of the verification return a Rejection as what stopped
// them; [Verifier.Verify] returns it as an answer.
func (r *Rejection) Error() string { return r.Message }

func reject(reason Reason, format string, args ...any) error {
	return &Rejection{reason, fmt.Sprintf(format, args...)}
}

// UnavailableError means that nothing can be said of a token, because its
// issuer's keys are not to be had, or what it says of an opaque one.
type UnavailableError struct {
	// Issuer as configured.
	Issuer string
	// Introspection: it is that, and not the keys.
	Introspection bool
	// RetryAfter is when the next try is due, 1 s to 1 min.
	RetryAfter time.Duration
	// Err is why the last try failed; nil: it is still under way, or did not
	// begin yet. It shows nothing of what the issuer answered.
	Err error
}

func (e *UnavailableError) Error() string {
	switch {
	case e.Introspection:
		return fmt.Sprintf("the issuer %q cannot be asked about its opaque tokens: %v", e.Issuer, e.Err)
	case e.Err == nil:
		return fmt.Sprintf("the keys of the issuer %q are still being fetched", e.Issuer)
	}
	return fmt.Sprintf("the keys of the issuer %q cannot be fetched: %v", e.Issuer, e.Err)
}

// Unwrap returns Err.
func (e *UnavailableError) Unwrap() error { return e.Err }
