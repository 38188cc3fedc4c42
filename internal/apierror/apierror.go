// Package apierror has the error that callers get to see, whatever API they use and
// whatever failed: a code, a machine-readable reason and a sentence. It knows no other
// package, so that every layer can fail with it.
package apierror

import (
	"context"
	"errors"
	"time"
)

// Code is the kind of an [Error]. The codes are those of gRPC that the broker
// uses; APIs translate them, each in one table.
type Code int

// The codes.
const (
	Internal           Code = iota // a fault of the broker's own
	InvalidArgument                // the question is malformed
	Unauthenticated                // nobody knows who asks
	PermissionDenied               // the caller may not ask this, or what it asks for does not exist
	FailedPrecondition             // asking again does not help until somebody changes something
	ResourceExhausted              // too much was asked; RetryAfter says when to ask again
	Unavailable                    // what is needed cannot be reached; RetryAfter says when to ask again
	DeadlineExceeded               // the caller's time was up
	Canceled                       // the caller left
	NotFound                       // what the question names does not exist
)

// Reasons are the stable, machine-readable causes that errors carry.
const (
	ReasonInvalidRequest     = "INVALID_REQUEST"
	ReasonUnidentified       = "CALLER_UNIDENTIFIED"
	ReasonNotEntitled        = "NOT_ENTITLED"
	ReasonGrantedTooMuch     = "GRANTED_SCOPES_NOT_ENTITLED"
	ReasonGrantedUnknown     = "GRANTED_SCOPES_UNKNOWN"
	ReasonCredentialsRefused = "CLIENT_CREDENTIALS_REFUSED"
	ReasonRequestRefused     = "TOKEN_REQUEST_REFUSED"
	ReasonIdPMisconfigured   = "IDP_MISCONFIGURED"
	ReasonMinTTLUnattainable = "MIN_TTL_UNATTAINABLE"
	ReasonIdPThrottled       = "IDP_THROTTLED"
	ReasonForcedFetchLimited = "FORCED_FETCH_LIMITED"
	ReasonIdPUnavailable     = "IDP_UNAVAILABLE"
	ReasonStoreUnavailable   = "STORE_UNAVAILABLE"
	ReasonNoSecret           = "NO_SECRET"
	ReasonSecretUnusable     = "SECRET_UNUSABLE"
	ReasonSecretsUnknown     = "SECRETS_UNKNOWN"
	ReasonSecretsUnreadable  = "SECRETS_UNREADABLE"
	ReasonSecretNotManaged   = "SECRET_NOT_MANAGED"
	ReasonSecretStaged       = "SECRET_STAGED"
	ReasonSecretChanged      = "SECRET_CHANGED"
	ReasonSecretInForce      = "SECRET_IN_FORCE"
	ReasonNoSuchSecret       = "NO_SUCH_SECRET_VERSION"
	ReasonNoPreviousSecret   = "NO_PREVIOUS_SECRET"
	ReasonPurged             = "TOKENS_PURGED"
	ReasonKeysUnavailable    = "ISSUER_KEYS_UNAVAILABLE"
	ReasonUnintrospected     = "INTROSPECTION_UNAVAILABLE"
	ReasonTooManyWatches     = "TOO_MANY_WATCHES"
	ReasonRateLimited        = "RATE_LIMITED"
	ReasonTooManyCalls       = "TOO_MANY_CALLS"
	ReasonOverloaded         = "OVERLOADED"
	ReasonHeadersTooLarge    = "HEADERS_TOO_LARGE"
	ReasonTooManyAttempts    = "TOO_MANY_ATTEMPTS"
	ReasonShuttingDown       = "SHUTTING_DOWN"
	ReasonRevocationsUnknown = "REVOCATIONS_UNKNOWN"
	ReasonTooManyRevocations = "TOO_MANY_REVOCATIONS"
	ReasonNoSuchRevocation   = "NO_SUCH_REVOCATION"
	ReasonUnaudited          = "AUDIT_UNAVAILABLE"
	ReasonCallerGaveUp       = "CALLER_GAVE_UP"
	ReasonInternal           = "INTERNAL"
)

// Error is an error for callers. Its text holds no secret, no token and nothing that
// an IdP wrote.
type Error struct {
	Code Code
	// Reason is one of the Reason constants.
	Reason string
	// Message is a sentence that tells the reader what to do.
	Message string
	// RetryAfter says when asking again may help. Zero: unknown or never.
	RetryAfter time.Duration
	// Metadata names what the error is about; never mutated after the error is
	// made.
	Metadata map[string]string
	// Field names the field at fault of an InvalidArgument.
	Field string
	// Cause is for the log alone. Callers never see it.
	Cause error
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns what lies behind the error, for the log.
func (e *Error) Unwrap() error { return e.Cause }

// WithRetryAfter returns the error as it reads when it is told again later.
func (e *Error) WithRetryAfter(wait time.Duration) *Error {
	told := *e
	told.RetryAfter = max(wait, time.Millisecond)
	return &told
}

// internalMessage is all that callers learn of a fault of the broker.
const internalMessage = "the broker met a fault of its own; its log has the details"

// GaveUp is the error of a caller whose ctx ended. Whoever ended it may have
// said why, with an [*Error] as the cause.
func GaveUp(ctx context.Context) *Error {
	if why, ok := errors.AsType[*Error](context.Cause(ctx)); ok {
		return why
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return &Error{Code: Canceled, Reason: ReasonCallerGaveUp, Message: "the caller cancelled the call", Cause: ctx.Err()}
	}
	return &Error{Code: DeadlineExceeded, Reason: ReasonCallerGaveUp, Message: "the caller's deadline passed while the broker waited; allow at least 10 s for a token that is not held yet", Cause: ctx.Err()}
}

// Fault is the error for what should not have happened; its cause is for the
// log alone.
func Fault(cause error) *Error {
	return &Error{Code: Internal, Reason: ReasonInternal, Message: internalMessage, Cause: cause}
}
