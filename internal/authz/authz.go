// Package authz authorizes the actions of operators by their permissions, and records them
// in the audit log.
package authz

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// Actions authorizes and records actions. It is safe for concurrent use.
type Actions struct {
	// Audit records the actions. Nil: no audit log.
	Audit *audit.Log
}

// Authorize returns an error unless the caller may perform an action and the audit log can
// record it. client is empty for an action without a client.
func (a Actions) Authorize(caller *policy.Caller, action policy.Action, client string) *apierror.Error {
	switch {
	case !caller.MayDo(action, client):
		return NotPermitted(caller, action, client)
	case a.Audit.Ready() != nil:
		return Unrecorded()
	default:
		return nil
	}
}

// Allow authorizes an action without a client that changes nothing, and records it. It does
// not depend on the audit log.
func (a Actions) Allow(ctx context.Context, caller *policy.Caller, action policy.Action) error {
	var err error
	if !caller.MayDo(action, "") {
		err = NotPermitted(caller, action, "")
	}
	a.Record(ctx, caller, action, err, audit.Event{})
	return err
}

// Record records the result of an action.
func (a Actions) Record(ctx context.Context, caller *policy.Caller, action policy.Action, err error, e audit.Event) {
	if a.Audit == nil {
		return
	}
	e.Event, e.Action, e.Caller, e.Peer, e.Outcome = audit.Admin, string(action), caller.Name(), a.Audit.From(ctx), audit.OK
	if failure, ok := errors.AsType[*apierror.Error](err); ok {
		e.Reason, e.Detail = failure.Reason, failure.Message
		switch failure.Code {
		case apierror.PermissionDenied:
			e.Outcome = audit.Denied
		case apierror.InvalidArgument, apierror.NotFound, apierror.FailedPrecondition, apierror.ResourceExhausted:
			e.Outcome = audit.Refused
		default:
			e.Outcome = audit.Failed
		}
	}
	a.Audit.Record(&e)
}

// NotPermitted is the error for an action that the caller may not perform.
func NotPermitted(caller *policy.Caller, action policy.Action, client string) *apierror.Error {
	requested, about := fmt.Sprintf("the action %s", action), map[string]string{"action": string(action)}
	if client != "" {
		requested += fmt.Sprintf(" on client %q", client)
		about["client"] = client
	}
	return Denied(caller, requested, about)
}

// Denied is the error for an object that does not exist or that the caller may not use:
// callers must not learn which.
func Denied(caller *policy.Caller, requested string, about map[string]string) *apierror.Error {
	about["caller"] = caller.Name()
	return &apierror.Error{
		Code: apierror.PermissionDenied, Reason: apierror.ReasonNotEntitled, Metadata: about,
		Message: fmt.Sprintf("caller %q asked for %s: there is no such thing, or this caller may not have it; an operator can list its permissions with: broker policy explain FILE %s",
			caller.Name(), requested, caller.Name()),
	}
}

// Unrecorded is the error for a request that is not served because the audit log cannot
// record it.
func Unrecorded() *apierror.Error {
	return &apierror.Error{
		Code: apierror.Unavailable, Reason: apierror.ReasonUnaudited, RetryAfter: time.Second,
		Message: "the broker cannot write its audit log, and audit.when_full: refuse makes it refuse requests that need an audit record; try again, or call another replica",
	}
}
