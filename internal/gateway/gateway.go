// Package gateway decides for gateways whether they may forward a request. A decision
// consists of a status, a challenge (RFC 6750) and identity headers. The protocols of
// gateways are in the packages above.
//
// A token is accepted in a single Authorization header only. Tokens that are bound to a
// key (RFC 9449, RFC 8705) are refused, because no service behind a gateway can verify
// the binding.
package gateway

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// Defaults of Config.
const (
	DefaultPrefix = "X-Auth-"
	DefaultRealm  = "api"
)

// Codes of RFC 6750 section 3.1. A request without a token gets no code.
const (
	InvalidRequest    = "invalid_request"
	InvalidToken      = "invalid_token"
	InsufficientScope = "insufficient_scope"
)

// Codes of challenges that make the user authenticate again: RFC 9470 section 3, and that of
// Entra ID with a claims challenge.
const (
	InsufficientAuthentication = "insufficient_user_authentication"
	InsufficientClaims         = "insufficient_claims"
)

// Config configures a Judge.
type Config struct {
	// Broker verifies tokens. Required.
	Broker *broker.Broker
	// Prefix of the names of identity headers. It defaults to DefaultPrefix.
	Prefix string
	// Realm of challenges, without quotes and backslashes. It defaults to DefaultRealm.
	Realm string
	// Upstreams are the descriptions of upstream tokens.
	Upstreams []Upstream
}

// Judge decides about requests. It is safe for concurrent use.
type Judge struct {
	broker *broker.Broker
	realm  string
	names  [IdentityHeaders]string
	// upstreams have their names as keys.
	upstreams map[string]*Upstream
}

// IdentityHeaders is the number of identity headers. Gateways list their names, and a
// header that is added later could be spoofed through a gateway that was configured
// before. Actor is therefore reserved for the party that acts for the subject (RFC 8693,
// act); it is empty.
const IdentityHeaders = 6

// New returns a Judge.
func New(cfg Config) *Judge {
	prefix := cmp.Or(cfg.Prefix, DefaultPrefix)
	j := &Judge{broker: cfg.Broker, realm: cmp.Or(cfg.Realm, DefaultRealm), upstreams: map[string]*Upstream{}}
	for i, name := range [IdentityHeaders]string{"Subject", "Subject-Type", "Issuer", "Client-Id", "Scope", "Actor"} {
		j.names[i] = http.CanonicalHeaderKey(prefix + name)
	}
	for i := range cfg.Upstreams {
		u := cfg.Upstreams[i]
		u.Header = http.CanonicalHeaderKey(cmp.Or(u.Header, Authorization))
		j.upstreams[u.Name] = &u
	}
	return j
}

// Request is a request that a gateway received.
type Request struct {
	// Authorization are the values of that header.
	Authorization []string
	// Query reports that the query contains a token. Such a request is refused.
	Query bool
	// Imitation reports that a header imitates an identity header and that the protocol
	// cannot make the gateway remove it. Such a request is refused.
	Imitation bool
	// Needs are the requirements on the token.
	Needs verify.Request
	// Upstream is the token for the service behind the gateway. Nil: the service gets the
	// token of the request.
	Upstream *Upstream
	// Resource are the metadata of the protected resource, to which the challenge refers
	// (RFC 9728 section 5.1). Nil: no resource is configured for the request.
	Resource *Metadata
}

// Decision is the decision about a request.
type Decision struct {
	// Status is 200, 401 or 403, or 503 if no decision is possible.
	Status int
	// Code is a code of RFC 6750, Description a sentence for the requester and Challenge
	// a value of WWW-Authenticate. They are set for 401 and 403. Code is empty if the
	// request has no token.
	Code, Description, Challenge string
	// Result of the verification, for 200. It has no facts if the request needed no token.
	Result verify.Result
	// Upstream describes the upstream token, for 200; nil if there is none. UpstreamValue is
	// the value of its header.
	Upstream      *Upstream
	UpstreamValue redact.String
	// Err is the reason of 503, and of the refusal of an upstream token. It is for the log and
	// must not reach the requester.
	Err error
	// RetryAfter is the time after which a retry may help, at least 1 s, for 503.
	// [Seconds] formats it.
	RetryAfter time.Duration
}

