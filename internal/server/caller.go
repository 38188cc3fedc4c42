package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/certs"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

const (
	// hangUpDelay lets the last response reach the client before its connection is
	// closed.
	hangUpDelay = time.Second
	// maxRefusals is how many invalid JWTs are verified per second and connection:
	// verifying costs more than sending.
	maxRefusals = 100
)

// callers identifies the caller of a call: by the identity proved for the connection if
// it matches a configured caller, else by the JWT in the call, else by the caller bound
// to the listener.
type callers struct {
	broker *broker.Broker
	// authorities returns the authorities that are trusted now to issue client
	// certificates, or nil if there are no such authorities.
	authorities func() *certs.Authorities
	// audience is the required audience of the JWTs of callers.
	audience  string
	strangers *strangers
	headers   headerLimit
	audit     *audit.Log
}

// forAll reports whether a method needs no caller. The health service itself decides
// which peers may see which status.
func forAll(method string) bool {
	return method == healthpb.Health_Check_FullMethodName || method == healthpb.Health_Watch_FullMethodName
}

// forGateways reports whether a method belongs to a service that gateways call on
// behalf of others. There a JWT belongs to the client of the gateway and never
// identifies the gateway.
func forGateways(method string) bool { return strings.HasPrefix(method, "/envoy.service.auth.") }

// of identifies the caller of a call and returns the latest time at which the
// identification expires, or zero if it holds until something changes. It audits
// unidentified calls.
func (c *callers) of(ctx context.Context, now time.Time) (caller *policy.Caller, until time.Time, err error) {
	return c.ofMethod(ctx, methodOf(ctx), now)
}

func (c *callers) ofMethod(ctx context.Context, method string, now time.Time) (caller *policy.Caller, until time.Time, err error) {
	return c.known(ctx, connectionOf(ctx), metadata.ValueFromIncomingContext(ctx, "authorization"), method, now)
}

// known calls recognise and audits a failure under action.
func (c *callers) known(ctx context.Context, conn *connection, authorization []string, action string, now time.Time) (*policy.Caller, time.Time, error) {
	caller, until, err := c.recognise(ctx, conn, authorization, now)
	if err != nil {
		turnedAway(ctx, c.audit, action, nil, err)
	}
	return caller, until, err
}

// calling identifies the caller of a method: a gateway by its connection, any other
// caller as of does.
func (c *callers) calling(ctx context.Context, method string, now time.Time) (*policy.Caller, error) {
	if forGateways(method) {
		return c.gateway(ctx, connectionOf(ctx), method, now)
	}
	caller, _, err := c.ofMethod(ctx, method, now)
	return caller, err
}

// gateway identifies the gateway that makes a call, by its connection alone.
func (c *callers) gateway(ctx context.Context, conn *connection, action string, now time.Time) (*policy.Caller, error) {
	caller, _, err := c.recognise(ctx, conn, nil, now)
	if err == nil {
		return caller, nil
	}
	if c.proved(conn, now).why == provedNothing {
		err = unidentified("a gateway is known by its client certificate, which must be of an authority that the broker trusts, " +
			"or because it connects to a loopback address or a Unix socket that is bound to a caller; the authorization of a request is not the gateway's")
	}
	turnedAway(ctx, c.audit, action, nil, err)
	return nil, err
}

// recognise identifies the caller of a call over conn with these authorization values.
func (c *callers) recognise(ctx context.Context, conn *connection, authorization []string, now time.Time) (caller *policy.Caller, until time.Time, err error) {
	found := c.proved(conn, now)
	if found.caller != nil {
		return found.caller, found.until, nil
	}
	token, presented, err := bearer(authorization)
	switch {
	case err != nil:
		return nil, time.Time{}, err
	case presented:
		return c.byToken(ctx, conn, found, token, now)
	case conn.bound != "" && c.broker.Policy().Named(conn.bound) != nil:
		return c.broker.Policy().Named(conn.bound), time.Time{}, nil
	}
	if found.lapsed() {
		conn.hangUp()
	}
	return nil, time.Time{}, unidentified(conn.missing(found))
}

// byToken identifies a caller by the JWT that it presents, within the limit on invalid
// JWTs.
func (c *callers) byToken(ctx context.Context, conn *connection, found *recognition, token redact.String, now time.Time) (*policy.Caller, time.Time, error) {
	if conn.refusals.reached(now, maxRefusals) {
		return nil, time.Time{}, &apierror.Error{
			Code: apierror.ResourceExhausted, Reason: apierror.ReasonTooManyAttempts, RetryAfter: time.Second,
			Message: "too many JWTs that were not good came over this connection within a second: wait for the next one, and mend what presents them",
		}
	}
	caller, until, err := c.byGoodToken(ctx, conn, found, token)
	if told, ok := errors.AsType[*apierror.Error](err); ok && told.Code == apierror.Unauthenticated {
		conn.refusals.admits(now, maxRefusals)
	}
	if err == nil {
		conn.stranger.isKnown()
	}
	return caller, until, err
}

