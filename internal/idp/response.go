package idp

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/token"
)

// Bounds of a response, in bytes.
const (
	maxBody             = 256 << 10
	defaultMaxTokenSize = 16 << 10
	maxExtra            = 1 << 10 // of one member that is passed on
)

// response is the response of an endpoint, read completely.
type response struct {
	status int
	header http.Header
	body   []byte
	// members of the body. They are nil if it could not be parsed; problem is then
	// the predicate of a sentence about the body.
	members members
	problem string
}

func (r response) ok() bool { return r.status >= 200 && r.status < 300 }

// readResponse reads the body with any status, so that the connection can be
// reused. It returns an error only for a success status, because the status of a
// refusal says enough without its body.
func readResponse(httpResponse *http.Response) (response, error) {
	r := response{status: httpResponse.StatusCode, header: httpResponse.Header}
	var err error
	r.body, err = discovery.ReadBody(httpResponse, maxBody)
	switch {
	case errors.Is(err, discovery.ErrCoding):
		r.problem = "has an unsupported Content-Encoding: the broker supports one gzip or deflate coding, or none"
	case errors.Is(err, discovery.ErrCompressed):
		r.problem = "cannot be decompressed: its Content-Encoding does not describe it, or it is incomplete"
	case len(r.body) > maxBody:
		r.problem = fmt.Sprintf("is larger than %d bytes", maxBody)
	default:
		r.members, r.problem = parse(r.body, httpResponse.Header.Get("Content-Type"))
	}
	if !r.ok() || r.problem != "" {
		err = nil
	}
	return r, err
}

// grant reads the token from a response that reports success.
func (c *Client) grant(r response, req Request, requestedAt time.Time) (token.Grant, *Error) {
	if r.members == nil {
		return token.Grant{}, r.malformed("a body that " + r.problem)
	}
	if fault := r.checkType(c.cfg.BearerTypes); fault != nil && !c.IssuesAssertions() {
		return token.Grant{}, fault
	}
	value, fault := r.accessToken(c.cfg.MaxTokenSize)
	if fault != nil {
		return token.Grant{}, fault
	}
	claims := claimsOf(value)
	if fault := r.checkBinding(claims); fault != nil {
		return token.Grant{}, fault
	}
	life, fault := c.lifetime(r, claims, requestedAt)
	if fault != nil {
		return token.Grant{}, fault
	}
	return token.Grant{
		Value:       redact.New(value),
		Type:        "Bearer",
		Scopes:      r.members.scopes(req.Scopes),
		Extras:      r.members.extras(c.cfg.Extras),
		RequestedAt: requestedAt,
		Lifetime:    life,
		RefreshIn:   r.members.refreshIn(),
	}, nil
}

// malformed is the failure for a response that reports success and contains
// nothing that the broker can use.
func (r response) malformed(content string) *Error {
	return &Error{Class: Transient, Status: r.status, text: fmt.Sprintf("answers HTTP %d with %s", r.status, content)}
}

// withoutToken is the failure for a response that reports success and contains
// members but no token. Some IdPs describe a refusal like this.
func (r response) withoutToken() *Error {
	return &Error{
		Class: RequestRefused, Status: r.status, unclear: true,
		text: fmt.Sprintf("answers HTTP %d without an access_token, and the body may describe a refusal: look at the IdP's log", r.status),
	}
}

// checkType accepts bearer tokens: with the standard type, a type in bearerTypes, or no
// type. Callers could not present any other token.
func (r response) checkType(bearerTypes []string) *Error {
	value := r.members["token_type"]
	name, isText := r.members.text("token_type")
	name = strings.TrimSpace(name)
	isBearer := func(bearer string) bool { return isText && strings.EqualFold(name, bearer) }
	var issued string
	switch {
	case absent(value), isText && name == "", isBearer("Bearer"), slices.ContainsFunc(bearerTypes, isBearer):
		return nil
	case strings.EqualFold(name, "DPoP"):
		issued = "tokens bound to a key (DPoP), which " + boundTokenAdvice
	case strings.EqualFold(name, "mac"):
		issued = "tokens of the type mac, which the broker does not support: have the IdP issue bearer tokens"
	case strings.EqualFold(name, "N_A"):
		issued = "tokens that are not access tokens (token_type N_A): request access tokens in params"
	default:
		issued = "tokens of an unknown type (token_type): have the IdP issue bearer tokens, or name the type in bearer_types if it means bearer"
	}
	return &Error{Class: Misconfigured, Status: r.status, text: "issues " + issued}
}

const boundTokenAdvice = "only the broker could use: disable that for the client at the IdP, so that it issues bearer tokens"

// checkBinding refuses a token that is bound to a certificate or a key (RFC 8705
// section 3, RFC 9449 section 6). The token type does not show the former. The
// binding of an opaque token remains undetected unless the response states it.
func (r response) checkBinding(claims members) *Error {
	bound := func(m members) bool { return !absent(m["cnf"]) }
	if bound(r.members) || bound(claims) {
		return &Error{Class: Misconfigured, Status: r.status, text: "issues tokens bound to a certificate or a key (cnf), which " + boundTokenAdvice}
	}
	return nil
}

