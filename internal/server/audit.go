package server

import (
	"context"
	"errors"
	"net"

	"google.golang.org/grpc"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// turnedAway writes down that a call was refused before anybody looked at what it
// asks for: because nobody knows who makes it, or because its caller asks for too
// much at a time. ctx and action are the call's; caller is nil where it is not known.
func turnedAway(ctx context.Context, log *audit.Log, action string, caller *policy.Caller, err error) {
	told, ok := errors.AsType[*apierror.Error](err)
	if log == nil || !ok {
		return
	}
	e := audit.Event{Event: audit.Call, Reason: told.Reason, Detail: told.Message, Peer: log.From(ctx), Action: action}
	switch told.Code {
	case apierror.Unauthenticated:
		e.Outcome = audit.Unidentified
	case apierror.ResourceExhausted:
		e.Outcome = audit.Limited
	default:
		return // nobody could be asked, which is no judgement
	}
	if caller != nil {
		e.Caller = caller.Name()
	}
	log.Record(&e)
}

// turnedAwayConnection writes down that a connection was refused. presented are the
// names in the certificate that came, for which nobody vouches; empty: none came.
func turnedAwayConnection(log *audit.Log, from net.Addr, reason, presented string) {
	e := audit.Event{Event: audit.Connection, Outcome: audit.Unidentified, Reason: reason, Detail: presented, Peer: from.String()}
	if reason == tooManyConnections || reason == tooManyFrames {
		e.Outcome = audit.Limited
	}
	log.Record(&e)
}

// methodOf is the method of a call.
func methodOf(ctx context.Context) string {
	method, _ := grpc.Method(ctx)
	return method
}
