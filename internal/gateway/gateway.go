// Package gateway judges requests for gateways, which ask whether one may pass and
// who makes it. It knows the token of a request and what it must be good for, and
// says with which status, challenge and identity headers the request is answered
// or passed on (RFC 6750). The protocols of gateways are beside it.
//
// It refuses to be clever about where a token may be: it is in one Authorization
// header, or there is none. Tokens that are bound to a key of their holder (RFC
// 9449, RFC 8705) are refused, because nobody behind a gateway could check that.
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

// Codes of RFC 6750 section 3.1. What is no token at all has none.
const (
	InvalidRequest    = "invalid_request"
	InvalidToken      = "invalid_token"
	InsufficientScope = "insufficient_scope"
)

// Config is what a Judge is made of.
type Config struct {
	// Broker verifies. Required.
	Broker *broker.Broker
	// Prefix is how the names of identity headers begin. Empty: DefaultPrefix.
	Prefix string
	// Realm is that of challenges; it has no quotes and no backslashes. Empty:
	// DefaultRealm.
	Realm string
}

// Judge judges requests. It is safe for concurrent use.
type Judge struct {
	broker *broker.Broker
	realm  string
	names  [identityHeaders]string
}

// identityHeaders is the number of headers that tell who makes a request. Gateways
// list their names: a header that is added later could be spoofed through a gateway
// that was configured before. So Actor is reserved, for the party that acts for the
// subject (RFC 8693, act), and is empty.
const identityHeaders = 6

// New makes a Judge.
func New(cfg Config) *Judge {
	prefix := cmp.Or(cfg.Prefix, DefaultPrefix)
	j := &Judge{broker: cfg.Broker, realm: cmp.Or(cfg.Realm, DefaultRealm)}
	for i, name := range [identityHeaders]string{"Subject", "Subject-Type", "Issuer", "Client-Id", "Scope", "Actor"} {
		j.names[i] = http.CanonicalHeaderKey(prefix + name)
	}
	return j
}

// Request is what there is to know of a request at a gateway.
type Request struct {
	// Authorization are the values of that header.
	Authorization []string
	// Query says that the query has a token, which is nowhere taken from there.
	Query bool
	// Imitation says that a header of the request imitates an identity header, and that
	// the gateway cannot be told to remove it.
	Imitation bool
	// Needs are what the token must be good for.
	Needs verify.Request
}

// Decision is how a request is to be answered, or passed on.
type Decision struct {
	// Status is 200, 401 or 403; 503 if nothing could be decided.
	Status int
	// Code is one of the codes of RFC 6750, Description a sentence for who makes the
	// request, Challenge a value of WWW-Authenticate; of 401 and 403. Code is empty
	// where the request has no token.
	Code, Description, Challenge string
	// Result is that of the verification, of 200.
	Result verify.Result
	// Err is why nothing could be decided, of 503: for the log, and not for who makes
	// the request.
	Err error
	// RetryAfter is when asking again may help, of 503. It is at least 1 s; [Seconds]
	// writes it.
	RetryAfter time.Duration
}

// Decide judges a request on behalf of a gateway.
func (j *Judge) Decide(ctx context.Context, gateway *policy.Caller, request Request) Decision {
	token, refused := j.tokenOf(request)
	if refused != nil {
		return *refused
	}
	result, err := j.broker.Verify(ctx, gateway, token, request.Needs)
	switch {
	case err != nil:
		return Undecided(err)
	case result.Rejection != nil:
		return j.rejected(result.Rejection, request.Needs.Scopes)
	case result.Facts.Confirmation != nil:
		return *j.deny(http.StatusUnauthorized, InvalidToken, "The access token is bound to a key, which cannot be checked here")
	default:
		return Decision{Status: http.StatusOK, Result: result}
	}
}

// tokenOf is the one token of a request.
func (j *Judge) tokenOf(request Request) (redact.String, *Decision) {
	if request.Query {
		return redact.String{}, j.deny(http.StatusUnauthorized, InvalidRequest, "An access token is taken from the Authorization header only")
	}
	if request.Imitation {
		return redact.String{}, j.deny(http.StatusUnauthorized, InvalidRequest, "The name of a header is another spelling of an identity header")
	}
	if len(request.Authorization) > 1 {
		return redact.String{}, j.deny(http.StatusUnauthorized, InvalidRequest, "There is more than one Authorization header")
	}
	var scheme, text string
	if len(request.Authorization) == 1 {
		scheme, text, _ = strings.Cut(request.Authorization[0], " ")
		text = strings.TrimLeft(text, " ") // RFC 6750 section 2.1: 1*SP
	}
	if !strings.EqualFold(scheme, "bearer") {
		return redact.String{}, j.deny(http.StatusUnauthorized, "", "An access token is needed")
	}
	if text == "" || strings.ContainsAny(text, " ,\t") {
		return redact.String{}, j.deny(http.StatusUnauthorized, InvalidRequest, "The Authorization header is not Bearer and one access token")
	}
	return redact.New(text), nil
}