// byGoodToken identifies a caller by a JWT. A JWT that is bound to a certificate must
// come over a connection with that certificate (RFC 8705 section 3). A JWT with any
// other binding is refused, since the broker does not check it.
func (c *callers) byGoodToken(ctx context.Context, conn *connection, found *recognition, token redact.String) (*policy.Caller, time.Time, error) {
	if strings.Count(token.Reveal(), ".") != 2 {
		return nil, time.Time{}, unidentified("what the metadata authorization carries is not a JWT")
	}
	known := c.broker.Policy()
	result, err := c.broker.Identify(ctx, token, c.audience)
	if err != nil {
		return nil, time.Time{}, err
	}
	if result.Rejection != nil {
		return nil, time.Time{}, unidentified(fmt.Sprintf("the JWT in the metadata authorization is not good: %s It must be for the audience %q", result.Rejection.Message, c.audience))
	}
	switch held := result.Facts.Confirmation.MatchesCertificate(conn.holder(found)); {
	case !held && found.lapsed():
		conn.hangUp()
		return nil, time.Time{}, unidentified(conn.missing(found))
	case !held:
		return nil, time.Time{}, unidentified("the JWT in the metadata authorization is bound to a key (cnf) of which this connection gives no proof: " +
			"connect with the client certificate that its x5t#S256 names, or send a JWT that is not bound; the broker checks no other member of cnf")
	}
	identity := policy.Identity{Issuer: result.Facts.Issuer, Claims: result.Facts.Claims}
	if result.Facts.SubjectType == verify.SubjectSub {
		identity.Subject = result.Facts.Subject
	}
	caller := known.Caller(identity)
	switch {
	case caller != nil:
	case known.Ambiguous(identity):
		return nil, time.Time{}, unidentified(fmt.Sprintf("the JWT of subject %q of issuer %q fits several callers, and so identifies none of them: have subject and claims in the broker's configuration tell them apart",
			identity.Subject, identity.Issuer))
	case identity.Subject == "":
		return nil, time.Time{}, unidentified(fmt.Sprintf("the JWT in the metadata authorization, of issuer %q, has no sub, no other claim stands for the subject of a caller, and its claims are those of no caller", identity.Issuer))
	default:
		return nil, time.Time{}, unidentified(fmt.Sprintf("subject %q of issuer %q is none of the callers in the broker's configuration: add it to callers, or correct it there",
			result.Facts.Subject, result.Facts.Issuer))
	}
	until := result.Facts.ExpiresAt
	if result.Facts.Confirmation != nil && found.until.Before(until) {
		until = found.until
	}
	return caller, until, nil
}

// bearer returns the token in the authorization values, if present (RFC 6750 section
// 2.1). A malformed value is an error, so that a mistake never makes a call fall back
// to another identity.
func bearer(values []string) (token redact.String, presented bool, err error) {
	if len(values) == 0 {
		return redact.String{}, false, nil
	}
	if len(values) > 1 {
		return redact.String{}, false, unidentified("the metadata authorization is given more than once: send one JWT")
	}
	scheme, text, _ := strings.Cut(values[0], " ")
	text = strings.TrimLeft(text, " ") // 1*SP
	if !strings.EqualFold(scheme, "bearer") || text == "" {
		return redact.String{}, false, unidentified("the metadata authorization is not \"Bearer \" and a JWT")
	}
	return redact.New(text), true, nil
}

// missing explains why the connection identifies no caller without a JWT.
func (c *connection) missing(found *recognition) string {
	switch found.why {
	case ended:
		return fmt.Sprintf("the client certificate of this connection ended at %s: connect anew with a current one", found.until.UTC().Format(time.RFC3339))
	case notTrusted:
		return "the client certificate of this connection is of no authority that the broker trusts any more: connect anew with one that is"
	case ofAuthority:
		return "the client certificate of this connection is that of a certificate authority (CA, or key usage keyCertSign or cRLSign), which identifies no caller: issue one for the caller"
	case notConfigured:
		return namesIn(c.identity) + " is none of the callers in the broker's configuration: add it to callers, or correct it there"
	case provedNothing:
		fallthrough
	default:
		return "the call carries nothing by which its caller could be recognised: connect with a client certificate of an authority that the broker trusts, " +
			"or send a JWT in the metadata authorization (Bearer ...)"
	}
}

func unidentified(why string) *apierror.Error {
	return &apierror.Error{Code: apierror.Unauthenticated, Reason: apierror.ReasonUnidentified, Message: "the broker does not know who is calling: " + why}
}

// CallerOf returns the caller of the call that a handler serves, or nil if there is no
// caller.
func CallerOf(ctx context.Context) *policy.Caller { return callerOf(ctx) }

// OpaqueIssuerOf returns the issuer that the listener of a call configures for opaque
// tokens; it may be empty.
func OpaqueIssuerOf(ctx context.Context) string { return connectionOf(ctx).opaque }

func callerOf(ctx context.Context) *policy.Caller {
	caller, _ := ctx.Value(callerKey{}).(*policy.Caller)
	return caller
}

type callerKey struct{}
