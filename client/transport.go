package client

import (
	"io"
	"net/http"
	"net/url"
)

// RoundTripper returns a transport that presents the source's token with each
// request and passes it to base, or to http.DefaultTransport if base is nil.
//
// If an API responds 401, the token is reported by [Source.Rejected]. The
// request is repeated once if another token is available by then and its body
// can be sent again: it has no body, or GetBody is set, as http.NewRequest does
// for buffers and strings. Otherwise the first response is returned.
//
// A redirected request carries the token only within the origin of the first
// request: the same scheme, host and port. Requests over http:// beyond
// loopback fail unless [AllowPlaintext] is given.
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
		return t.send(r, r)
	}
	if r.URL.Scheme != "https" && !t.plaintext && !isLoopback(r.URL.Host) {
		closeBody(r)
		return nil, errPlaintext
	}
	token, err := t.source.Token(r.Context())
	if err != nil {
		closeBody(r)
		return nil, err
	}
	resp, err := t.send(r, withToken(r, token))
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	retry, ok := replay(r)
	if !ok {
		t.source.reportRejected(token)
		return resp, nil
	}
	replacement, err := t.source.Rejected(r.Context(), token)
	if err != nil || replacement.AccessToken() == token.AccessToken() {
		closeBody(retry)
		return resp, nil //nolint:nilerr // the API's own answer says more
	}
	drain(resp)
	return t.send(r, withToken(retry, replacement))
}

// send sends the request and sets the original as the response's Request:
// http.Client follows the chain of redirects from there.
func (t *roundTripper) send(original, req *http.Request) (*http.Response, error) {
	resp, err := t.base.RoundTrip(req)
	if resp != nil {
		resp.Request = original
	}
	return resp, err
}

// withToken returns a copy of the request with the token: a RoundTripper must
// not change its request.
func withToken(r *http.Request, token *Token) *http.Request {
	req := r.Clone(r.Context())
	req.Header.Set("Authorization", token.Authorization())
	return req
}

// replay returns the request in a form that can be sent again. ok is false if
// its body cannot.
func replay(r *http.Request) (retry *http.Request, ok bool) {
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
	retry = r.Clone(r.Context())
	retry.Body = body
	return retry, true
}

// leftOrigin reports whether any redirect that led to the request left the
// origin of the first request.
func leftOrigin(r *http.Request) bool {
	for hop := r; hop.Response != nil; {
		previous := hop.Response.Request
		if previous == nil || origin(previous.URL) != origin(r.URL) {
			return true
		}
		hop = previous
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

// drain reads the rest of an unused response, up to a limit, so that its
// connection can be reused.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	_ = resp.Body.Close()
}