// rejected says of a bad token no more than RFC 6750 does: why exactly it is bad is
// for who operates the broker.
func (j *Judge) rejected(r *verify.Rejection, scopes []string) Decision {
	switch r.Reason {
	case verify.InsufficientScope:
		denied := j.deny(http.StatusForbidden, InsufficientScope, "The access token has not all scopes that are needed")
		denied.Challenge += `, scope="` + strings.Join(scopes, " ") + `"`
		return *denied
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

// Forbid is the decision about a request that no token is good for.
func (j *Judge) Forbid(description string) Decision {
	return *j.deny(http.StatusForbidden, "", description)
}

// Undecided is the decision where err is why there is none.
func Undecided(err error) Decision {
	d := Decision{Status: http.StatusServiceUnavailable, Err: err, RetryAfter: time.Second, Description: "It cannot be decided now whether the request may pass"}
	if told, ok := errors.AsType[*apierror.Error](err); ok {
		d.RetryAfter = max(d.RetryAfter, told.RetryAfter)
	}
	return d
}

// KeepFor is how long the decision to let a request pass may be kept, in whole
// seconds; 0: not at all.
func (d *Decision) KeepFor(now time.Time) int {
	return max(0, int(d.Result.ValidUntil.Sub(now)/time.Second))
}

// Names are those of the identity headers, in canonical form. All of them are to be
// set on a request that may pass, to nothing where the token says nothing, so that
// nothing is left of what the request came with.
func (j *Judge) Names() []string { return j.names[:] }

// Imitates reports whether name is another spelling of an identity header. Software
// that hands headers on as variables, as CGI and WSGI do, makes the same variable of
// both: it ignores case and takes what is neither a letter nor a digit for an
// underscore. A difference of case alone is no other spelling: gateways replace headers
// in any case.
func (j *Judge) Imitates(name string) bool {
	for _, own := range j.names {
		if len(name) == len(own) && !strings.EqualFold(name, own) && sameVariable(name, own) {
			return true
		}
	}
	return false
}

func sameVariable(a, b string) bool {
	for i := range len(a) {
		if variableByte(a[i]) != variableByte(b[i]) {
			return false
		}
	}
	return true
}

// variableByte returns the byte that stands for c in the name of a variable.
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

// Identity are the values of the identity headers of a request that may pass, in the
// order of Names; empty: the token does not say. The subject is that of the sub claim
// alone: many services look at no other header, and a client may have the name of a
// user. For a token without sub, Client-Id says whose it is.
func (d *Decision) Identity() [identityHeaders]string {
	f := d.Result.Facts
	subject := f.Subject
	if f.SubjectType != verify.SubjectSub {
		subject = ""
	}
	return [identityHeaders]string{
		headerText(subject), f.SubjectType.String(), headerText(f.Issuer), headerText(f.ClientID), headerText(strings.Join(f.Scopes, " ")), "",
	}
}

const upperHex = "0123456789ABCDEF"

// headerText returns text as a header may have it: visible ASCII and single spaces
// within as they are, all else percent-encoded, and '%' with it. Two texts never
// look the same.
func headerText(text string) string {
	odd := 0
	for i := range len(text) {
		if !plain(text, i) {
			odd++
		}
	}
	if odd == 0 {
		return text
	}
	made := make([]byte, 0, len(text)+2*odd)
	for i := range len(text) {
		if plain(text, i) {
			made = append(made, text[i])
			continue
		}
		made = append(made, '%', upperHex[text[i]>>4], upperHex[text[i]&0xf])
	}
	return string(made)
}

// plain reports whether a byte stands for itself in a header. A space at the ends
// would be lost.
func plain(text string, i int) bool {
	c := text[i]
	if c == ' ' {
		return i > 0 && i < len(text)-1
	}
	return c > ' ' && c < 0x7f && c != '%'
}

// WantsJSON reports whether a body is to be JSON, for who sent this Accept: people
// read text.
func WantsJSON(accept string) bool {
	return strings.Contains(accept, "json") || !strings.Contains(accept, "text/")
}

// JSON is the body of a decision other than 200.
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
	// Neither holds what would have to be escaped.
	return []byte(`{"error":"` + code + `","error_description":"` + d.Description + `"}` + "\n")
}

// Seconds returns a positive duration as the value of Retry-After: whole seconds,
// rounded up, because 0 would make clients retry at once.
func Seconds(d time.Duration) string {
	return strconv.Itoa(int((d + time.Second - 1) / time.Second))
}
