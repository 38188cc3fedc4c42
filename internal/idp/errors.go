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

// Class says who is at fault when no answer came, and so what helps.
type Class int

// The classes.
const (
	// Transient: the IdP was not reached, is in trouble, or sent what makes no
	// sense. Asking again later may help.
	Transient Class = iota
	// Throttled: the IdP asks to be left alone, for Error.RetryAfter. This is
	// about the client, whatever it asks for.
	Throttled
	// CredentialRefused: the IdP refuses the client itself, with this secret or
	// certificate, or would if it were asked. Asking again with the same may lock
	// the client out.
	CredentialRefused
	// RequestRefused: the IdP knows the client and refuses what it asks for.
	RequestRefused
	// Misconfigured: what was asked is no usable endpoint, or one that hands out
	// tokens which the broker cannot pass on.
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

// Bounds of how long an IdP that throttles is left alone.
const (
	defaultRetryAfter = time.Minute
	minRetryAfter     = time.Second
	maxRetryAfter     = 5 * time.Minute
)

// refusedRest keeps a secret that was refused from being sent again and again,
// which may lock the client out, and is short enough for whoever puts it right.
const refusedRest = time.Minute

// Error says in a sentence why no answer came, and what to do. It shows nothing
// that the IdP wrote but a known code.
type Error struct {
	Class Class
	// Code is the OAuth error code, if it is one that is known.
	Code string
	// Status of the HTTP answer; zero: there was none.
	Status int
	// RetryAfter is how long the IdP wants to be left alone, within 1 s and
	// 5 min. Zero: it did not say; never zero if it throttles.
	RetryAfter time.Duration

	text  string
	cause error
	again bool // worth the one retry within a fetch
	alone bool // about this one token, as far as can be seen
	// unclear: the answer refuses the request and does not say whether because of
	// the client's credential.
	unclear bool
	// ambiguous: an introspection endpoint may have refused the client, or failed
	// over the presented token. The answer does not say which.
	ambiguous bool
	// ended: the answer brings a token that has expired already.
	ended bool
}

func (e *Error) Error() string {
	if e.text == "" {
		return "no answer came from the IdP (" + e.Class.String() + ")"
	}
	return e.text
}

// Unwrap returns the cause, without anything that a peer wrote; may be nil.
func (e *Error) Unwrap() error { return e.cause }

// ClassOf returns the class of an error of a [Client]. Another error is
// Transient.
func ClassOf(err error) Class {
	if fault, ok := errors.AsType[*Error](err); ok {
		return fault.Class
	}
	return Transient
}

// Rest is for how long others need not be asked the same after this error. Zero
// leaves that to whoever asks; a negative one says that the error is about what
// was asked this time, and nothing else.
func (e *Error) Rest() time.Duration {
	switch {
	case e.ambiguous:
		return e.RetryAfter
	case e.alone, e.Class == RequestRefused:
		return -1
	case e.Class == CredentialRefused, e.Class == Misconfigured:
		return max(e.RetryAfter, refusedRest)
	default:
		return e.RetryAfter
	}
}

// Ambiguous reports that the IdP answered a question about a presented token in a
// way that may be about this token alone, or about the client or the endpoint:
// some IdPs answer 401, 404 or 500 for a token that they do not know. One such
// answer says nothing about other tokens; many in a row do.
func (e *Error) Ambiguous() bool { return e.ambiguous }

// Ended reports whether the IdP sent a token that has expired already. Some IdPs repeat
// a token until it ends: the next request may bring another one.
func (e *Error) Ended() bool { return e.ended }

// Unclear reports that the IdP refused the request in words that some IdPs use for a
// wrong secret as well: an empty 403, a code of their own, a body without a token.
func (e *Error) Unclear() bool { return e.unclear && e.Class == RequestRefused }

// aboutToken marks the failure of an introspection as ambiguous unless it is
// certain that it is not about the presented token: no answer came, the IdP
// throttles, or a code names the client. A refused request without a word about
// credentials is about the token alone.
func (e *Error) aboutToken() *Error {
	certain := e.Status == 0 || e.Class == Throttled || e.alone
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
		e.text += "; it may mean the presented token instead"
	}
	return e
}

