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

// MiddlewareOption says what an [HTTPMiddleware] lets through. Each
// [VerifyOption] is one.
type MiddlewareOption interface{ middleware(want *wanted) }

// HTTPMiddleware returns what lets only requests through to a handler that
// present a good bearer token (RFC 6750), in the Authorization header and nowhere
// else. The handler finds what the token says by [ClaimsFromContext].
//
// The options win over those of the Verifier, so that a route may want scopes of
// its own; [ScopesMiddleware] is for handlers behind a middleware. Others are
// answered
//
//	401  no token, more than one, or one that is not good
//	403  a good token without a scope that is wanted
//	503  the broker could not be asked or could not decide: nobody gets through
//
// with the challenge of RFC 6750 section 3 for the first two, and Retry-After for
// the last. What the broker said is remembered as [Verifier] has it, so that
// tokens that were seen a moment ago are good also while no broker can be
// reached.
//
// A token that is bound to a client certificate (RFC 8705) is good only on a
// connection with that certificate. A token that is bound in any other way, such
// as to a DPoP key (RFC 9449), is refused.
func HTTPMiddleware(v *Verifier, opts ...MiddlewareOption) func(http.Handler) http.Handler {
	want := v.want
	for _, opt := range opts {
		opt.middleware(&want)
	}
	want = want.ready()
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var certificate *x509.Certificate
			if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
				certificate = r.TLS.PeerCertificates[0]
			}
			claims, err := v.presented(r.Context(), r.Header.Values("Authorization"), certificate, want)
			if err != nil {
				v.turnAway(w, r, err, want.scopes)
				return
			}
			ctx := context.WithValue(ContextWithClaims(r.Context(), claims), realmKey{}, v.realm)
			next.ServeHTTP(w, r.WithContext(ctx))
		})
	}
}

// ScopesMiddleware returns a middleware for single routes behind an [HTTPMiddleware]:
// it passes on only requests whose token has all of these scopes. Without an
// HTTPMiddleware in front of it every request fails (500).
func ScopesMiddleware(allOf ...string) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			claims, ok := ClaimsFromContext(r.Context())
			switch {
			case !ok:
				http.Error(w, "this route requires scopes, but nothing in front of it verifies tokens", http.StatusInternalServerError)
			case !claims.HasScopes(allOf...):
				realm, _ := r.Context().Value(realmKey{}).(string)
				deny(w, realm, lacks(allOf), allOf)
			default:
				next.ServeHTTP(w, r)
			}
		})
	}
}

type (
	claimsKey struct{}
	realmKey  struct{}
)

// ClaimsFromContext returns what the token of the request says that ctx belongs
// to, behind [HTTPMiddleware] and the interceptors.
func ClaimsFromContext(ctx context.Context) (claims *Claims, ok bool) {
	claims, ok = ctx.Value(claimsKey{}).(*Claims)
	return claims, ok
}

// ContextWithClaims returns ctx with claims, for tests of handlers.
func ContextWithClaims(ctx context.Context, claims *Claims) context.Context {
	return context.WithValue(ctx, claimsKey{}, claims)
}

// errNoToken says that nothing was presented. Then the challenge names no error
// (RFC 6750 section 3.1).
var errNoToken = errors.New("present an access token: Authorization: Bearer TOKEN")

// presented verifies what a request presents in its Authorization headers.
func (v *Verifier) presented(ctx context.Context, headers []string, certificate *x509.Certificate, want wanted) (*Claims, error) {
	token, err := bearerOf(headers)
	if err != nil {
		return nil, err
	}
	claims, err := v.verify(ctx, token, want)
	if err != nil {
		return nil, err
	}
	return claims, claims.Confirmation.heldWith(certificate)
}

func bearerOf(headers []string) (string, error) {
	if len(headers) > 1 {
		return "", &RejectedError{ReasonMalformed, "there is more than one Authorization header"}
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

// heldWith returns an error unless the token is a bearer token, or is bound to the
// client certificate of the connection and to nothing else.
func (c *Confirmation) heldWith(certificate *x509.Certificate) error {
	switch {
	case c == nil:
		return nil
	case c.JKT != "" || c.X5TS256 == "":
		return &RejectedError{ReasonWrongHolder, "the token is bound to a key in a way that this service does not check (cnf), such as DPoP"}
	case certificate == nil:
		return &RejectedError{ReasonWrongHolder, "the token is bound to a client certificate, and this connection has none"}
	}
	if sum := sha256.Sum256(certificate.Raw); base64.RawURLEncoding.EncodeToString(sum[:]) != c.X5TS256 {
		return &RejectedError{ReasonWrongHolder, "the token is bound to another client certificate than that of this connection"}
	}
	return nil
}

func lacks(scopes []string) *RejectedError {
	return &RejectedError{ReasonInsufficientScope, "the token lacks one of these scopes: " + strings.Join(scopes, " ")}
}

const (
	// undecidedRetry is when to come again where the broker does not say.
	undecidedRetry = time.Second
	undecided      = "the access token could not be verified just now, so nobody is let through; try again"
)

// turnAway answers a request that does not get through.
func (v *Verifier) turnAway(w http.ResponseWriter, r *http.Request, err error, scopes []string) {
	if errors.Is(err, errNoToken) {
		w.Header().Set("WWW-Authenticate", challenge(v.realm, nil, scopes))
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	if rejected, ok := errors.AsType[*RejectedError](err); ok {
		deny(w, v.realm, rejected, scopes)
		return
	}
	v.log(r.Context(), err)
	wait := max(retryAfter(err), undecidedRetry)
	w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	http.Error(w, undecided, http.StatusServiceUnavailable)
}

// log says why nobody could be let through, unless it is because the caller left.
func (v *Verifier) log(ctx context.Context, err error) {
	if ctx.Err() == nil {
		v.client.set.log.WarnContext(ctx, "the token broker could not verify a token", "error", err)
	}
}

// deny answers a request whose token is not good.
func deny(w http.ResponseWriter, realm string, rejected *RejectedError, scopes []string) {
	w.Header().Set("WWW-Authenticate", challenge(realm, rejected, scopes))
	code := http.StatusUnauthorized
	if rejected.Reason == ReasonInsufficientScope {
		code = http.StatusForbidden
	}
	http.Error(w, rejected.Message, code)
}

// challenge is the WWW-Authenticate of RFC 6750 section 3; without a rejection,
// for those who presented nothing.
func challenge(realm string, rejected *RejectedError, scopes []string) string {
	parts := []string{"realm=" + quoted(realm)}
	if rejected != nil {
		kind := "invalid_token"
		if rejected.Reason == ReasonInsufficientScope {
			kind = "insufficient_scope"
		}
		parts = append(parts, "error="+quoted(kind), "error_description="+quoted(rejected.Message))
	}
	if len(scopes) > 0 {
		parts = append(parts, "scope="+quoted(strings.Join(scopes, " ")))
	}
	return "Bearer " + strings.Join(parts, ", ")
}

// quoted is text as a value of RFC 6750 section 3: what it may not hold becomes
// an apostrophe.
func quoted(text string) string {
	return fmt.Sprintf("\"%s\"", strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return '\''
		}
		return c
	}, text))
}
