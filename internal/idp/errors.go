package idp

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/cezzis/tokenbroker/internal/discovery"
)

// Class is the cause of a failed request, which decides about the remedy.
type Class int

// The classes.
const (
	// Transient: the IdP was unreachable, failed, or sent a malformed response. A
	// later retry may help.
	Transient Class = iota
	// Throttled: the IdP limits the client's rate. No request of this client should
	// be sent before Error.RetryAfter has passed.
	Throttled
	// CredentialRefused: the IdP refused the client's secret, key or certificate, or
	// the client found it unusable and sent no request. A retry with the same
	// credential may lock the client out.
	CredentialRefused
	// RequestRefused: the IdP accepted the credential and refused the request.
	RequestRefused
	// Misconfigured: the URL is not that of a usable endpoint, or the IdP issues
	// tokens that the broker cannot pass on to callers.
	Misconfigured
)

func (c Class) String() string {
	switch c {
	case Transient:
		return "transient"
	case Throttled:
		return "throttled"
	case CredentialRefused:
		return "credential_refused"
	case RequestRefused:
		return "request_refused"
	case Misconfigured:
		return "misconfigured"
	default:
		return fmt.Sprintf("class(%d)", int(c))
	}
}

// Bounds of Error.RetryAfter.
const (
	defaultRetryAfter = time.Minute
	minRetryAfter     = time.Second
	maxRetryAfter     = 5 * time.Minute
)

// refusedBackoff limits how often a refused secret is sent, because repetition may
// lock the client out. It is short enough not to delay an operator's correction.
const refusedBackoff = time.Minute

// Error is a failed request as a sentence that names the cause and the remedy. It
// contains no text of the IdP except a known error code.
//
// Functions of this package that return *Error assign it to variables called
// fault, never err: a nil *Error in a variable of type error is not nil.
type Error struct {
	Class Class
	// Code is the OAuth error code, if it is a known one.
	Code string
	// Status is the HTTP status, or zero if there was no response.
	Status int
	// RetryAfter is the pause that the IdP requests, between 1 s and 5 min. It is
	// zero if the IdP requests none, but never zero with the class Throttled.
	RetryAfter time.Duration
	// Claims is the claims challenge with which Entra ID refuses a subject until the user
	// has interacted: one JSON object of printable ASCII, at most 2 KiB. It is text of the
	// IdP for the application of the user, and not part of the sentence.
	Claims string

	text      string
	cause     error
	retry     bool // the client may retry immediately
	tokenOnly bool // the failure most likely concerns one presented token only
	// unclear: the response refuses the request, possibly because of the credential.
	unclear bool
	// ambiguous: the response to an introspection may mean the client, the endpoint
	// or the presented token.
	ambiguous bool
	expired   bool // the response contains a token that has already expired
}

func (e *Error) Error() string {
	if e.text == "" {
		return "the request to the IdP failed (" + e.Class.String() + ")"
	}
	return e.text
}

// Unusable returns the error for a request that was not sent, because something is wrong on
// this side. text is a clause.
func Unusable(text string) *Error { return &Error{Class: Misconfigured, text: text} }

// In returns the error of a step of an exchange, which is a request of its own. step is a
// clause, such as "the actor token was not obtained". If the step has another credential
// than the exchange, the error is no verdict on that of the exchange.
func (e *Error) In(step string, sameCredential bool) *Error {
	within := *e
	within.text, within.unclear = step+", because "+e.Error(), false
	if within.Class == CredentialRefused && !sameCredential {
		within.Class = Misconfigured
	}
	return &within
}

// Unwrap returns the cause, which contains no text of the IdP. It may be nil.
func (e *Error) Unwrap() error { return e.cause }

// ClassOf returns the class of an error of a [Client], and Transient for any other
// error.
func ClassOf(err error) Class {
	if fault, ok := errors.AsType[*Error](err); ok {
		return fault.Class
	}
	return Transient
}

