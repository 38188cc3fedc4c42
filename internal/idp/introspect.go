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
	// IntrospectionBudget bounds the duration of [Client.Introspect], with its retry.
	IntrospectionBudget = 5 * time.Second

	maxIntrospection     = 64 << 10 // bytes
	introspectionPurpose = "introspection endpoint"
)

// Introspection is the response to an introspection (RFC 7662 section 2.2).
type Introspection struct {
	// Active reports whether the IdP considers the token valid.
	Active bool
	// Members is the body of the response: one JSON object of at most 64 KiB, which
	// [jose.ParseObject] accepts. Only the member active has been checked.
	Members []byte
}

// Introspect sends a presented token to the IdP and authenticates with credential.
// It takes at most [IntrospectionBudget], and ends earlier with ctx. The error is
// always an [*Error] and contains no part of the token. A token that is not active
// is not an error.
func (c *Client) Introspect(ctx context.Context, credential secret.Version, token redact.String) (Introspection, error) {
	ctx, cancel := context.WithTimeout(ctx, IntrospectionBudget)
	defer cancel()
	endpoint, fault := c.introspectionEndpoint(ctx)
	if fault != nil {
		return Introspection{}, fault
	}
	result, fault := c.introspectOnce(ctx, endpoint, credential, token)
	if fault != nil && fault.retry && waitBeforeRetry(ctx) {
		result, fault = c.introspectOnce(ctx, endpoint, credential, token)
	}
	if fault != nil {
		return Introspection{}, fault.markAmbiguous().atEndpoint(introspectionPurpose, endpoint)
	}
	return result, nil
}

func (c *Client) introspectionEndpoint(ctx context.Context) (string, *Error) {
	switch {
	case c.cfg.IntrospectionURL != "":
		return c.cfg.IntrospectionURL, nil
	case c.cfg.Issuer == nil:
		return "", &Error{Class: Misconfigured, text: "the introspection endpoint is not configured, and there is no issuer to discover it"}
	}
	metadata, err := c.cfg.Issuer.Metadata(ctx)
	if err != nil {
		return "", discoveryFailed(introspectionPurpose, err)
	}
	discovered := metadata.IntrospectionEndpoint
	if c.cfg.Auth.Mutual() {
		discovered = metadata.MTLS.Introspection
	}
	endpoint, err := discovered.URL()
	switch {
	case err != nil:
		return "", discoveryFailed(introspectionPurpose, err)
	case endpoint == "":
		return "", &Error{Class: Misconfigured, text: "the metadata of the issuer " + discovery.Printable(metadata.Issuer) + " names no introspection_endpoint: configure the endpoint"}
	}
	return endpoint, nil
}

// introspectOnce makes one attempt.
func (c *Client) introspectOnce(ctx context.Context, endpoint string, credential secret.Version, token redact.String) (Introspection, *Error) {
	resp, fault := c.post(tracing.Named(ctx, tracing.Introspection), endpoint, credential, url.Values{"token": {token.Reveal()}, "token_type_hint": {"access_token"}})
	if fault != nil {
		return Introspection{}, fault
	}
	return resp.introspection()
}

// introspection parses the response strictly, because it decides whether the holder
// of the token gets access. A malformed response may depend on the token and does
// not count against the endpoint.
func (r response) introspection() (Introspection, *Error) {
	result := Introspection{Active: r.members["active"].Kind() == jsontext.KindTrue, Members: r.body}
	var problem string
	switch _, err := jose.ParseObject(r.body); {
	case r.status != http.StatusOK:
		problem = "no introspection response, which has the status 200 (RFC 7662 section 2.2)"
	case len(r.body) == 0:
		problem = "a body that " + r.problem
	case len(r.body) > maxIntrospection:
		problem = fmt.Sprintf("a body that is larger than %d bytes", maxIntrospection)
	case err != nil:
		problem = fmt.Sprintf("a body that %v", err)
	case !result.Active && r.members["active"].Kind() != jsontext.KindFalse:
		problem = "a member active that is neither true nor false (RFC 7662 section 2.2)"
	default:
		return result, nil
	}
	fault := r.malformed(problem)
	fault.tokenOnly = true
	return Introspection{}, fault
}
