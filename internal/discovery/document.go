package discovery

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

const maxDocument = 512 << 10

// find looks in the places where an issuer may publish. It goes on to the next
// only where there is nothing: what is said in one place is not to be
// contradicted by another.
func (i *Issuer) find(ctx context.Context) (*Metadata, *Error) {
	places, err := wellKnown(i.cfg.Issuer, i.cfg.AllowHTTP)
	if err != nil {
		return nil, &Error{text: fmt.Sprintf("the issuer %s is not valid: %v", Printable(i.cfg.Issuer), err)}
	}
	var status int
	var refusals []string
	for _, place := range places {
		body, _, fault := get(tracing.Named(ctx, tracing.Metadata), i.cfg.HTTP, place, redact.String{}, maxDocument)
		if fault == nil {
			return i.read(place, body)
		}
		if fault.Unreachable || fault.Status == http.StatusOK {
			return nil, fault
		}
		status = fault.Status
		refusals = append(refusals, fault.text)
	}
	return nil, &Error{Status: status, text: fmt.Sprintf(
		"the issuer %s publishes no metadata (%s): check its spelling, or configure its endpoints one by one",
		Printable(i.cfg.Issuer), strings.Join(refusals, "; "))}
}

// wellKnown returns where the metadata of an issuer may be: OpenID Connect
// appends the well-known part to the issuer, RFC 8414 section 3.1 puts it
// between host and path.
func wellKnown(issuer string, allowHTTP bool) ([]string, error) {
	if err := CheckURL(issuer, allowHTTP); err != nil {
		return nil, err
	}
	u, err := url.Parse(issuer)
	if err != nil || strings.Contains(issuer, "?") {
		return nil, errors.New("an issuer must not have a query (RFC 8414 section 2)")
	}
	path := strings.TrimSuffix(u.EscapedPath(), "/")
	return []string{
		strings.TrimSuffix(issuer, "/") + "/.well-known/openid-configuration",
		u.Scheme + "://" + u.Host + "/.well-known/oauth-authorization-server" + path,
	}, nil
}

// document is a metadata document (RFC 8414 section 2). Names are matched exactly.
type document struct {
	place    string
	members  map[string]jsontext.Value
	repeated map[string]bool
	check    func(endpoint string) error
}

func (i *Issuer) read(place string, body []byte) (*Metadata, *Error) {
	members, repeated, err := ParseMembers(body)
	if err != nil {
		return nil, wrong(place, "is not a JSON object")
	}
	if repeated["issuer"] {
		return nil, wrong(place, "names its issuer more than once")
	}
	named, _ := textOf(members["issuer"])
	if fault := i.sameIssuer(place, named); fault != nil {
		return nil, fault
	}
	found := document{place, members, repeated, i.checkEndpoint}
	token, introspection := found.endpoint("token_endpoint", ""), found.endpoint("introspection_endpoint", "")
	aliases, fault := found.aliases()
	if fault != nil {
		refused := Endpoint{refused: fault}
		return found.metadata(named, token, introspection, Endpoints{refused, refused}), nil //nolint:nilerr // it is reported when one is used
	}
	return found.metadata(named, token, introspection, Endpoints{
		Token:         aliases.endpoint("token_endpoint", " for mTLS").or(token),
		Introspection: aliases.endpoint("introspection_endpoint", " for mTLS").or(introspection),
	}), nil
}

func (d document) metadata(issuer string, token, introspection Endpoint, mtls Endpoints) *Metadata {
	return &Metadata{Issuer: issuer, TokenEndpoint: token, JWKSURI: d.endpoint("jwks_uri", ""), IntrospectionEndpoint: introspection, MTLS: mtls}
}

// endpoint reads a member and judges it. What is wrong with it is found out by
// those who use it.
func (d document) endpoint(name, purpose string) Endpoint {
	value := d.members[name]
	text, isText := textOf(value)
	switch {
	case d.repeated[name]:
		return Endpoint{refused: wrong(d.place, "names its "+name+purpose+" more than once")}
	case isAbsent(value):
		return Endpoint{}
	case !isText:
		return Endpoint{refused: wrong(d.place, "names the "+name+purpose+" by a value that is not a string")}
	case text == "":
		return Endpoint{}
	}
	if err := d.check(text); err != nil {
		return Endpoint{refused: wrong(d.place, fmt.Sprintf("names a URL as %s%s that is refused: %v", name, purpose, err))}
	}
	return Endpoint{url: text}
}

// aliases are the endpoints for clients that present a certificate.
func (d document) aliases() (document, *Error) {
	const name = "mtls_endpoint_aliases"
	value := d.members[name]
	switch {
	case d.repeated[name]:
		return document{}, wrong(d.place, "names its "+name+" more than once")
	case isAbsent(value):
		return document{}, nil
	}
	members, repeated, err := ParseMembers(value)
	if err != nil {
		return document{}, wrong(d.place, "has "+name+" that are not an object")
	}
	return document{d.place, members, repeated, d.check}, nil
}

func isAbsent(value jsontext.Value) bool {
	return value == nil || value.Kind() == jsontext.KindNull
}

// textOf returns a member that is a string of sound Unicode.
func textOf(value jsontext.Value) (string, bool) {
	if value.Kind() != jsontext.KindString || !value.IsValid() {
		return "", false
	}
	text, err := jsontext.AppendUnquote(nil, value)
	return string(text), err == nil
}

// sameIssuer keeps one issuer from speaking for another: the two must be equal
// byte for byte (RFC 8414 section 3.3).
func (i *Issuer) sameIssuer(place, named string) *Error {
	switch {
	case named == i.cfg.Issuer:
		return nil
	case named == "":
		return wrong(place, "names no issuer")
	case strings.TrimSuffix(named, "/") == strings.TrimSuffix(i.cfg.Issuer, "/"):
		return wrong(place, "names the issuer with another ending: add or remove the slash at the end of the configured issuer")
	default:
		return wrong(place, "names another issuer than the configured one: configure it exactly as the document has it")
	}
}

// checkEndpoint also refuses an endpoint in plain http, which CheckURL lets pass
// for loopback, where the document came over https, and addresses that would not
// be connected to: both would lead the broker's secrets to whoever listens on its
// host or in its network.
func (i *Issuer) checkEndpoint(endpoint string) error {
	if err := CheckURL(endpoint, i.cfg.AllowHTTP); err != nil {
		return err
	}
	if !i.cfg.AllowHTTP && secure(i.cfg.Issuer) && !secure(endpoint) {
		return errors.New("an issuer of https must not name endpoints of plain http")
	}
	if u, err := url.Parse(endpoint); err == nil {
		return reachOf(i.cfg.Issuer, i.cfg.AllowPrivate).refuseHost(u.Hostname())
	}
	return nil
}

func secure(raw string) bool {
	u, err := url.Parse(raw)
	return err == nil && u.Scheme == "https"
}

func wrong(place, what string) *Error {
	return &Error{Status: http.StatusOK, text: "the metadata at " + Printable(place) + " " + what}
}