// CodeOf returns the OAuth error code of an error of a [Client], or "".
func CodeOf(err error) string {
	if fault, ok := errors.AsType[*Error](err); ok {
		return fault.Code
	}
	return ""
}

// Backoff returns how long introspections of other tokens should pause after this
// error. Zero leaves the duration to the caller. A negative one means no pause: the
// error concerns this request only.
func (e *Error) Backoff() time.Duration {
	switch {
	case e.ambiguous:
		return e.RetryAfter
	case e.tokenOnly, e.Class == RequestRefused:
		return -1
	case e.Class == CredentialRefused, e.Class == Misconfigured:
		return max(e.RetryAfter, refusedBackoff)
	default:
		return e.RetryAfter
	}
}

// Ambiguous reports whether the response to an introspection may concern either the
// presented token or the client and the endpoint: some IdPs answer 401, 404 or 500
// for an unknown token. One such response says nothing about other tokens; many in
// a row do.
func (e *Error) Ambiguous() bool { return e.ambiguous }

// Expired reports whether the IdP sent a token that has already expired. Some IdPs
// repeat a token until it expires, so the next request may bring a new one.
func (e *Error) Expired() bool { return e.expired }

// Unclear reports whether the IdP refused the request in a way that some IdPs also
// use for a wrong secret: an empty 403, a code of their own, a body without a token.
func (e *Error) Unclear() bool { return e.unclear && e.Class == RequestRefused }

// markAmbiguous marks the failure of an introspection as ambiguous unless its cause
// is certain: there was no response, the IdP throttles, or a code names the client.
// A refused request with a status other than 401 and 403 concerns the token only.
func (e *Error) markAmbiguous() *Error {
	certain := e.Status == 0 || e.Class == Throttled || e.tokenOnly
	switch e.Class {
	case CredentialRefused:
		class, _ := meaningOfCode(e.Code)
		certain = certain || class == CredentialRefused && e.Code != "unauthorized_client"
	case Misconfigured:
		certain = certain || e.Code != ""
	case RequestRefused:
		certain = certain || e.Status != http.StatusUnauthorized && e.Status != http.StatusForbidden
	case Transient, Throttled:
	}
	if e.ambiguous = !certain; e.ambiguous && (e.Class == CredentialRefused || e.Class == RequestRefused) {
		e.text += "; the cause may be the presented token instead"
	}
	return e
}

// atEndpoint completes the sentence: the endpoint is the subject, and the text so
// far the predicate.
func (e *Error) atEndpoint(kind, url string) *Error {
	e.text = "the " + kind + " " + discovery.Printable(url) + " " + e.text
	return e
}

// noResponse classifies a request that got no response.
func (c *Client) noResponse(err error) *Error {
	cause := discovery.Cause(err)
	if c.cfg.Auth.Mutual() && certificateRefused(cause) {
		return &Error{Class: CredentialRefused, text: fmt.Sprintf("refuses the client's certificate (%v): renew it, or register it at the IdP", cause), cause: cause}
	}
	if _, ok := errors.AsType[*discovery.AddressError](cause); ok {
		return &Error{Class: Misconfigured, text: fmt.Sprintf("cannot be connected to: %v", cause), cause: cause}
	}
	if proxy, ok := errors.AsType[*discovery.ProxyError](cause); ok && proxy.Permanent() {
		return &Error{Class: Misconfigured, text: fmt.Sprintf("cannot be reached: %v", cause), cause: cause}
	}
	return &Error{Class: Transient, text: fmt.Sprintf("did not respond: %v", cause), cause: cause}
}

