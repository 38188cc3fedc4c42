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

const maxDocument = 512 << 10 // bytes

// find fetches the metadata from the first well-known URL with a document. It tries the
// next URL only if there is none, so that one document cannot contradict another.
func (i *Issuer) find(ctx context.Context) (*Metadata, *Error) {
	urls, err := wellKnown(i.cfg.Issuer, i.cfg.AllowHTTP)
	if err != nil {
		return nil, &Error{text: fmt.Sprintf("the issuer %s is not valid: %v", Printable(i.cfg.Issuer), err)}
	}
	var status int
	var failures []string
	for _, url := range urls {
		body, _, err := get(tracing.Named(ctx, tracing.Metadata), i.cfg.HTTP, url, redact.String{}, maxDocument)
		if err == nil {
			return i.parse(url, body)
		}
		if err.Unreachable || err.Status == http.StatusOK {
			return nil, err
		}
		status = err.Status
		failures = append(failures, err.text)
	}
	return nil, &Error{Status: status, text: fmt.Sprintf(
		"the issuer %s publishes no metadata (%s): check the spelling of the issuer, or configure each endpoint",
		Printable(i.cfg.Issuer), strings.Join(failures, "; "))}
}

// wellKnown returns the possible URLs of an issuer's metadata. OpenID Connect appends the
// well-known part to the issuer; RFC 8414 section 3.1 inserts it between host and path.
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

// document is a metadata document (RFC 8414 section 2). Names of members match exactly.
type document struct {
	url      string
	members  map[string]jsontext.Value
	repeated map[string]bool
	check    func(endpoint string) error
}

func (i *Issuer) parse(url string, body []byte) (*Metadata, *Error) {
	members, repeated, err := ParseMembers(body)
	if err != nil {
		return nil, invalid(url, "is not a JSON object")
	}
	if repeated["issuer"] {
		return nil, invalid(url, "names its issuer more than once")
	}
	issuer, _ := textOf(members["issuer"])
	if err := i.checkIssuer(url, issuer); err != nil {
		return nil, err
	}
	doc := document{url, members, repeated, i.checkEndpoint}
	token, introspection := doc.endpoint("token_endpoint", ""), doc.endpoint("introspection_endpoint", "")
	aliases, aliasErr := doc.aliases()
	if aliasErr != nil {
		unusable := Endpoint{err: aliasErr}
		return doc.metadata(issuer, token, introspection, Endpoints{unusable, unusable}), nil //nolint:nilerr // Endpoint.URL returns it
	}
	return doc.metadata(issuer, token, introspection, Endpoints{
		Token:         aliases.endpoint("token_endpoint", " for mTLS").orElse(token),
		Introspection: aliases.endpoint("introspection_endpoint", " for mTLS").orElse(introspection),
	}), nil
}

func (d document) metadata(issuer string, token, introspection Endpoint, mtls Endpoints) *Metadata {
	return &Metadata{Issuer: issuer, TokenEndpoint: token, JWKSURI: d.endpoint("jwks_uri", ""), IntrospectionEndpoint: introspection, MTLS: mtls}
}

// endpoint parses and checks a member. The error is stored in the Endpoint.
func (d document) endpoint(name, purpose string) Endpoint {
	value := d.members[name]
	text, isText := textOf(value)
	switch {
	case d.repeated[name]:
		return Endpoint{err: invalid(d.url, "has more than one "+name+purpose)}
	case isAbsent(value):
		return Endpoint{}
	case !isText:
		return Endpoint{err: invalid(d.url, "has an invalid "+name+purpose+": it is not a string")}
	case text == "":
		return Endpoint{}
	}
	if err := d.check(text); err != nil {
		return Endpoint{err: invalid(d.url, fmt.Sprintf("has an invalid %s%s: %v", name, purpose, err))}
	}
	return Endpoint{url: text}
}

// aliases returns the endpoints for clients with a certificate (RFC 8705 section 5).
func (d document) aliases() (document, *Error) {
	const name = "mtls_endpoint_aliases"
	value := d.members[name]
	switch {
	case d.repeated[name]:
		return document{}, invalid(d.url, "has more than one "+name)
	case isAbsent(value):
		return document{}, nil
	}
	members, repeated, err := ParseMembers(value)
	if err != nil {
		return document{}, invalid(d.url, "has "+name+" that are not an object")
	}
	return document{d.url, members, repeated, d.check}, nil
}

func isAbsent(value jsontext.Value) bool {
	return value == nil || value.Kind() == jsontext.KindNull
}

// textOf returns the text of a string in valid Unicode, and false for any other value.
func textOf(value jsontext.Value) (string, bool) {
	if value.Kind() != jsontext.KindString || !value.IsValid() {
		return "", false
	}
	text, err := jsontext.AppendUnquote(nil, value)
	return string(text), err == nil
}

// checkIssuer compares the document's issuer with the configured one byte for byte (RFC
// 8414 section 3.3), so that an issuer cannot publish metadata for another.
func (i *Issuer) checkIssuer(url, issuer string) *Error {
	switch {
	case issuer == i.cfg.Issuer:
		return nil
	case issuer == "":
		return invalid(url, "names no issuer")
	case strings.TrimSuffix(issuer, "/") == strings.TrimSuffix(i.cfg.Issuer, "/"):
		return invalid(url, "names the issuer with another ending: add or remove the slash at the end of the configured issuer")
	default:
		return invalid(url, "names another issuer than the configured one: configure the issuer exactly as the document names it")
	}
}

// checkEndpoint checks an endpoint with CheckURL. It also refuses plain http to loopback
// if the issuer is https, and addresses that the client would not connect to. Otherwise
// the broker would send its secrets to any program that listens on its host or in its
// network.
func (i *Issuer) checkEndpoint(endpoint string) error {
	if err := CheckURL(endpoint, i.cfg.AllowHTTP); err != nil {
		return err
	}
	if !i.cfg.AllowHTTP && secure(i.cfg.Issuer) && !secure(endpoint) {
		return errors.New("an https issuer must not have a plain http endpoint")
	}
	if u, err := url.Parse(endpoint); err == nil {
		return reachFor(i.cfg.Issuer, i.cfg.AllowPrivate).checkHost(u.Hostname())
	}
	return nil
}

func secure(raw string) bool {
	u, err := url.Parse(raw)
	return err == nil && u.Scheme == "https"
}

func invalid(url, problem string) *Error {
	return &Error{Status: http.StatusOK, text: "the metadata at " + Printable(url) + " " + problem}
}