// at makes a sentence of what the endpoint does.
func (e *Error) at(what, endpoint string) *Error {
	e.text = "the " + what + " " + discovery.Printable(endpoint) + " " + e.text
	return e
}

func (c *Client) unanswered(err error) *Error {
	cause := discovery.Cause(err)
	if c.cfg.Auth.Mutual() && certificateRefused(cause) {
		return &Error{Class: CredentialRefused, text: fmt.Sprintf("refuses the client's certificate (%v): renew it, or have the IdP know it", cause), cause: cause}
	}
	if _, refused := errors.AsType[*discovery.AddressError](cause); refused {
		return &Error{Class: Misconfigured, text: fmt.Sprintf("is not connected to: %v", cause), cause: cause}
	}
	if proxy, ok := errors.AsType[*discovery.ProxyError](cause); ok && proxy.Lasting() {
		return &Error{Class: Misconfigured, text: fmt.Sprintf("is not reached: %v", cause), cause: cause}
	}
	return &Error{Class: Transient, text: fmt.Sprintf("gave no answer: %v", cause), cause: cause}
}

// certificateRefused tells the alerts (RFC 8446 section 6.2) by which a server
// refuses who connects from those about the connection. The library has no type
// for them that can be asked for.
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

// unusable is about a secret that cannot be what the client needs. The IdP is
// not asked: what would help is another secret, as where it refuses one.
func unusable(err error) *Error {
	return &Error{Class: CredentialRefused, text: fmt.Sprintf("was not asked, because the secret cannot be used: %v", err), cause: err}
}

// assertionRefused: with the jwt-bearer grant the assertion is what proves the
// client, and an IdP says invalid_grant of it (RFC 7523 section 3.1) where it
// would say invalid_client of a secret.
func (c *Client) assertionRefused(e *Error) *Error {
	if c.cfg.Grant == JWTBearer && e.Code == "invalid_grant" {
		e.Class = CredentialRefused
		e.text = fmt.Sprintf("refuses the assertion (%s, HTTP %d)", e.Code, e.Status) + c.hint() + "; and assertion.subject"
	}
	return e
}

func undiscovered(what string, err error) *Error {
	class := Misconfigured
	if fault, ok := errors.AsType[*discovery.Error](err); ok && fault.Unreachable {
		class = Transient
	}
	return &Error{Class: class, text: fmt.Sprintf("the %s cannot be found: %v", what, err), cause: err}
}

// refusal is what the answer says is wrong; nil: it claims to grant a token.
func (a answer) refusal(now time.Time) *Error {
	code, failed := a.members.failure()
	if a.ok() && !failed {
		return nil
	}
	e := &Error{Code: code, Status: a.status, RetryAfter: retryAfter(a.header, now)}
	asksForPeace := a.header.Get("Retry-After") != ""
	switch {
	case a.status == http.StatusTooManyRequests, a.status == http.StatusServiceUnavailable && asksForPeace:
		e.Class, e.text = Throttled, "throttles this client: ask it less often, or have the limit raised"
		e.RetryAfter = cmp.Or(e.RetryAfter, rateLimitReset(a.header, now), defaultRetryAfter)
	case code == "", a.status == http.StatusUnauthorized && vague(code):
		e.Class, e.text = meaningOfStatus(a.status)
	default:
		e.Class, e.text = meaningOfCode(code)
	}
	e.unclear = e.Class == RequestRefused && !namesRequest(code)
	e.again = e.Class == Transient && retryable(a.status) && !asksForPeace
	if code != "" {
		e.text += fmt.Sprintf(" (%s, HTTP %d)", code, a.status)
	} else {
		e.text += fmt.Sprintf(" (HTTP %d)", a.status)
	}
	return e
}

