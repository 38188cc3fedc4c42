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
	maxBody  = 256 << 10
	maxToken = 16 << 10
	maxExtra = 1 << 10
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
	if fault := a.checkType(); fault != nil {
		return token.Grant{}, fault
	}
	value, fault := a.accessToken()
	if fault == nil {
		fault = a.checkBinding(value)
	}
	if fault != nil {
		return token.Grant{}, fault
	}
	life := c.lifetime(a.members, value, askedAt)
	if life <= 0 {
		return token.Grant{}, a.useless("a token that has expired already: check the clocks on both sides")
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

// checkType accepts bearer tokens, which are what an answer without a type is
// taken for. Others cannot be presented by whoever they are handed to.
func (a answer) checkType() *Error {
	value := a.members["token_type"]
	name, isText := a.members.text("token_type")
	var what string
	switch {
	case absent(value), isText && name == "", strings.EqualFold(name, "Bearer"):
		return nil
	case strings.EqualFold(name, "DPoP"):
		what = "tokens bound to a key (DPoP), which " + notShared
	case strings.EqualFold(name, "mac"):
		what = "tokens of the type mac, which the broker does not hand out: have the IdP issue bearer tokens"
	case strings.EqualFold(name, "N_A"):
		what = "what is no access token (token_type N_A): ask for access tokens in params"
	default:
		what = "tokens of an unknown type: have the IdP issue bearer tokens"
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

func (a answer) accessToken() (string, *Error) {
	value, isText := a.members.text("access_token")
	switch {
	case absent(a.members["access_token"]):
		return "", a.useless("no access_token")
	case !isText:
		return "", a.useless("an access_token that is no string")
	case value == "":
		return "", a.useless("an empty access_token")
	case len(value) > maxToken:
		return "", &Error{Class: Misconfigured, Status: a.status, text: fmt.Sprintf(
			"issues tokens of more than %d bytes, which no API takes: have the IdP put less into them", maxToken)}
	case strings.ContainsFunc(value, func(r rune) bool { return r < 0x20 || r > 0x7e }):
		return "", a.useless("an access_token of characters that none may have (RFC 6749 appendix A.12)")
	}
	return value, nil
}

// lifetime is what the IdP declares, else the default; of that, a token which
// is a JWT lives no longer than its own exp. Its signature is not looked at:
// exp can only shorten. Zero or less: the token is of no use.
func (c *Client) lifetime(m members, value string, askedAt time.Time) time.Duration {
	if n, ok := m.number("expires_in"); ok {
		return seconds(n)
	}
	life := c.cfg.DefaultLifetime
	if exp, ok := expiryOf(value); ok {
		life = min(life, seconds(exp-float64(askedAt.UnixMilli())/1000))
	}
	return life
}

// expiryOf returns the exp claim of a token, if it is a JWT with one.
func expiryOf(value string) (float64, bool) { return claimsOf(value).number("exp") }

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
