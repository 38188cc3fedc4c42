package idp

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// request is made anew for each attempt. It adds to the form.
func (c *Client) request(ctx context.Context, endpoint string, with secret.Version, form url.Values) (*http.Request, error) {
	if c.cfg.Auth == SecretPost {
		form.Set("client_id", c.cfg.ClientID)
		form.Set("client_secret", with.Value.Reveal())
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Accept", "application/json")
	request.Header.Set("Accept-Encoding", "identity")
	request.Header.Set("User-Agent", discovery.UserAgent)
	if c.cfg.Auth == SecretBasic {
		request.Header.Set("Authorization", c.basic(with))
	}
	return request, nil
}

func (c *Client) form(ask Request) url.Values {
	form := url.Values{"grant_type": {"client_credentials"}}
	for name, value := range c.cfg.Params {
		form.Set(name, value)
	}
	if ask.Audience != "" {
		form.Set("audience", ask.Audience)
	}
	for _, resource := range ask.Resources {
		form.Add("resource", resource)
	}
	if len(ask.Scopes) > 0 {
		form.Set("scope", strings.Join(ask.Scopes, " "))
	}
	return form
}

// basic form-encodes id and secret before it joins them (RFC 6749 section
// 2.3.1), which is not what HTTP's own Basic authentication does.
func (c *Client) basic(with secret.Version) string {
	id, value := c.cfg.ClientID, with.Value.Reveal()
	if !c.cfg.RawBasic {
		id, value = url.QueryEscape(id), url.QueryEscape(value)
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+value))
}