// vague reports whether a code says less than the status 401 beside it: Auth0 refuses
// a secret with access_denied, ServiceNow with server_error.
func vague(code string) bool {
	class, _ := meaningOfCode(code)
	return class == Transient || code == "access_denied"
}

// namesRequest reports whether a code says which part of the request is refused, so
// that it cannot be the credential.
func namesRequest(code string) bool {
	return code == "invalid_scope" || code == "invalid_target" || code == "unsupported_grant_type"
}

// retryable are the answers of a proxy in front of the IdP, or of an IdP that
// did not take the request in.
func retryable(status int) bool {
	return status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout
}

// meaningOfCode tells what an error code stands for (RFC 6749 section 5.2, RFC
// 8707 section 2, RFC 9449 section 8) whatever the status it came with; IdPs do
// not agree on that. The text is empty for a code that is not known.
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
		return RequestRefused, "refuses the scopes asked for: check them against what the client may have at the IdP"
	case "invalid_target":
		return RequestRefused, "refuses the audience or resource asked for: check it against what the client may have at the IdP"
	case "invalid_request":
		return RequestRefused, "finds the request invalid: check audience, resources, scopes and params against what the IdP wants"
	case "access_denied":
		return RequestRefused, "denies the client what it asks for: grant it at the IdP"
	case "invalid_grant":
		return RequestRefused, "refuses the grant: check params, and the clocks on both sides"
	case "unsupported_grant_type":
		return RequestRefused, "does not know the grant asked for: enable it for the client at the IdP, or set grant_type to what the IdP calls it"
	case "use_dpop_nonce", "invalid_dpop_proof":
		return Misconfigured, "wants a proof of possession (DPoP), and would issue tokens bound to a key, which " + notShared
	case "temporarily_unavailable", "server_error":
		return Transient, "is in trouble: look at the IdP if it does not end"
	default:
		return Transient, ""
	}
}

// meaningOfStatus tells what a status stands for that came without a known
// code.
func meaningOfStatus(status int) (Class, string) {
	switch {
	case status == http.StatusRequestTimeout, status >= 500:
		return Transient, "is in trouble: look at the IdP if it does not end"
	case status >= 300 && status < 400:
		return Misconfigured, "answers with a redirect, which is not followed because it would carry the secret elsewhere: configure the final URL"
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed, status == http.StatusGone:
		return Misconfigured, "is not there: check its configured URL, or the issuer"
	case status == http.StatusProxyAuthRequired:
		return Misconfigured, "is behind a proxy that demands authentication: give its user and password in HTTP_PROXY, or name the host in NO_PROXY"
	case status == http.StatusUnauthorized:
		return CredentialRefused, "refuses the client's credential: check client_id, secret and auth, or rotate the secret"
	default:
		return RequestRefused, "refuses the request for a reason that no standard names: look at the IdP's log"
	}
}

// retryAfter reads the Retry-After header (RFC 9110 section 10.2.3): seconds or a
// date. Zero: it is not there or says nothing.
func retryAfter(header http.Header, now time.Time) time.Duration {
	text := header.Get("Retry-After")
	if n, ok := number(text); ok {
		return withinRetryAfter(seconds(n))
	}
	if at, err := http.ParseTime(text); err == nil {
		return withinRetryAfter(at.Sub(now))
	}
	return 0
}

// rateLimitReset reads when the window of a rate limit ends, as the seconds of
// the epoch. Numbers too small for that are seconds to wait. Only an answer that
// throttles means it: many IdPs send these headers always.
func rateLimitReset(header http.Header, now time.Time) time.Duration {
	const leastEpoch = 1e8 // 1973; three years to wait
	for _, name := range []string{"X-Ratelimit-Reset", "X-Rate-Limit-Reset"} {
		n, ok := number(header.Get(name))
		if ok && n >= leastEpoch {
			n -= float64(now.UnixMilli()) / 1000
		}
		if ok {
			return withinRetryAfter(seconds(n))
		}
	}
	return 0
}

func withinRetryAfter(d time.Duration) time.Duration {
	return min(max(d, minRetryAfter), maxRetryAfter)
}
