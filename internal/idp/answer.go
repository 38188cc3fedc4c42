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

// Bounds of an answer.
const (
	maxBody             = 256 << 10
	defaultMaxTokenSize = 16 << 10
	maxExtra            = 1 << 10
)

// answer is what an endpoint sent.
type answer struct {
	status int
	header http.Header
	body   []byte
	// members of the body; nil where it has none that can be read, and problem
	// says why.
	members members
	problem string
}

func (a answer) ok() bool { return a.status >= 200 && a.status < 300 }

// readAnswer takes the body in, bounded. It does so whatever the status is, so that
// the connection can be used again. A failure to read is one only where the body
// matters; a refusal's status says enough.
func readAnswer(response *http.Response) (answer, error) {
	a := answer{status: response.StatusCode, header: response.Header}
	var err error
	a.body, err = discovery.ReadBody(response, maxBody)
	switch {
	case errors.Is(err, discovery.ErrCoding):
		a.problem = "is in an unsupported Content-Encoding: the broker reads one gzip or deflate coding, or none"
	case errors.Is(err, discovery.ErrCompressed):
		a.problem = "cannot be decompressed: its Content-Encoding does not describe it, or it is incomplete"
	case len(a.body) > maxBody:
		a.problem = fmt.Sprintf("is larger than %d bytes", maxBody)
	default:
		a.members, a.problem = parse(a.body, response.Header.Get("Content-Type"))
	}
	if !a.ok() || a.problem != "" {
		err = nil
	}
	return a, err
}

// grant is what an answer that refuses nothing gives.
func (c *Client) grant(a answer, ask Request, askedAt time.Time) (token.Grant, *Error) {
	if a.members == nil {
		return token.Grant{}, a.useless("a body that " + a.problem)
	}
	if fault := a.checkType(c.cfg.BearerTypes); fault != nil {
		return token.Grant{}, fault
	}
	value, fault := a.accessToken(c.cfg.MaxTokenSize)
	if fault == nil {
		fault = a.checkBinding(value)
	}
	if fault != nil {
		return token.Grant{}, fault
	}
	life, fault := c.lifetime(a, value, askedAt)
	if fault != nil {
		return token.Grant{}, fault
	}
	return token.Grant{
		Value:     redact.New(value),
		Type:      "Bearer",
		Scopes:    a.members.scopes(ask.Scopes),
		Extras:    a.members.extras(c.cfg.Extras),
		AskedAt:   askedAt,
		Lifetime:  life,
		RefreshIn: a.members.refreshIn(),
	}, nil
}

// useless is an answer that claims success and brings nothing to use.
func (a answer) useless(what string) *Error {
	return &Error{Class: Transient, Status: a.status, text: fmt.Sprintf("answers HTTP %d with %s", a.status, what)}
}

// tokenless is an answer that claims success and says something, but brings no token:
// some IdPs describe a refusal so.
func (a answer) tokenless() *Error {
	return &Error{
		Class: RequestRefused, Status: a.status, unclear: true,
		text: fmt.Sprintf("answers HTTP %d with no access_token, and with something else, which may be a refusal: look at the IdP's log", a.status),
	}
}

// checkType accepts bearer tokens: by the standard type, by a type that the
// configuration names, or without a type. The callers could not present others.
func (a answer) checkType(bearerTypes []string) *Error {
	value := a.members["token_type"]
	name, isText := a.members.text("token_type")
	name = strings.TrimSpace(name)
	isBearer := func(known string) bool { return isText && strings.EqualFold(name, known) }
	var what string
	switch {
	case absent(value), isText && name == "", isBearer("Bearer"), slices.ContainsFunc(bearerTypes, isBearer):
		return nil
	case strings.EqualFold(name, "DPoP"):
		what = "tokens bound to a key (DPoP), which " + notShared
	case strings.EqualFold(name, "mac"):
		what = "tokens of the type mac, which the broker does not hand out: have the IdP issue bearer tokens"
	case strings.EqualFold(name, "N_A"):
		what = "what is no access token (token_type N_A): ask for access tokens in params"
	default:
		what = "tokens of an unknown type (token_type): have the IdP issue bearer tokens, or name the type in bearer_types if it means bearer"
	}
	return &Error{Class: Misconfigured, Status: a.status, text: "issues " + what}
}

const notShared = "nobody but the broker could use: switch that off for the client at the IdP, so that it issues bearer tokens"

