package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/store"
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

// Error is what every flow of this package fails with. Its text is for the
// caller: it holds no secret, no token and nothing that an IdP wrote.
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

	cause error
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns what lies behind the error, for the log.
func (e *Error) Unwrap() error { return e.cause }

// after returns the error as it reads when it is told again later.
func (e *Error) after(wait time.Duration) *Error {
	told := *e
	told.RetryAfter = max(wait, time.Millisecond)
	return &told
}

// mayNotDo is the error for what only operators may, some of them.
func mayNotDo(caller *policy.Caller, action policy.Action, client string) *Error {
	asked, about := fmt.Sprintf("the action %s", action), map[string]string{"action": string(action)}
	if client != "" {
		asked += fmt.Sprintf(" on client %q", client)
		about["client"] = client
	}
	return denied(caller, asked, about)
}

// unconfirmed is the error for a change that the store did not confirm. Where the
// store says that it takes no writes, asking again does not help before that is
// mended.
func unconfirmed(cause error, what, again string, about map[string]string) *Error {
	told := &Error{
		Code: Unavailable, Reason: ReasonStoreUnavailable, RetryAfter: time.Second, Metadata: about, cause: cause,
		Message: what + ", which may or may not have happened; " + again,
	}
	if errors.Is(cause, store.ErrNoWrites) {
		told.Message = fmt.Sprintf("%s: %v; mend that, then %s", what, cause, again)
	}
	return told
}

const internalMessage = "the broker met a fault of its own; its log has the details"

// gaveUp is the error of a caller whose ctx ended. Whoever ended it may have
// said why, with an [*Error] as the cause.
func gaveUp(ctx context.Context) *Error {
	if why, ok := errors.AsType[*Error](context.Cause(ctx)); ok {
		return why
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return &Error{Code: Canceled, Reason: ReasonCallerGaveUp, Message: "the caller cancelled the call", cause: ctx.Err()}
	}
	return &Error{Code: DeadlineExceeded, Reason: ReasonCallerGaveUp, Message: "the caller's deadline passed while the broker waited; allow at least 10 s for a token that is not held yet", cause: ctx.Err()}
}

// refused translates what went wrong when a token was asked for.
func refused(client, secretVersion string, err error) *Error {
	told := &Error{Metadata: map[string]string{"client": client}, cause: err}
	refusal, ok := errors.AsType[*idp.Error](err)
	if !ok {
		told.Code, told.Reason = Unavailable, ReasonIdPUnavailable
		told.Message = fmt.Sprintf("client %q: no token came in time", client)
		return told
	}
	if refusal.Code != "" {
		told.Metadata["oauth_error"] = refusal.Code
	}
	switch refusal.Class {
	case idp.CredentialRefused:
		told.Code, told.Reason = FailedPrecondition, ReasonCredentialsRefused
		told.Metadata["secret_version"] = secretVersion
	case idp.RequestRefused:
		told.Code, told.Reason = FailedPrecondition, ReasonRequestRefused
	case idp.Misconfigured:
		told.Code, told.Reason = FailedPrecondition, ReasonIdPMisconfigured
	case idp.Throttled:
		told.Code, told.Reason = ResourceExhausted, ReasonIdPThrottled
	case idp.Transient:
		told.Code, told.Reason = Unavailable, ReasonIdPUnavailable
	default:
		return Fault(err)
	}
	told.Message = fmt.Sprintf("client %q: %v", client, refusal)
	return told
}

// Fault is the error for what should not have happened; its cause is for the
// log alone.
func Fault(cause error) *Error {
	return &Error{Code: Internal, Reason: ReasonInternal, Message: internalMessage, cause: cause}
}
