package idp

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

const (
	// IntrospectionBudget is how long a whole [Client.Introspect] takes at most.
	IntrospectionBudget = 5 * time.Second

	maxIntrospection = 64 << 10
	introspection    = "introspection endpoint"
)

// Introspection is what an IdP says of a token (RFC 7662 section 2.2).
type Introspection struct {
	// Active: to the IdP the token is good.
	Active bool
	// Members are the whole answer: one object that [jose.ParseObject] takes, of
	// at most 64 KiB. Beyond active nothing in it was looked at.
	Members []byte
}

// Introspect asks the IdP about a token that was presented to the broker, with
// the secret as it is given. It takes [IntrospectionBudget] at most, or until ctx
// ends. The error is always an [*Error] and shows nothing of the token; that a
// token is not active is no error.
func (c *Client) Introspect(ctx context.Context, with secret.Version, token redact.String) (Introspection, error) {
	ctx, cancel := context.WithTimeout(ctx, IntrospectionBudget)
	defer cancel()
	endpoint, fault := c.introspectionEndpoint(ctx)
	if fault != nil {
		return Introspection{}, fault
	}
	found, fault := c.introspect(ctx, endpoint, with, token)
	if fault != nil && fault.again && pause(ctx) {
		found, fault = c.introspect(ctx, endpoint, with, token)
	}
	if fault != nil {
		return Introspection{}, fault.aboutToken().at(introspection, endpoint)
	}
	return found, nil
}

func (c *Client) introspectionEndpoint(ctx context.Context) (string, *Error) {
	switch {
	case c.cfg.IntrospectionURL != "":
		return c.cfg.IntrospectionURL, nil
	case c.cfg.Issuer == nil:
		return "", &Error{Class: Misconfigured, text: "the introspection endpoint is not configured, and no issuer to find it by"}
	}
	metadata, err := c.cfg.Issuer.Metadata(ctx)
	if err != nil {
		return "", undiscovered(introspection, err)
	}
	named := metadata.IntrospectionEndpoint
	if c.cfg.Auth.Mutual() {
		named = metadata.MTLS.Introspection
	}
	endpoint, err := named.URL()
	switch {
	case err != nil:
		return "", undiscovered(introspection, err)
	case endpoint == "":
		return "", &Error{Class: Misconfigured, text: "the metadata of the issuer " + discovery.Printable(metadata.Issuer) + " names no introspection_endpoint: configure the endpoint"}
	}
	return endpoint, nil
}

// introspect sends the request once.
func (c *Client) introspect(ctx context.Context, endpoint string, with secret.Version, token redact.String) (Introspection, *Error) {
	answer, fault := c.post(tracing.Named(ctx, tracing.Introspection), endpoint, with, url.Values{"token": {token.Reveal()}, "token_type_hint": {"access_token"}})
	if fault != nil {
		return Introspection{}, fault
	}
	return answer.introspection()
}

// introspection reads an answer strictly: it decides whether somebody gets in.
// What is wrong with it may be the token's doing, and is not held against the
// endpoint.
func (a answer) introspection() (Introspection, *Error) {
	found := Introspection{Active: a.members["active"].Kind() == jsontext.KindTrue, Members: a.body}
	var problem string
	switch _, err := jose.ParseObject(a.body); {
	case a.status != http.StatusOK:
		problem = "nothing"
	case len(a.body) == 0:
		problem = "a body that " + a.problem
	case len(a.body) > maxIntrospection:
		problem = fmt.Sprintf("a body that is larger than %d bytes", maxIntrospection)
	case err != nil:
		problem = fmt.Sprintf("a body that %v", err)
	case !found.Active && a.members["active"].Kind() != jsontext.KindFalse:
		problem = "an active that is neither true nor false (RFC 7662 section 2.2)"
	default:
		return found, nil
	}
	fault := a.useless(problem)
	fault.alone = true
	return Introspection{}, fault
}
