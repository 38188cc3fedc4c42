package broker

import (
	"errors"
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/store"
)

// mayNotDo is the error for what only operators may, some of them.
func mayNotDo(caller *policy.Caller, action policy.Action, client string) *apierror.Error {
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
func unconfirmed(cause error, what, again string, about map[string]string) *apierror.Error {
	told := &apierror.Error{
		Code: apierror.Unavailable, Reason: apierror.ReasonStoreUnavailable, RetryAfter: time.Second, Metadata: about, Cause: cause,
		Message: what + ", which may or may not have happened; " + again,
	}
	if errors.Is(cause, store.ErrNoWrites) {
		told.Message = fmt.Sprintf("%s: %v; mend that, then %s", what, cause, again)
	}
	return told
}

// refused translates what went wrong when a token was asked for.
func refused(client, secretVersion string, err error) *apierror.Error {
	told := &apierror.Error{Metadata: map[string]string{"client": client}, Cause: err}
	refusal, ok := errors.AsType[*idp.Error](err)
	if !ok {
		told.Code, told.Reason = apierror.Unavailable, apierror.ReasonIdPUnavailable
		told.Message = fmt.Sprintf("client %q: no token came in time", client)
		return told
	}
	if refusal.Code != "" {
		told.Metadata["oauth_error"] = refusal.Code
	}
	switch refusal.Class {
	case idp.CredentialRefused:
		told.Code, told.Reason = apierror.FailedPrecondition, apierror.ReasonCredentialsRefused
		told.Metadata["secret_version"] = secretVersion
	case idp.RequestRefused:
		told.Code, told.Reason = apierror.FailedPrecondition, apierror.ReasonRequestRefused
	case idp.Misconfigured:
		told.Code, told.Reason = apierror.FailedPrecondition, apierror.ReasonIdPMisconfigured
	case idp.Throttled:
		told.Code, told.Reason = apierror.ResourceExhausted, apierror.ReasonIdPThrottled
	case idp.Transient:
		told.Code, told.Reason = apierror.Unavailable, apierror.ReasonIdPUnavailable
	default:
		return apierror.Fault(err)
	}
	told.Message = fmt.Sprintf("client %q: %v", client, refusal)
	return told
}