// certificateRefused reports whether cause is one of the TLS alerts with which a
// server refuses a client certificate (RFC 8446 section 6.2). crypto/tls does not
// export the type of a received alert, so the texts are compared.
func certificateRefused(cause error) bool {
	remote, ok := errors.AsType[*net.OpError](cause)
	if !ok || remote.Op != "remote error" {
		return false
	}
	const (
		badCertificate = 42 + iota
		unsupportedCertificate
		certificateRevoked
		certificateExpired
		certificateUnknown
		unknownCA           = 48
		accessDenied        = 49
		certificateRequired = 116
	)
	alerts := []tls.AlertError{badCertificate, unsupportedCertificate, certificateRevoked, certificateExpired, certificateUnknown, unknownCA, accessDenied, certificateRequired}
	return slices.ContainsFunc(alerts, func(alert tls.AlertError) bool { return remote.Err.Error() == alert.Error() })
}

// unusableSecret is the failure for a secret that the client does not send, because
// it is not of the kind that the client needs. Its class is that of a refused
// secret: only another secret helps.
func unusableSecret(err error) *Error {
	return &Error{Class: CredentialRefused, text: fmt.Sprintf("received no request, because the secret cannot be used: %v", err), cause: err}
}

// reclassifyInvalidGrant changes invalid_grant to a refused credential with the
// grant JWTBearer. There the assertion authenticates the client, and IdPs refuse a
// bad one with invalid_grant (RFC 7523 section 3.1).
func (c *Client) reclassifyInvalidGrant(e *Error) *Error {
	if c.cfg.signedGrant() != "" && e.Code == "invalid_grant" {
		e.Class = CredentialRefused
		e.text = fmt.Sprintf("refuses the assertion (%s, HTTP %d)", e.Code, e.Status) + c.authAdvice()
	}
	return e
}

func discoveryFailed(kind string, err error) *Error {
	class := Misconfigured
	if failure, ok := errors.AsType[*discovery.Error](err); ok && failure.Unreachable {
		class = Transient
	}
	return &Error{Class: class, text: fmt.Sprintf("the %s cannot be found: %v", kind, err), cause: err}
}

// refusal classifies a response that reports a failure. It returns nil if the
// response reports success.
func (r response) refusal(now time.Time) *Error {
	code, failed := r.members.errorCode()
	if r.ok() && !failed {
		return nil
	}
	e := &Error{Code: code, Status: r.status, RetryAfter: retryAfter(r.header, now)}
	hasRetryAfter := r.header.Get("Retry-After") != ""
	switch {
	case r.status == http.StatusTooManyRequests, r.status == http.StatusServiceUnavailable && hasRetryAfter:
		e.Class, e.text = Throttled, "throttles this client: send fewer requests, or have the limit raised"
		e.RetryAfter = cmp.Or(e.RetryAfter, rateLimitReset(r.header, now), defaultRetryAfter)
	case code == "", r.status == http.StatusUnauthorized && vague(code):
		e.Class, e.text = meaningOfStatus(r.status)
	default:
		e.Class, e.text = meaningOfCode(code)
	}
	e.unclear = e.Class == RequestRefused && !namesParameter(code)
	e.retry = e.Class == Transient && retryable(r.status) && !hasRetryAfter
	if code != "" {
		e.text += fmt.Sprintf(" (%s, HTTP %d)", code, r.status)
	} else {
		e.text += fmt.Sprintf(" (HTTP %d)", r.status)
	}
	return e
}

// vague reports whether a code is less specific than the status 401 beside it: Auth0
// refuses a secret with access_denied, ServiceNow with server_error.
func vague(code string) bool {
	class, _ := meaningOfCode(code)
	return class == Transient || code == "access_denied"
}

// namesParameter reports whether a code says which parameter was refused, which
// rules out the credential.
func namesParameter(code string) bool {
	return code == "invalid_scope" || code == "invalid_target" || code == "unsupported_grant_type"
}

// retryable reports whether a status comes from a proxy in front of the IdP, or from
// an IdP that did not process the request.
func retryable(status int) bool {
	return status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout
}

