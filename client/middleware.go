package client

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// MiddlewareOption changes what an [HTTPMiddleware] requires. Each
// [VerifyOption] is one.
type MiddlewareOption interface{ middleware(r *requirements) }

// HTTPMiddleware returns a middleware that passes on only requests with a valid
// bearer token (RFC 6750) in the Authorization header; a token anywhere else
// does not count. The handler gets the token's claims from [ClaimsFromContext].
//
// The options take precedence over the Verifier's, so that a route can require
// its own scopes; [ScopesMiddleware] is for handlers behind a middleware. Other
// requests get
//
//	401  no token, more than one, or an invalid one
//	403  a valid token without a required scope
//	503  the broker was unreachable or could not decide: no request passes
//
// with the challenge of RFC 6750 section 3 for 401 and 403, and Retry-After for
// 503. Results are cached by the [Verifier], so recently verified tokens stay
// accepted while no broker is reachable.
//
// A token that is bound to a client certificate (RFC 8705) is accepted only on
// a connection with that certificate. A token with any other binding, such as
// to a DPoP key (RFC 9449), is refused.
func HTTPMiddleware(v *Verifier, opts ...MiddlewareOption) func(http.Handler) http.Handler {
	required := v.required
	for _, opt := range opts {
		opt.middleware(&required)
	}
	required = required.withCacheKey()
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var certificate *x509.Certificate
			if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
				certificate = r.TLS.PeerCertificates[0]
			}
			ctx, err := v.verifyHeaders(r.Context(), r.Header.Values("Authorization"), certificate, required)
			if err != nil {
				v.writeError(w, r, err, required.scopes)
				return
			}
			next.ServeHTTP(w, r.WithContext(context.WithValue(ctx, challengesKey{}, &v.challenges)))
		})
	}
}

// ScopesMiddleware returns a middleware for single routes behind an
// [HTTPMiddleware]: it passes on only requests with a token that has all of
// these scopes. Without an HTTPMiddleware in front of it every request fails with
// status 500.
func ScopesMiddleware(allOf ...string) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			claims, ok := ClaimsFromContext(r.Context())
			switch {
			case !ok:
				http.Error(w, "this route requires scopes, but no middleware before it verifies tokens", http.StatusInternalServerError)
			case !claims.HasScopes(allOf...):
				writeRejected(w, challengesOf(r.Context()), missingScope(allOf), allOf)
			default:
				next.ServeHTTP(w, r)
			}
		})
	}
}

type (
	claimsKey     struct{}
	challengesKey struct{}
)

// challenges are the parts that all values of WWW-Authenticate of a Verifier have.
type challenges struct {
	realm string
	// metadata is the URL of the resource's metadata, or empty.
	metadata string
}

// challengesOf returns the parts of the HTTPMiddleware in front, if there is one.
func challengesOf(ctx context.Context) *challenges {
	if c, ok := ctx.Value(challengesKey{}).(*challenges); ok {
		return c
	}
	return &challenges{}
}

// ClaimsFromContext returns the claims of the token of the request that ctx
// belongs to, behind [HTTPMiddleware] and the interceptors. ok is false if
// there are none.
func ClaimsFromContext(ctx context.Context) (claims *Claims, ok bool) {
	claims, ok = ctx.Value(claimsKey{}).(*Claims)
	return claims, ok
}

// ContextWithClaims returns a copy of ctx with claims, for tests of handlers.
func ContextWithClaims(ctx context.Context, claims *Claims) context.Context {
	return context.WithValue(ctx, claimsKey{}, claims)
}

// errNoToken means that no token was presented. The challenge then has no error
// code (RFC 6750 section 3.1).
var errNoToken = errors.New("present an access token: Authorization: Bearer TOKEN")

// verifyHeaders verifies the token in a request's Authorization headers. It returns ctx with
// the token's claims, and with the token for [OnBehalfOf].
func (v *Verifier) verifyHeaders(ctx context.Context, headers []string, certificate *x509.Certificate, required requirements) (context.Context, error) {
	token, err := bearerToken(headers)
	if err != nil {
		return nil, err
	}
	claims, err := v.verify(ctx, token, required)
	if err != nil {
		return nil, err
	}
	if err := claims.Confirmation.checkBinding(certificate); err != nil {
		return nil, err
	}
	return contextWithPresented(ContextWithClaims(ctx, claims), token), nil
}