func (r response) accessToken(maxSize int) (string, *Error) {
	value, isText := r.members.text("access_token")
	switch {
	case (absent(r.members["access_token"]) || isText && value == "") && len(r.members) > 1, r.members["access_token"] == nil && len(r.members) > 0:
		return "", r.withoutToken()
	case absent(r.members["access_token"]):
		return "", r.malformed("no access_token")
	case !isText:
		return "", r.malformed("an access_token that is not a string")
	case value == "":
		return "", r.malformed("an empty access_token")
	case len(value) > maxSize:
		return "", &Error{Class: Misconfigured, Status: r.status, text: fmt.Sprintf(
			"issues tokens of more than %d bytes: have the IdP put less into them, or have limits.token_kib raised", maxSize)}
	case !isPrintable(value):
		return "", r.malformed("an access_token with characters that are not allowed in it (RFC 6749 appendix A.12)")
	}
	return value, nil
}

// isPrintable reports whether text has printable ASCII characters only.
func isPrintable(text string) bool {
	for i := range len(text) {
		if text[i] < 0x20 || text[i] > 0x7e {
			return false
		}
	}
	return true
}

// lifetime returns the lifetime that the IdP declares, or the default. If the token
// is a JWT, its exp claim can shorten the lifetime but not extend it, because the
// signature is not verified here.
func (c *Client) lifetime(r response, claims members, requestedAt time.Time) (time.Duration, *Error) {
	declared, isDeclared := r.members.number("expires_in")
	life := c.cfg.DefaultLifetime
	if isDeclared {
		life = seconds(declared)
	}
	if life <= 0 {
		return 0, r.expired("expires_in is not positive")
	}
	remaining, since, ok := r.remaining(claims)
	switch {
	case !ok && isDeclared:
		return life, nil
	case !ok:
		remaining, since = remainingByLocalClock(claims, life, requestedAt)
	}
	if remaining <= 0 {
		return 0, r.expired("its exp is not after " + since)
	}
	return shorter(life, remaining), nil
}

func (r response) expired(reason string) *Error {
	fault := r.malformed("a token that has already expired (" + reason + "): check the clocks on both sides, and whether the IdP repeats an old token")
	fault.expired = true
	return fault
}

// remaining returns the lifetime of a JWT with these claims: from the Date header
// to exp, or from iat to exp if that is less or there is no Date header. All three
// come from the IdP, so the result does not depend on the broker's clock. since
// names the start for error messages.
func (r response) remaining(claims members) (remaining time.Duration, since string, ok bool) {
	exp, ok := claims.expiry()
	if !ok {
		return 0, "", false
	}
	remaining = token.MaxLifetime
	iat, hasIAT := claims.number("iat")
	hasIAT = hasIAT && iat > 0
	if date, err := http.ParseTime(r.header.Get("Date")); err == nil {
		now := float64(date.Unix())
		remaining, since = seconds(exp-now), "the Date of the response"
		if hasIAT && iat < now && remaining < coveredLifetime {
			remaining -= time.Second // the IdP repeats an old token, and Date is truncated to seconds
		}
	}
	if life := seconds(exp - iat); hasIAT && (since == "" || life < remaining) {
		remaining, since = life, "its iat"
	}
	return remaining, since, since != ""
}

// remainingByLocalClock replaces remaining if the IdP gives no other hint of the
// lifetime. The broker's clock may be wrong.
func remainingByLocalClock(claims members, life time.Duration, requestedAt time.Time) (remaining time.Duration, since string) {
	exp, ok := claims.expiry()
	if !ok {
		return life, ""
	}
	return seconds(exp - float64(requestedAt.UnixMilli())/1000), "the broker's time"
}

// expiry returns the exp claim. It ignores zero, which some IdPs write into tokens
// that do not expire.
func (m members) expiry() (float64, bool) {
	exp, ok := m.number("exp")
	return exp, ok && exp > 0
}

// coveredLifetime is the shortest lifetime with a margin at its end of one second.
const coveredLifetime = 10 * time.Second

// shorter returns the shorter duration. IdPs truncate times to whole seconds at
// different moments, so it ignores a difference of one second if the margin at the
// end of a token's life covers it.
func shorter(life, remaining time.Duration) time.Duration {
	if remaining >= coveredLifetime && life-remaining <= time.Second {
		return life
	}
	return min(life, remaining)
}

// claimsOf returns the claims of a JWT without verifying it. It returns nil if value
// is not a JWT.
func claimsOf(value string) members {
	parts := strings.Split(value, ".")
	if len(parts) != 3 {
		return nil
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil
	}
	claims, _ := parseObject(payload)
	return claims
}

// members are the members of a JSON object, each as raw JSON. Parameters of a form
// are JSON strings.
type members map[string]jsontext.Value

