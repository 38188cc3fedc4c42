// Package caller identifies the callers of all APIs, by certificate, JWT, Unix user or
// listener, and enforces the limits of callers and of unidentified clients.
package caller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/metadata"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/certs"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

const (
	// DefaultAudience is the default of Config.Audience.
	DefaultAudience = "tokenbroker"
	// hangUpDelay lets the last response reach the client before its connection is
	// closed.
	hangUpDelay = time.Second
	// maxInvalidJWTs is how many invalid JWTs are verified per second and connection:
	// verifying costs more than sending.
	maxInvalidJWTs = 100
)

// Broker is the part of the broker that identifies callers.
type Broker interface {
	// Policy returns the current policy.
	Policy() *policy.Policy
	// Identify verifies the JWT of a caller, which must be for audience.
	Identify(ctx context.Context, token redact.String, audience string) (verify.Result, error)
}

// Config configures an Admission.
type Config struct {
	// Broker is required.
	Broker Broker
	// TLS holds the server certificate and the client authorities of listeners on TCP.
	// Nil: they are in plaintext.
	TLS *certs.Source
	// Audience is the required audience of the JWTs of callers. Empty: DefaultAudience.
	Audience string
	// Limits apply to all callers together; the limits of each caller are in the
	// policy.
	Limits Limits
	// Audit records refused calls and connections. Nil: they are not recorded.
	Audit *audit.Log
	// Logger logs refused connections. Required.
	Logger *slog.Logger
	// Registerer registers the metrics. Nil: they are counted but not exported.
	Registerer prometheus.Registerer
}

// Admission identifies the callers of all APIs and enforces their limits. It is safe
// for concurrent use.
type Admission struct {
	broker       Broker
	tls          *certs.Source // nil: no TLS
	audience     string        // of the JWTs of callers
	audit        *audit.Log
	limits       Limits
	limiter      *limiter
	unidentified *unidentifiedLimit
	headers      headerLimit
	connections  connectionLimit
	handshakes   *handshakes
}

// New makes an Admission.
func New(cfg Config) *Admission {
	limits := cfg.Limits.WithDefaults()
	limiter := newLimiter(cfg.Broker, &limits, cfg.Registerer)
	return &Admission{
		broker: cfg.Broker, tls: cfg.TLS, audience: cmp.Or(cfg.Audience, DefaultAudience), audit: cfg.Audit, limits: limits,
		limiter:      limiter,
		unidentified: &unidentifiedLimit{most: limits.Strangers, refused: limiter.refused.WithLabelValues(noCaller, limitStrangers).Inc},
		headers: headerLimit{
			most: int(limits.HeaderSize), token: int(limits.TokenSize), refused: limiter.refused.WithLabelValues(noCaller, limitHeaders).Inc,
		},
		connections: connectionLimit{most: int64(limits.Connections)},
		handshakes:  newHandshakes(cfg.Logger, cfg.Audit, cfg.Registerer),
	}
}

// authorities returns the authorities that are trusted now to issue client
// certificates, or nil without TLS.
func (a *Admission) authorities() *certs.Authorities {
	if a.tls == nil {
		return nil
	}
	return a.tls.Authorities()
}

// Begin checks a gRPC call when it begins. An error refuses the call.
func (a *Admission) Begin(ctx context.Context, header metadata.MD) error {
	if !a.headers.admits(header) {
		return a.headers.tooLarge()
	}
	if !connectionOf(ctx).beginCall(ctx) {
		return a.unidentified.tooMany()
	}
	return nil
}

// Identify identifies the caller of a gRPC call. A gateway is identified by its
// connection alone: the JWT in its call belongs to its client.
func (a *Admission) Identify(ctx context.Context, method string, gateway bool, now time.Time) (Identified, error) {
	return a.identify(ctx, method, proofOf(ctx, gateway), now)
}

// Enter identifies the caller of a unary gRPC call, as Identify does, and admits the
// call if the limits of the caller allow it. On success Leave must be called when the
// call is over.
func (a *Admission) Enter(ctx context.Context, method string, gateway bool, now time.Time) (Call, error) {
	return a.enter(ctx, method, proofOf(ctx, gateway), now)
}

