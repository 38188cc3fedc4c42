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

// request is made anew for each attempt. It adds to the form.
func (c *Client) request(ctx context.Context, endpoint string, with secret.Version, form url.Values) (*http.Request, *Error) {
	if c.cfg.Auth.Mutual() {
		if fault := c.checkMutual(endpoint); fault != nil {
			return nil, fault
		}
	}
	authorization, fault := c.authenticate(ctx, with, form)
	if fault != nil {
		return nil, fault
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, &Error{Class: Misconfigured, text: "has a URL that cannot be requested"}
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
		return &Error{Class: Misconfigured, text: "is plain http, where no certificate can be presented: configure its https URL, or another auth"}
	}
	if err := c.mutual.current().check(c.cfg.Certificate.Cert); err != nil {
		return &Error{Class: CredentialRefused, text: fmt.Sprintf("was not asked, because %v", err), cause: err}
	}
	return nil
}

// form is what is asked for. It is made anew for each attempt as well.
func (c *Client) form(ctx context.Context, with secret.Version, ask Request) (url.Values, *Error) {
	form := url.Values{"grant_type": {c.cfg.Grant}}
	for name, value := range c.cfg.Params {
		form.Set(name, value)
	}
	if ask.Audience != "" {
		form.Set("audience", ask.Audience)
	}
	for _, resource := range ask.Resources {
		form.Add("resource", resource)
	}
	scope := strings.Join(ask.Scopes, " ")
	if c.cfg.Grant == JWTBearer {
		assertion, fault := c.grantAssertion(ctx, with, scope)
		form.Set("assertion", assertion.Reveal())
		return form, fault
	}
	if scope != "" {
		form.Set("scope", scope)
	}
	return form, nil
}