// Decide decides about a request that gateway received.
func (j *Judge) Decide(ctx context.Context, gateway *policy.Caller, request Request) Decision {
	decision := j.decide(ctx, gateway, request)
	if decision.Challenge != "" && request.Resource != nil {
		decision.Challenge += `, resource_metadata="` + request.Resource.URL + `"`
	}
	return decision
}

func (j *Judge) decide(ctx context.Context, gateway *policy.Caller, request Request) Decision {
	if denial := j.misplaced(request); denial != nil {
		return *denial
	}
	if request.Upstream != nil && request.Upstream.Unverified {
		return j.unverified(ctx, gateway, request.Upstream)
	}
	token, denial := j.tokenOf(request)
	if denial != nil {
		return *denial
	}
	result, err := j.broker.Verify(ctx, gateway, token, request.Needs)
	switch {
	case err != nil:
		return Undecided(err)
	case result.Rejection != nil:
		return j.rejected(result.Rejection, request.Needs.Scopes)
	case result.Facts.Confirmation != nil:
		return *j.deny(http.StatusUnauthorized, InvalidToken, "The access token is bound to a key, which cannot be checked here")
	}
	permitted := Decision{Status: http.StatusOK, Result: result}
	if request.Upstream != nil {
		return j.withToken(ctx, gateway, request.Upstream, token, permitted)
	}
	return permitted
}

// misplaced returns the denial of a request with a token or an identity in a place from
// which the gateway does not remove it, or nil.
func (j *Judge) misplaced(request Request) *Decision {
	switch {
	case request.Query:
		return j.deny(http.StatusUnauthorized, InvalidRequest, "An access token is accepted in the Authorization header only")
	case request.Imitation:
		return j.deny(http.StatusUnauthorized, InvalidRequest, "The name of a header is another spelling of an identity header")
	default:
		return nil
	}
}

// tokenOf returns the token of a request, or the denial of a request without a single
// well-formed token.
func (j *Judge) tokenOf(request Request) (redact.String, *Decision) {
	if len(request.Authorization) > 1 {
		return redact.String{}, j.deny(http.StatusUnauthorized, InvalidRequest, "The request has more than one Authorization header")
	}
	var scheme, text string
	if len(request.Authorization) == 1 {
		scheme, text, _ = strings.Cut(request.Authorization[0], " ")
		text = strings.TrimLeft(text, " ") // RFC 6750 section 2.1: 1*SP
	}
	if !strings.EqualFold(scheme, "bearer") {
		return redact.String{}, j.deny(http.StatusUnauthorized, "", "An access token is needed")
	}
	if text == "" || !isOneToken(text) {
		return redact.String{}, j.deny(http.StatusUnauthorized, InvalidRequest, "The Authorization header is not Bearer and one access token")
	}
	return redact.New(text), nil
}

// isOneToken reports whether a text has none of the characters that separate tokens.
// IndexByte is much faster than ContainsAny.
func isOneToken(text string) bool {
	return strings.IndexByte(text, ' ') < 0 && strings.IndexByte(text, ',') < 0 && strings.IndexByte(text, '\t') < 0
}

// rejected returns the denial for a rejected token. It reveals no more than RFC 6750
// does: the exact reason is for the operator of the broker.
func (j *Judge) rejected(r *verify.Rejection, scopes []string) Decision {
	switch r.Reason {
	case verify.InsufficientScope:
		denial := j.deny(http.StatusForbidden, InsufficientScope, "The access token lacks required scopes")
		denial.Challenge += `, scope="` + strings.Join(scopes, " ") + `"`
		return *denial
	case verify.Expired:
		return *j.deny(http.StatusUnauthorized, InvalidToken, "The access token expired")
	default:
		return *j.deny(http.StatusUnauthorized, InvalidToken, "The access token is not valid")
	}
}

func (j *Judge) deny(status int, code, description string) *Decision {
	challenge := `Bearer realm="` + j.realm + `"`
	if code != "" {
		challenge += `, error="` + code + `", error_description="` + description + `"`
	}
	return &Decision{Status: status, Code: code, Description: description, Challenge: challenge}
}

// Forbid returns the denial of a request that no token permits.
func (j *Judge) Forbid(description string) Decision {
	return *j.deny(http.StatusForbidden, "", description)
}

// Undecided returns the decision 503 with err as its reason.
func Undecided(err error) Decision {
	d := Decision{Status: http.StatusServiceUnavailable, Err: err, RetryAfter: time.Second, Description: "The request cannot be authorized at the moment"}
	if failure, ok := errors.AsType[*apierror.Error](err); ok {
		d.RetryAfter = max(d.RetryAfter, failure.RetryAfter)
	}
	return d
}