// parse reads a JSON object or a form. JSON is recognized by its first character,
// because many IdPs declare it as text; the content type matters for forms only.
// If parse fails, it returns the predicate of a sentence about the body.
func parse(body []byte, contentType string) (members, string) {
	body = bytes.TrimSpace(body)
	if len(body) == 0 {
		return nil, "is empty"
	}
	if body[0] == '{' {
		return parseObject(body)
	}
	kind, _, _ := mime.ParseMediaType(contentType) // empty if it cannot be parsed
	if kind == "application/x-www-form-urlencoded" || kind == "text/plain" || kind == "" {
		if m := parseForm(string(body)); m != nil {
			return m, ""
		}
	}
	return nil, "is neither a JSON object nor a form (perhaps it is the page of a login or a firewall)"
}

// parseObject fails if the object repeats a member that the broker reads, because
// such an object is ambiguous. It drops other repeated members. It accepts strings
// that are not UTF-8: an error_description in Latin-1 must not hide the error code.
func parseObject(body []byte) (members, string) {
	m, repeated, err := discovery.ParseMembers(body)
	if err != nil {
		return nil, "is not valid JSON"
	}
	for name := range repeated {
		if decisive(name) {
			return nil, "repeats a member that the broker reads"
		}
		delete(m, name)
	}
	return m, ""
}

// decisive reports whether the broker bases a decision on a member of a response or
// on a claim of a token.
func decisive(name string) bool {
	switch name {
	case "access_token", "token_type", "expires_in", "refresh_in", "scope", "issued_token_type", "error", "active", "cnf", "exp", "iat":
		return true
	default:
		return false
	}
}

// parseForm returns nil if body is not a form with the parameters of a token
// endpoint.
func parseForm(body string) members {
	form, err := url.ParseQuery(body)
	if err != nil || !form.Has("access_token") && !form.Has("error") {
		return nil
	}
	m := make(members, len(form))
	for name, values := range form {
		if len(values) > 1 {
			return nil
		}
		m[name], _ = jsontext.AppendQuote(nil, values[0]) // an error reports replaced bytes that are not UTF-8
	}
	return m
}

func absent(value jsontext.Value) bool {
	return value.Kind() == jsontext.KindInvalid || value.Kind() == jsontext.KindNull
}

// errorCode returns the member error if it is a known code. failed reports whether
// there is an error, known or not. Some IdPs send an empty member with every
// response.
func (m members) errorCode() (code string, failed bool) {
	value := m["error"]
	text, isText := m.text("error")
	if absent(value) || value.Kind() == jsontext.KindFalse || isText && text == "" {
		return "", false
	}
	if _, meaning := meaningOfCode(text); meaning == "" {
		return "", true
	}
	return text, true
}

func (m members) text(name string) (string, bool) {
	value := m[name]
	if value.Kind() != jsontext.KindString {
		return "", false
	}
	text, _ := jsontext.AppendUnquote(nil, value) // an error reports replaced bytes that are not UTF-8
	return string(text), true
}

// scalar returns a member that is a string, a number or a boolean, as text.
func (m members) scalar(name string) (string, bool) {
	if text, ok := m.text(name); ok {
		return text, true
	}
	kind := m[name].Kind()
	return string(m[name]), kind == jsontext.KindNumber || kind == jsontext.KindTrue || kind == jsontext.KindFalse
}

// number returns a member that is a number, or a string that contains one. It
// ignores any other value.
func (m members) number(name string) (float64, bool) {
	if text, ok := m.text(name); ok {
		return parseNumber(text)
	}
	if m[name].Kind() != jsontext.KindNumber {
		return 0, false
	}
	return parseNumber(string(m[name]))
}

// parseNumber returns an infinity for a number that is out of range.
func parseNumber(text string) (float64, bool) {
	n, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) || math.IsNaN(n) {
		return 0, false
	}
	return n, true
}

// seconds limits n to token.MaxLifetime in both directions, so that no IdP can make
// the Duration overflow.
func seconds(n float64) time.Duration {
	limit := token.MaxLifetime.Seconds()
	return time.Duration(min(max(n, -limit), limit) * float64(time.Second))
}

func (m members) refreshIn() time.Duration {
	n, _ := m.number("refresh_in")
	return max(seconds(n), 0)
}

// scopes returns the scopes that the response names, or else the requested ones
// (RFC 6749 section 5.1), sorted. Some IdPs name them in an array.
func (m members) scopes(requested []string) []string {
	granted := m.list("scope")
	if len(granted) == 0 {
		granted = slices.Clone(requested)
	}
	slices.Sort(granted)
	return slices.Compact(granted)
}

// list returns a member that is an array of strings, or a string of words.
func (m members) list(name string) []string {
	if text, ok := m.text(name); ok {
		return strings.Fields(text)
	}
	var items []string
	if json.Unmarshal(m[name], &items, jsontext.AllowInvalidUTF8(true)) != nil {
		return nil
	}
	return items
}

// extras returns the named members that are scalars of at most maxExtra bytes, or
// nil.
func (m members) extras(names []string) map[string]string {
	var extras map[string]string
	for _, name := range names {
		text, ok := m.scalar(name)
		if !ok || len(text) > maxExtra {
			continue
		}
		if extras == nil {
			extras = make(map[string]string, len(names))
		}
		extras[name] = text
	}
	return extras
}