func (a *Admission) enter(ctx context.Context, action string, p proof, now time.Time) (Call, error) {
	identified, err := a.identify(ctx, action, p, now)
	if err != nil {
		return Call{}, err
	}
	call, err := a.limiter.enter(identified.Caller, now)
	if err != nil {
		auditCall(ctx, a.audit, action, identified.Caller, err)
	}
	return call, err
}

// Watch admits a watch of an identified caller. On success leave must be called when
// the watch is over.
func (a *Admission) Watch(ctx context.Context, method string, caller *policy.Caller, now time.Time) (leave func(), err error) {
	leave, err = a.limiter.watch(ctx, caller, now)
	if err != nil {
		auditCall(ctx, a.audit, method, caller, err)
	}
	return leave, err
}

// proof is what a call presents to identify its caller.
type proof struct {
	conn          *connection
	authorization []string // the values of this header, over HTTP
	grpc          bool     // authorization is in the metadata of the call
	// gateway: authorization belongs to the client of the gateway that calls.
	gateway bool
}

func proofOf(ctx context.Context, gateway bool) proof {
	return proof{conn: connectionOf(ctx), grpc: true, gateway: gateway}
}

// authorizationIn returns the values of the header. Few calls need them: most callers are
// identified by their connections.
func (p *proof) authorizationIn(ctx context.Context) []string {
	if p.grpc {
		return metadata.ValueFromIncomingContext(ctx, "authorization")
	}
	return p.authorization
}

// Identified is an identified caller.
type Identified struct {
	Caller *policy.Caller
	// Until is when the proof of the identity expires. Zero: it does not expire.
	Until time.Time
}

// identify identifies the caller of a call: by the certificate or the Unix user of the
// connection if it matches a configured caller, else by the JWT in the call, else by
// the listener. It audits a failure under action.
func (a *Admission) identify(ctx context.Context, action string, p proof, now time.Time) (identified Identified, err error) {
	defer func() {
		if err != nil {
			auditCall(ctx, a.audit, action, nil, err)
		}
	}()
	callers := a.broker.Policy()
	matched := a.match(p.conn, callers, now)
	if matched.caller != nil {
		return Identified{matched.caller, matched.until}, nil
	}

	if !p.gateway {
		token, err := bearer(p.authorizationIn(ctx))
		if err != nil {
			return Identified{}, err
		}
		if !token.IsZero() {
			return a.identifyByJWT(ctx, p.conn, matched, token, now)
		}
	}

	if p.conn.bound != "" && callers.Named(p.conn.bound) != nil {
		return Identified{Caller: callers.Named(p.conn.bound)}, nil
	}

	if matched.lapsed() {
		p.conn.hangUp()
	}
	if p.gateway && matched.mismatch == provedNothing {
		return Identified{}, unidentified("a gateway must connect with a client certificate of an authority that the broker trusts, " +
			"or to a loopback address or a Unix socket that is bound to a caller; the authorization of a request does not identify the gateway")
	}
	return Identified{}, unidentified(p.conn.missing(matched))
}

// identifyByJWT identifies a caller by the JWT that it presents, within the limit on
// invalid JWTs.
func (a *Admission) identifyByJWT(ctx context.Context, conn *connection, matched *match, token redact.String, now time.Time) (Identified, error) {
	if conn.invalidJWTs.Reached(now, maxInvalidJWTs) {
		return Identified{}, &apierror.Error{
			Code: apierror.ResourceExhausted, Reason: apierror.ReasonTooManyAttempts, RetryAfter: time.Second,
			Message: "too many invalid JWTs came over this connection within a second: wait a second, and correct the client that sends them",
		}
	}
	identified, err := a.verifyJWT(ctx, conn, matched, token)
	if refusal, ok := errors.AsType[*apierror.Error](err); ok && refusal.Code == apierror.Unauthenticated {
		conn.invalidJWTs.Admits(now, maxInvalidJWTs)
	}
	if err == nil {
		conn.markIdentified()
	}
	return identified, err
}

