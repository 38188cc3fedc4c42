package client

import (
	"io"
	"net/http"
	"net/url"
)

// RoundTripper returns a transport that presents the source's token with each
// request and leaves the rest to base; nil: http.DefaultTransport.
//
// If an API answers 401 the token is reported ([Source.Rejected]), and the
// request is made once more if there is another token by then and its body can
// be sent again: it has none, or GetBody is set, as it is by http.NewRequest for
// buffers and strings. The first answer is returned otherwise.
//
// A redirect gets the token only within the origin of the request: the same
// scheme, host and port. Requests over http:// beyond loopback fail unless
// [AllowPlaintext].
func (s *Source) RoundTripper(base http.RoundTripper, opts ...AdapterOption) http.RoundTripper {
	if base == nil {
		base = http.DefaultTransport //nolint:forbidigo // as everywhere where a RoundTripper is nil; its user bounds it
	}
	return &roundTripper{s.adapter(opts), base}
}

type roundTripper struct {
	adapter

	base http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	if leftOrigin(r) {
		return t.pass(r, r)
	}
	if r.URL.Scheme != "https" && !t.plaintext && !onLoopback(r.URL.Host) {
		closeBody(r)
		return nil, errPlaintext
	}
	token, err := t.source.Token(r.Context())
	if err != nil {
		closeBody(r)
		return nil, err
	}
	resp, err := t.pass(r, presenting(r, token))
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	again, ok := replayed(r)
	if !ok {
		t.source.report(token)
		return resp, nil
	}
	other, err := t.source.Rejected(r.Context(), token)
	if err != nil || other.AccessToken() == token.AccessToken() {
		closeBody(again)
		return resp, nil //nolint:nilerr // the API's own answer says more
	}
	drain(resp)
	return t.pass(r, presenting(again, other))
}

// pass makes the request sent, and names the original as that of the response:
// the chain of redirects is read from there.
func (t *roundTripper) pass(original, sent *http.Request) (*http.Response, error) {
	resp, err := t.base.RoundTrip(sent)
	if resp != nil {
		resp.Request = original
	}
	return resp, err
}

// presenting is a copy of the request with the token: a RoundTripper does not
// change what it is given.
func presenting(r *http.Request, token *Token) *http.Request {
	sent := r.Clone(r.Context())
	sent.Header.Set("Authorization", token.Authorization())
	return sent
}

// replayed returns the request as it can be sent once more, if it can.
func replayed(r *http.Request) (*http.Request, bool) {
	if r.Body == nil || r.Body == http.NoBody {
		return r, true
	}
	if r.GetBody == nil {
		return nil, false
	}
	body, err := r.GetBody()
	if err != nil {
		return nil, false
	}
	again := r.Clone(r.Context())
	again.Body = body
	return again, true
}

// leftOrigin reports whether a redirect, any of those that led to the request,
// left the origin of the first.
func leftOrigin(r *http.Request) bool {
	for at := r; at.Response != nil; {
		before := at.Response.Request
		if before == nil || origin(before.URL) != origin(r.URL) {
			return true
		}
		at = before
	}
	return false
}

func origin(u *url.URL) [3]string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return [3]string{u.Scheme, u.Hostname(), port}
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

// drain reads the little that is left of an answer that nobody wants, so that
// its connection can be used again.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	_ = resp.Body.Close()
}
