package server

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc/metadata"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
)

// callers recognises who asks.
type callers struct {
	broker *broker.Broker
	// audience is whom the JWTs of callers must be for.
	audience string
	// bound is the name of the caller that everybody is who connects and proves
	// nothing else; empty: nobody.
	bound string
	audit *audit.Log
}

// forAll are the services that need no caller.
func forAll(method string) bool { return strings.HasPrefix(method, "/grpc.health.v1.Health/") }

// of says who makes a call.
func (c *callers) of(ctx context.Context) (*policy.Caller, error) {
	caller, err := c.recognise(ctx)
	if err != nil {
		turnedAway(ctx, c.audit, nil, err)
	}
	return caller, err
}

func (c *callers) recognise(ctx context.Context) (*policy.Caller, error) {
	if token, ok := bearer(ctx); ok {
		return c.byToken(ctx, token)
	}
	if c.bound != "" {
		if caller := c.broker.Policy().Named(c.bound); caller != nil {
			return caller, nil
		}
	}
	return nil, unidentified("the call carries nothing by which its caller could be recognised: connect with a client certificate, " +
		"or send a JWT in the metadata authorization (Bearer ...)")
}

// byToken recognises a caller by the JWT that it presents.
func (c *callers) byToken(ctx context.Context, token redact.String) (*policy.Caller, error) {
	known := c.broker.Policy()
	result, err := c.broker.Identify(ctx, token, c.audience)
	if err != nil {
		return nil, err
	}
	if result.Rejection != nil {
		return nil, unidentified(fmt.Sprintf("the JWT in the metadata authorization is not good: %s It must be for the audience %q", result.Rejection.Message, c.audience))
	}
	caller := known.Caller(policy.Identity{Issuer: result.Facts.Issuer, Subject: result.Facts.Subject})
	if caller == nil {
		return nil, unidentified(fmt.Sprintf("subject %q of issuer %q is none of the callers in the broker's configuration: add it to callers, or correct it there",
			result.Facts.Subject, result.Facts.Issuer))
	}
	return caller, nil
}

// bearer is the token in the metadata, if there is exactly one (RFC 6750 section
// 2.1).
func bearer(ctx context.Context) (redact.String, bool) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) != 1 {
		return redact.String{}, false
	}
	scheme, token, found := strings.Cut(values[0], " ")
	if !found || !strings.EqualFold(scheme, "bearer") || token == "" {
		return redact.String{}, false
	}
	return redact.New(token), true
}

func unidentified(why string) *broker.Error {
	return &broker.Error{Code: broker.Unauthenticated, Reason: broker.ReasonUnidentified, Message: "the broker does not know who is calling: " + why}
}

// callerOf is who makes the call that a handler answers; nil: nobody.
func callerOf(ctx context.Context) *policy.Caller {
	caller, _ := ctx.Value(callerKey{}).(*policy.Caller)
	return caller
}

type callerKey struct{}
