// Package apierror defines the error that callers see, whatever API they use and
// whatever failed: a code, a machine-readable reason and a sentence. It imports no other
// package of the broker, so that every layer can return it.
package apierror

import (
	"context"
	"errors"
	"time"
)

// Code is the kind of an [Error]. The codes are the gRPC codes that the broker uses;
// each API translates them in one table.
type Code int

// The codes.
const (
	Internal           Code = iota // a fault of the broker itself
	InvalidArgument                // the request is malformed
	Unauthenticated                // the caller is not identified
	PermissionDenied               // the caller may not make this request, or its object does not exist
	FailedPrecondition             // a retry does not help until a person changes something
	ResourceExhausted              // a limit is exceeded; RetryAfter is the time to retry
	Unavailable                    // a dependency cannot be reached; RetryAfter is the time to retry
	DeadlineExceeded               // the caller's deadline has passed
	Canceled                       // the caller canceled the request
	NotFound                       // the object of the request does not exist
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
	ReasonSubjectRefused     = "SUBJECT_TOKEN_REFUSED"
	ReasonInteraction        = "INTERACTION_REQUIRED"
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
	ReasonKeyNotReady        = "KEY_NOT_READY"
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

// Error is an error for callers. Its text holds no secret, no token and no text from an
// IdP.
type Error struct {
	Code Code
	// Reason is one of the Reason constants.
	Reason string
	// Message is a sentence that says how to correct the failure.
	Message string
	// RetryAfter is the time after which a retry may help. Zero: unknown or never.
	RetryAfter time.Duration
	// Metadata names the objects of the error; it is never mutated after the error is
	// made.
	Metadata map[string]string
	// Field names the invalid field of an InvalidArgument.
	Field string
	// Cause is for the log only. Callers never see it.
	Cause error
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause, for the log.
func (e *Error) Unwrap() error { return e.Cause }

// WithRetryAfter returns a copy of the error with a new time to retry.
func (e *Error) WithRetryAfter(wait time.Duration) *Error {
	told := *e
	told.RetryAfter = max(wait, time.Millisecond)
	return &told
}

// internalMessage is the only message that callers see of a fault of the broker.
const internalMessage = "internal error of the broker; its log has the details"

// GaveUp is the error for a caller after its ctx has ended. If the cause of ctx is an
// [*Error], that is the error.
func GaveUp(ctx context.Context) *Error {
	if why, ok := errors.AsType[*Error](context.Cause(ctx)); ok {
		return why
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return &Error{Code: Canceled, Reason: ReasonCallerGaveUp, Message: "the caller cancelled the call", Cause: ctx.Err()}
	}
	return &Error{Code: DeadlineExceeded, Reason: ReasonCallerGaveUp, Message: "the caller's deadline passed while the broker waited; allow at least 10 s for a token that is not held yet", Cause: ctx.Err()}
}

// Fault is the error for a case that should not happen; its cause is for the log only.
func Fault(cause error) *Error {
	return &Error{Code: Internal, Reason: ReasonInternal, Message: internalMessage, Cause: cause}
}