// KeepFor returns the number of whole seconds for which a gateway may cache the
// decision 200, or 0.
func (d *Decision) KeepFor(now time.Time) int {
	return max(0, int(d.Result.ValidUntil.Sub(now)/time.Second))
}

// Names returns the names of the identity headers in canonical form. A gateway must
// replace or remove all of them in a forwarded request, so that no value of the
// requester remains.
func (j *Judge) Names() []string { return j.names[:] }

// Imitates reports whether name is another spelling of an identity header. CGI and WSGI
// map header names to variables: they ignore case and replace all characters other than
// letters and digits by underscores, so that different headers become the same variable.
// A name that differs in case only is not an imitation, because gateways replace it. With an
// upstream token, its header is protected as well; u may be nil.
func (j *Judge) Imitates(name string, u *Upstream) bool {
	for _, header := range j.names {
		if imitates(name, header) {
			return true
		}
	}
	return u != nil && imitates(name, u.Header)
}

func imitates(name, header string) bool {
	return len(name) == len(header) && !strings.EqualFold(name, header) && sameVariable(name, header)
}

func sameVariable(a, b string) bool {
	for i := range len(a) {
		if variableByte(a[i]) != variableByte(b[i]) {
			return false
		}
	}
	return true
}

// variableByte returns the byte to which c is mapped in the name of a variable.
func variableByte(c byte) byte {
	switch {
	case 'a' <= c && c <= 'z':
		return c - 'a' + 'A'
	case 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return c
	default:
		return '_'
	}
}

// Identity returns the values of the identity headers for the decision 200, in the order
// of Names. A value is empty if the token has no such claim. The subject comes from the
// sub claim only: many services evaluate no other header, and a client may have the name
// of a user. The Client-Id header identifies the client of a token without sub. All values
// are empty if the request needed no token.
func (d *Decision) Identity() [IdentityHeaders]string {
	f := d.Result.Facts
	if f == nil {
		return [IdentityHeaders]string{}
	}
	subject := f.Subject
	if f.SubjectType != verify.SubjectSub {
		subject = ""
	}
	return [IdentityHeaders]string{
		headerText(subject), f.SubjectType.String(), headerText(f.Issuer), headerText(f.ClientID), headerText(strings.Join(f.Scopes, " ")), "",
	}
}

const upperHex = "0123456789ABCDEF"

// headerText encodes text for a header. Visible ASCII except '%', and spaces within the
// text, remain as they are; all other bytes are percent-encoded. Different texts have
// different encodings.
func headerText(text string) string {
	encoded := 0
	for i := range len(text) {
		if !plain(text, i) {
			encoded++
		}
	}
	if encoded == 0 {
		return text
	}
	value := make([]byte, 0, len(text)+2*encoded)
	for i := range len(text) {
		if plain(text, i) {
			value = append(value, text[i])
			continue
		}
		value = append(value, '%', upperHex[text[i]>>4], upperHex[text[i]&0xf])
	}
	return string(value)
}

// plain reports whether a byte needs no encoding. HTTP drops spaces at both ends.
func plain(text string, i int) bool {
	c := text[i]
	if c == ' ' {
		return i > 0 && i < len(text)-1
	}
	return c > ' ' && c < 0x7f && c != '%'
}

// WantsJSON reports whether the body for a requester with this Accept header should be
// JSON. Browsers get text.
func WantsJSON(accept string) bool {
	return strings.Contains(accept, "json") || !strings.Contains(accept, "text/")
}

// JSON returns the body of a decision other than 200.
func (d *Decision) JSON() []byte {
	code := d.Code
	switch {
	case code != "":
	case d.Status == http.StatusServiceUnavailable:
		code = "temporarily_unavailable"
	case d.Status == http.StatusForbidden:
		code = "access_denied"
	default:
		code = "unauthorized"
	}
	// Neither contains a character that JSON requires to be escaped.
	return []byte(`{"error":"` + code + `","error_description":"` + d.Description + `"}` + "\n")
}

// Seconds formats a positive duration for the header Retry-After. It rounds up to whole
// seconds, because 0 would make clients retry immediately.
func Seconds(d time.Duration) string {
	return strconv.Itoa(int((d + time.Second - 1) / time.Second))
}