func bearerToken(headers []string) (string, error) {
	if len(headers) > 1 {
		return "", &RejectedError{ReasonMalformed, "the request has more than one Authorization header"}
	}
	if len(headers) == 0 {
		return "", errNoToken
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", errNoToken
	}
	return strings.TrimLeft(token, " "), nil
}

// checkBinding returns an error unless the token is a bearer token, or is bound
// only to the client certificate of the connection.
func (c *Confirmation) checkBinding(certificate *x509.Certificate) error {
	switch {
	case c == nil:
		return nil
	case c.JKT != "" || c.X5TS256 == "":
		return &RejectedError{ReasonWrongHolder, "the token is bound to a key in a way that this service does not check (cnf), such as DPoP"}
	case certificate == nil:
		return &RejectedError{ReasonWrongHolder, "the token is bound to a client certificate, and this connection has no client certificate"}
	}
	if sum := sha256.Sum256(certificate.Raw); base64.RawURLEncoding.EncodeToString(sum[:]) != c.X5TS256 {
		return &RejectedError{ReasonWrongHolder, "the token is bound to a client certificate other than this connection's"}
	}
	return nil
}

func missingScope(scopes []string) *RejectedError {
	return &RejectedError{ReasonInsufficientScope, "the token lacks one of these scopes: " + strings.Join(scopes, " ")}
}

const (
	// minRetryAfter is also the default if the broker advises no Retry-After.
	minRetryAfter     = time.Second
	unverifiedMessage = "the access token could not be verified at the moment; try again"
)

// writeError responds to a request that is refused.
func (v *Verifier) writeError(w http.ResponseWriter, r *http.Request, err error, scopes []string) {
	if errors.Is(err, errNoToken) {
		w.Header().Set("WWW-Authenticate", v.challenges.value(nil, scopes))
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	if rejected, ok := errors.AsType[*RejectedError](err); ok {
		writeRejected(w, &v.challenges, rejected, scopes)
		return
	}
	v.log(r.Context(), err)
	wait := max(retryAfter(err), minRetryAfter)
	w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	http.Error(w, unverifiedMessage, http.StatusServiceUnavailable)
}

// log logs why a token could not be verified, unless the caller's context has
// ended.
func (v *Verifier) log(ctx context.Context, err error) {
	if ctx.Err() == nil {
		v.client.cfg.log.WarnContext(ctx, "the token broker could not verify a token", "error", err)
	}
}

// writeRejected responds to a request with an invalid token.
func writeRejected(w http.ResponseWriter, c *challenges, rejected *RejectedError, scopes []string) {
	w.Header().Set("WWW-Authenticate", c.value(rejected, scopes))
	code := http.StatusUnauthorized
	if rejected.Reason == ReasonInsufficientScope {
		code = http.StatusForbidden
	}
	http.Error(w, rejected.Message, code)
}

// value returns the WWW-Authenticate value of RFC 6750 section 3; rejected is nil
// if no token was presented.
func (c *challenges) value(rejected *RejectedError, scopes []string) string {
	parts := []string{"realm=" + quote(c.realm)}
	if rejected != nil {
		kind := "invalid_token"
		if rejected.Reason == ReasonInsufficientScope {
			kind = "insufficient_scope"
		}
		parts = append(parts, "error="+quote(kind), "error_description="+quote(rejected.Message))
	}
	if len(scopes) > 0 {
		parts = append(parts, "scope="+quote(strings.Join(scopes, " ")))
	}
	if c.metadata != "" {
		parts = append(parts, "resource_metadata="+quote(c.metadata))
	}
	return "Bearer " + strings.Join(parts, ", ")
}

// quote returns text as a value of RFC 6750 section 3: characters that are not
// allowed become apostrophes.
func quote(text string) string {
	return fmt.Sprintf("\"%s\"", strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return '\''
		}
		return c
	}, text))
}
