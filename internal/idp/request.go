package idp

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// request builds the HTTP request of one attempt. It adds the parameters that
// authenticate the client to form.
func (c *Client) request(ctx context.Context, endpoint string, credential secret.Version, form url.Values) (*http.Request, *Error) {
	if c.cfg.Auth.Mutual() {
		if fault := c.checkMutual(endpoint); fault != nil {
			return nil, fault
		}
	}
	authorization, fault := c.authenticate(ctx, credential, form)
	if fault != nil {
		return nil, fault
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, &Error{Class: Misconfigured, text: "has a URL that is not valid"}
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Accept", "application/json")
	request.Header.Set("Accept-Encoding", "identity")
	request.Header.Set("User-Agent", discovery.UserAgent)
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	return request, nil
}

func (c *Client) checkMutual(endpoint string) *Error {
	if !strings.HasPrefix(endpoint, "https:") {
		return &Error{Class: Misconfigured, text: "is plain http, which cannot carry the client's certificate: configure its https URL, or another auth"}
	}
	if err := c.mutual.current().check(c.cfg.Certificate.Cert); err != nil {
		return &Error{Class: CredentialRefused, text: fmt.Sprintf("received no request, because %v", err), cause: err}
	}
	return nil
}

// tokenForm returns the parameters of a token request without the authentication of
// the client. Each attempt needs its own, because an assertion can be used once only.
func (c *Client) tokenForm(ctx context.Context, credential secret.Version, behalf *Behalf, req Request) (url.Values, *Error) {
	form := url.Values{"grant_type": {c.cfg.Grant}}
	for name, value := range c.cfg.Params {
		form.Set(name, value)
	}
	switch {
	case behalf != nil:
		c.addBehalf(form, *behalf)
	case c.cfg.Exchange != nil:
		form.Set("grant_type", ClientCredentials)
		form.Del(ParamTokenUse)
	}
	if req.Audience != "" {
		form.Set("audience", req.Audience)
	}
	for _, resource := range req.Resources {
		form.Add("resource", resource)
	}
	scope := strings.Join(req.Scopes, " ")
	if c.cfg.signedGrant() != "" {
		assertion, fault := c.grantAssertion(ctx, credential, scope)
		form.Set("assertion", assertion.Reveal())
		return form, fault
	}
	if scope != "" {
		form.Set("scope", scope)
	}
	return form, nil
}