// meaningOfCode returns the class of an error code and the predicate of a sentence
// (RFC 6749 section 5.2, RFC 8707 section 2, RFC 9449 section 8). The status does
// not matter, because IdPs combine them differently. The text is empty for an
// unknown code.
func meaningOfCode(code string) (Class, string) {
	switch code {
	case "invalid_client",
		"invalid_client_id", "invalid_client_credentials", // Salesforce
		"incorrect_client_credentials",       // GitHub
		"bad_client_secret", "bad_client_id": // Slack
		return CredentialRefused, "refuses the client's credential: check client_id, secret and auth, or rotate the secret"
	case "unauthorized_client":
		return CredentialRefused, "refuses the client: check its secret, and that it may use this grant at the IdP"
	case "invalid_scope":
		return RequestRefused, "refuses the requested scopes: check which scopes the client may request at the IdP"
	case "invalid_target":
		return RequestRefused, "refuses the requested audience or resource: check which of them the client may request at the IdP"
	case "invalid_request":
		return RequestRefused, "rejects the request as invalid: check audience, resources, scopes and params against the IdP's documentation"
	case "access_denied":
		return RequestRefused, "denies the request: grant the client access at the IdP"
	case "invalid_grant":
		return RequestRefused, "refuses the grant: check params, and the clocks on both sides"
	case "unsupported_grant_type":
		return RequestRefused, "does not support the grant type: enable it for the client at the IdP, or set grant_type to the IdP's name for it"
	case "use_dpop_nonce", "invalid_dpop_proof":
		return Misconfigured, "requires a proof of possession (DPoP) and would issue tokens bound to a key, which " + boundTokenAdvice
	case "temporarily_unavailable", "server_error":
		return Transient, "has a failure of its own: look at the IdP if it persists"
	default:
		return Transient, ""
	}
}

// meaningOfStatus is meaningOfCode for a response without a known code.
func meaningOfStatus(status int) (Class, string) {
	switch {
	case status == http.StatusRequestTimeout, status >= 500:
		return Transient, "has a failure of its own: look at the IdP if it persists"
	case status >= 300 && status < 400:
		return Misconfigured, "answers with a redirect, which is not followed because it would carry the secret elsewhere: configure the final URL"
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed, status == http.StatusGone:
		return Misconfigured, "does not exist: check its configured URL, or the issuer"
	case status == http.StatusProxyAuthRequired:
		return Misconfigured, "is behind a proxy that requires authentication: set user and password in HTTP_PROXY, or name the host in NO_PROXY"
	case status == http.StatusUnauthorized:
		return CredentialRefused, "refuses the client's credential: check client_id, secret and auth, or rotate the secret"
	default:
		return RequestRefused, "refuses the request without a standard error code: look at the IdP's log"
	}
}

// retryAfter returns the Retry-After header (RFC 9110 section 10.2.3), which is a
// number of seconds or a date. It returns zero if the header is missing or invalid.
func retryAfter(header http.Header, now time.Time) time.Duration {
	text := header.Get("Retry-After")
	if n, ok := parseNumber(text); ok {
		return clampRetryAfter(seconds(n))
	}
	if date, err := http.ParseTime(text); err == nil {
		return clampRetryAfter(date.Sub(now))
	}
	return 0
}

// rateLimitReset returns the time until the window of a rate limit ends. The headers
// contain Unix time, or seconds to wait if the number is small. They count only in
// a response that throttles, because many IdPs send them with every response.
func rateLimitReset(header http.Header, now time.Time) time.Duration {
	const minUnixTime = 1e8 // in 1973; as a wait, three years
	for _, name := range []string{"X-Ratelimit-Reset", "X-Rate-Limit-Reset"} {
		n, ok := parseNumber(header.Get(name))
		if ok && n >= minUnixTime {
			n -= float64(now.UnixMilli()) / 1000
		}
		if ok {
			return clampRetryAfter(seconds(n))
		}
	}
	return 0
}

func clampRetryAfter(d time.Duration) time.Duration {
	return min(max(d, minRetryAfter), maxRetryAfter)
}
