package caller

import (
	"context"
	"errors"
	"net"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// auditCall audits a call that was refused before its request was examined: its caller
// was not identified or exceeded a limit. caller is nil if it was not identified.
func auditCall(ctx context.Context, log *audit.Log, action string, caller *policy.Caller, err error) {
	refusal, ok := errors.AsType[*apierror.Error](err)
	if log == nil || !ok {
		return
	}
	e := audit.Event{Event: audit.Call, Reason: refusal.Reason, Detail: refusal.Message, Peer: log.From(ctx), Action: action}
	switch refusal.Code {
	case apierror.Unauthenticated:
		e.Outcome = audit.Unidentified
	case apierror.ResourceExhausted:
		e.Outcome = audit.Limited
	default:
		return // the caller could not be checked, so there is no decision to audit
	}
	if caller != nil {
		e.Caller = caller.Name()
	}
	log.Record(&e)
}

// auditConnection audits a refused connection. presented describes the names in
// the client's unverified certificate; it is empty if the client sent no certificate.
func auditConnection(log *audit.Log, from net.Addr, reason, presented string) {
	e := audit.Event{Event: audit.Connection, Outcome: audit.Unidentified, Reason: reason, Detail: presented, Peer: from.String()}
	if reason == tooManyConnections || reason == tooManyFrames {
		e.Outcome = audit.Limited
	}
	log.Record(&e)
}