// checkBinding refuses a token that only who holds a certificate or a key can use
// (RFC 8705 section 3, RFC 9449 section 6), as far as can be seen: such a token is
// called Bearer where it is bound to a certificate. Of an opaque one nothing can
// be seen.
func (a answer) checkBinding(value string) *Error {
	bound := func(m members) bool { return !absent(m["cnf"]) }
	if bound(a.members) || bound(claimsOf(value)) {
		return &Error{Class: Misconfigured, Status: a.status, text: "issues tokens bound to a certificate or a key (cnf), which " + notShared}
	}
	return nil
}

func (a answer) accessToken(longest int) (string, *Error) {
	value, isText := a.members.text("access_token")
	switch {
	case (absent(a.members["access_token"]) || isText && value == "") && len(a.members) > 1, a.members["access_token"] == nil && len(a.members) > 0:
		return "", a.tokenless()
	case absent(a.members["access_token"]):
		return "", a.useless("no access_token")
	case !isText:
		return "", a.useless("an access_token that is no string")
	case value == "":
		return "", a.useless("an empty access_token")
	case len(value) > longest:
		return "", &Error{Class: Misconfigured, Status: a.status, text: fmt.Sprintf(
			"issues tokens of more than %d bytes: have the IdP put less into them, or have limits.token_kib raised", longest)}
	case strings.ContainsFunc(value, func(r rune) bool { return r < 0x20 || r > 0x7e }):
		return "", a.useless("an access_token of characters that none may have (RFC 6749 appendix A.12)")
	}
	return value, nil
}

// lifetime is what the IdP declares, else the default, shortened to the token's own
// exp if it is a JWT. Nobody verified the JWT's signature, so exp only shortens.
func (c *Client) lifetime(a answer, value string, askedAt time.Time) (time.Duration, *Error) {
	declared, isDeclared := a.members.number("expires_in")
	life := c.cfg.DefaultLifetime
	if isDeclared {
		life = seconds(declared)
	}
	if life <= 0 {
		return 0, a.expired("expires_in is not positive")
	}
	left, since, known := a.leftOf(claimsOf(value))
	switch {
	case !known && isDeclared:
		return life, nil
	case !known:
		left, since = c.leftOnOwnClock(claimsOf(value), life, askedAt)
	}
	if left <= 0 {
		return 0, a.expired("its exp is not after " + since)
	}
	return shortened(life, left), nil
}

// expired is a failure because of a token that is of no use any more.
func (a answer) expired(why string) *Error {
	fault := a.useless("a token that has expired already (" + why + "): check the clocks on both sides, and whether the IdP repeats an old token")
	fault.ended = true
	return fault
}

// leftOf returns how long a JWT with these claims lives: from the response's Date
// to exp, or from iat to exp if that is less or there is no Date. Both ends come
// from clocks of the IdP, so a wrong clock of the broker does not matter.
func (a answer) leftOf(claims members) (left time.Duration, since string, known bool) {
	exp, ok := claims.expiry()
	if !ok {
		return 0, "", false
	}
	left = token.MaxLifetime
	iat, dated := claims.number("iat")
	dated = dated && iat > 0
	if date, err := http.ParseTime(a.header.Get("Date")); err == nil {
		at := float64(date.Unix())
		left, since = seconds(exp-at), "the Date of the response"
		if dated && iat < at && left < covered {
			left -= time.Second // an old token is repeated at its end, and the Date is cut to a whole second
		}
	}
	if life := seconds(exp - iat); dated && (since == "" || life < left) {
		left, since = life, "its iat"
	}
	return left, since, since != ""
}

// leftOnOwnClock is leftOf by the broker's clock, which may be wrong. It is used only
// where the IdP does not say in any other way how long the token lives.
func (c *Client) leftOnOwnClock(claims members, life time.Duration, askedAt time.Time) (left time.Duration, since string) {
	exp, ok := claims.expiry()
	if !ok {
		return life, ""
	}
	return seconds(exp - float64(askedAt.UnixMilli())/1000), "the broker's time"
}

// expiry returns the exp claim. Zero is not a time: some IdPs write it into tokens
// that do not expire by themselves.
func (m members) expiry() (float64, bool) {
	exp, ok := m.number("exp")
	return exp, ok && exp > 0
}

// covered is how long a token lives at least whose margin at the end covers a second.
const covered = 10 * time.Second

// shortened is the lesser of both. IdPs cut times to whole seconds, each at another
// moment: a difference of one second is no difference, as long as the margin at the
// end of a token's life covers it.
func shortened(life, left time.Duration) time.Duration {
	if left >= covered && life-left <= time.Second {
		return life
	}
	return min(life, left)
}

