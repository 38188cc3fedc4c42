package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/cezzis/tokenbroker/internal/tracing"
)

const maxDocument = 512 << 10

// document is the part of a metadata document that is read (RFC 8414 section
// 2). Names are matched exactly; a document that repeats one is refused.
type document struct {
	Issuer                string `json:"issuer"`
	TokenEndpoint         string `json:"token_endpoint"`
	JWKSURI               string `json:"jwks_uri"`
	IntrospectionEndpoint string `json:"introspection_endpoint"`
	MTLS                  struct {
		TokenEndpoint         string `json:"token_endpoint"`
		IntrospectionEndpoint string `json:"introspection_endpoint"`
	} `json:"mtls_endpoint_aliases"`
}

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
		body, _, fault := get(tracing.Named(ctx, tracing.Metadata), i.cfg.HTTP, place, maxDocument)
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

func (i *Issuer) read(place string, body []byte) (*Metadata, *Error) {
	var found document
	if err := json.Unmarshal(body, &found); err != nil {
		return nil, wrong(place, "is not a JSON object with the members of a metadata document")
	}
	if fault := i.sameIssuer(place, found.Issuer); fault != nil {
		return nil, fault
	}
	for _, endpoint := range []struct{ name, url string }{
		{"token_endpoint", found.TokenEndpoint},
		{"jwks_uri", found.JWKSURI},
		{"introspection_endpoint", found.IntrospectionEndpoint},
		{"token_endpoint for mTLS", found.MTLS.TokenEndpoint},
		{"introspection_endpoint for mTLS", found.MTLS.IntrospectionEndpoint},
	} {
		if err := i.checkEndpoint(endpoint.url); err != nil {
			return nil, wrong(place, fmt.Sprintf("names a %s that is refused: %v", endpoint.name, err))
		}
	}
	return &Metadata{
		Issuer:                found.Issuer,
		TokenEndpoint:         found.TokenEndpoint,
		JWKSURI:               found.JWKSURI,
		IntrospectionEndpoint: found.IntrospectionEndpoint,
		MTLS: Endpoints{
			Token:         cmp.Or(found.MTLS.TokenEndpoint, found.TokenEndpoint),
			Introspection: cmp.Or(found.MTLS.IntrospectionEndpoint, found.IntrospectionEndpoint),
		},
	}, nil
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
	if endpoint == "" {
		return nil
	}
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