// verifyJWT returns the caller whose JWT it verifies. A JWT that is bound to a
// certificate must come over a connection with that certificate (RFC 8705 section 3). A
// JWT with any other binding is refused, since the broker does not check it.
func (a *Admission) verifyJWT(ctx context.Context, conn *connection, matched *match, token redact.String) (Identified, error) {
	if strings.Count(token.Reveal(), ".") != 2 {
		return Identified{}, unidentified("the token in the metadata authorization is not a JWT")
	}
	result, err := a.broker.Identify(ctx, token, a.audience)
	if err != nil {
		return Identified{}, err
	}
	if result.Rejection != nil {
		return Identified{}, unidentified(fmt.Sprintf("the JWT in the metadata authorization is not valid: %s It must be for the audience %q", result.Rejection.Message, a.audience))
	}
	facts := result.Facts
	switch bound := facts.Confirmation.MatchesCertificate(conn.holder(matched)); {
	case !bound && matched.lapsed():
		conn.hangUp()
		return Identified{}, unidentified(conn.missing(matched))
	case !bound:
		return Identified{}, unidentified("the JWT in the metadata authorization is bound to a key (cnf), and this connection does not prove possession of that key: " +
			"connect with the client certificate that its x5t#S256 names, or send a JWT that is not bound; the broker checks no other member of cnf")
	}
	identity := policy.Identity{Issuer: facts.Issuer, Claims: facts.Claims}
	if facts.SubjectType == verify.SubjectSub {
		identity.Subject = facts.Subject
	}
	caller := matched.policy.Caller(identity)
	if caller == nil {
		return Identified{}, unidentified(notCaller(matched.policy, identity))
	}
	until := facts.ExpiresAt
	if facts.Confirmation != nil && matched.until.Before(until) {
		until = matched.until
	}
	return Identified{caller, until}, nil
}

// notCaller explains why the identity in a JWT identifies no caller.
func notCaller(callers *policy.Policy, identity policy.Identity) string {
	switch {
	case callers.Ambiguous(identity):
		return fmt.Sprintf("the JWT of subject %q of issuer %q matches several callers in the broker's configuration: change their subjects and claims there so that it matches one",
			identity.Subject, identity.Issuer)
	case identity.Subject == "":
		return fmt.Sprintf("the JWT in the metadata authorization, of issuer %q, has no sub, which no other claim replaces, and its claims match no caller in the broker's configuration", identity.Issuer)
	default:
		return fmt.Sprintf("subject %q of issuer %q matches no caller in the broker's configuration: add it to callers, or correct it there",
			identity.Subject, identity.Issuer)
	}
}

// bearer returns the token in the authorization values, or an empty one without values
// (RFC 6750 section 2.1). A malformed value is an error, so that a mistake never makes a
// call fall back to another identity.
func bearer(authorization []string) (redact.String, error) {
	if len(authorization) == 0 {
		return redact.String{}, nil
	}
	if len(authorization) > 1 {
		return redact.String{}, unidentified("the metadata authorization is present more than once: send one JWT")
	}
	scheme, text, _ := strings.Cut(authorization[0], " ")
	text = strings.TrimLeft(text, " ") // 1*SP
	if !strings.EqualFold(scheme, "bearer") || text == "" {
		return redact.String{}, unidentified("the metadata authorization is not \"Bearer \" followed by a JWT")
	}
	return redact.New(text), nil
}

// missing explains why the connection identifies no caller without a JWT.
func (c *connection) missing(matched *match) string {
	switch matched.mismatch {
	case ended:
		return fmt.Sprintf("the client certificate of this connection expired at %s: connect again with a current one", matched.until.UTC().Format(time.RFC3339))
	case notTrusted:
		return "the broker no longer trusts the authority that issued the client certificate of this connection: connect again with a certificate of a trusted authority"
	case ofAuthority:
		return "the client certificate of this connection belongs to a certificate authority (CA, or key usage keyCertSign or cRLSign), which cannot be a caller: issue a certificate for the caller"
	case notConfigured:
		return namesIn(c.identity) + " matches no caller in the broker's configuration: add it to callers, or correct it there"
	case provedNothing:
		fallthrough
	default:
		return "the call has no proof of its caller: connect with a client certificate of an authority that the broker trusts, " +
			"or send a JWT in the metadata authorization (Bearer ...)"
	}
}

func unidentified(why string) *apierror.Error {
	return &apierror.Error{Code: apierror.Unauthenticated, Reason: apierror.ReasonUnidentified, Message: "the caller could not be identified: " + why}
}