// claimsOf returns nil for a token that is no JWT.
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

// members are those of an answer's one object, each as the JSON it came in; of
// a form, as a JSON string.
type members map[string]jsontext.Value

// parse reads a body by what it looks like first, and by its declared type only
// then: many IdPs declare their JSON as text. It says what is wrong otherwise.
func parse(body []byte, contentType string) (members, string) {
	body = bytes.TrimSpace(body)
	if len(body) == 0 {
		return nil, "is empty"
	}
	if body[0] == '{' {
		return parseObject(body)
	}
	kind, _, _ := mime.ParseMediaType(contentType) // none: may be anything
	if kind == "application/x-www-form-urlencoded" || kind == "text/plain" || kind == "" {
		if m := parseForm(string(body)); m != nil {
			return m, ""
		}
	}
	return nil, "is neither a JSON object nor a form (a login page or a firewall's, perhaps)"
}

// parseObject refuses an object that repeats a member which the broker reads:
// nobody can say which one holds. It leaves out other members that are repeated.
// It accepts texts that are not UTF-8, because a human-readable error_description
// in Latin-1 must not hide the error beside it.
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

// decisive reports whether a member of an answer, or a claim of a token, decides
// what becomes of it.
func decisive(name string) bool {
	switch name {
	case "access_token", "token_type", "expires_in", "refresh_in", "scope", "error", "active", "cnf", "exp", "iat":
		return true
	default:
		return false
	}
}

// parseForm returns nil for a text that is no form of a token endpoint.
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
		m[name], _ = jsontext.AppendQuote(nil, values[0]) // fails only on what is not UTF-8, and replaces that
	}
	return m
}

func absent(value jsontext.Value) bool {
	return value.Kind() == jsontext.KindInvalid || value.Kind() == jsontext.KindNull
}

// failure reports whether there is an error, and its code if it is known. Some
// IdPs send the member always, and leave it empty.
func (m members) failure() (code string, failed bool) {
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
	text, _ := jsontext.AppendUnquote(nil, value) // fails only on what is not UTF-8, and replaces that
	return string(text), true
}

// plain reads a member that is a text, a number or a boolean, as text.
func (m members) plain(name string) (string, bool) {
	if text, ok := m.text(name); ok {
		return text, true
	}
	kind := m[name].Kind()
	return string(m[name]), kind == jsontext.KindNumber || kind == jsontext.KindTrue || kind == jsontext.KindFalse
}

// number reads a member that is a number, or a string that holds one. Anything
// else is taken for absent.
func (m members) number(name string) (float64, bool) {
	if text, ok := m.text(name); ok {
		return number(text)
	}
	if m[name].Kind() != jsontext.KindNumber {
		return 0, false
	}
	return number(string(m[name]))
}

// number may be infinite, for one that is out of range.
func number(text string) (float64, bool) {
	n, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) || math.IsNaN(n) {
		return 0, false
	}
	return n, true
}

// seconds is cut to token.MaxLifetime either way, so that no IdP makes a
// Duration overflow.
func seconds(n float64) time.Duration {
	most := token.MaxLifetime.Seconds()
	return time.Duration(min(max(n, -most), most) * float64(time.Second))
}

func (m members) refreshIn() time.Duration {
	n, _ := m.number("refresh_in")
	return max(seconds(n), 0)
}

// scopes are those that the answer names, else those asked for (RFC 6749
// section 5.1), sorted. Some IdPs name them in an array.
func (m members) scopes(asked []string) []string {
	named := m.texts("scope")
	if len(named) == 0 {
		named = slices.Clone(asked)
	}
	slices.Sort(named)
	return slices.Compact(named)
}

func (m members) texts(name string) []string {
	var texts []string
	if text, ok := m.text(name); ok {
		texts = strings.Fields(text)
	} else if err := json.Unmarshal(m[name], &texts, jsontext.AllowInvalidUTF8(true)); err != nil {
		return nil
	}
	return texts
}

// extras are the members of the names that are text, number or boolean, and not
// too long; nil if there are none.
func (m members) extras(names []string) map[string]string {
	var found map[string]string
	for _, name := range names {
		text, ok := m.plain(name)
		if !ok || len(text) > maxExtra {
			continue
		}
		if found == nil {
			found = make(map[string]string, len(names))
		}
		found[name] = text
	}
	return found
}
