package verify_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
	"github.com/cezzis/tokenbroker/internal/verify/jwks"
)

type jsonObject = josetest.JSON

const (
	issuerA  = "https://a.example"
	issuerB  = "https://b.example"
	audience = "https://api.example"
)

// site is an issuer's web site. It is a RoundTripper instead of a server, because real
// connections stop the clock of a synctest bubble.
type site struct {
	mu       sync.Mutex
	requests []time.Time
	urls     []string
	answer   func(*http.Request) (*http.Response, error)
}

// serve makes a site answer with a body.
func serve(body []byte) *site {
	s := new(site)
	s.set(respond(http.StatusOK, body, nil))
	return s
}

func respond(status int, body []byte, header http.Header) func(*http.Request) (*http.Response, error) {
	if header == nil {
		header = http.Header{}
	}
	return func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
	}
}

// hang never answers.
func hang(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// after answers late.
func after(delay time.Duration, answer func(*http.Request) (*http.Response, error)) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		select {
		case <-time.After(delay):
			return answer(r)
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
}

func (s *site) set(answer func(*http.Request) (*http.Response, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *site) publish(keys ...jsonObject) { s.set(respond(http.StatusOK, josetest.Set(keys...), nil)) }

func (s *site) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	s.requests = append(s.requests, time.Now())
	s.urls = append(s.urls, r.URL.String())
	answer := s.answer
	s.mu.Unlock()
	return answer(r)
}

func (s *site) fetches() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.requests)
}

func (s *site) times() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// sites are the web of a test, by host.
type sites map[string]*site

func (s sites) RoundTrip(r *http.Request) (*http.Response, error) { return s[r.URL.Host].RoundTrip(r) }

// configOf is an issuer with keys at /jwks and everything else as by default.
func configOf(issuer string) verify.IssuerConfig {
	return verify.IssuerConfig{Issuer: issuer, Keys: jwks.Config{URL: issuer + "/jwks"}, Audiences: []string{audience}, Algorithms: jose.Algorithms()}
}

func newVerifier(t testing.TB, web http.RoundTripper, issuers ...verify.IssuerConfig) *verify.Verifier {
	t.Helper()
	return newCached(t, 0, web, issuers...)
}

const noCache = -1

func newCached(t testing.TB, cacheBytes int64, web http.RoundTripper, issuers ...verify.IssuerConfig) *verify.Verifier {
	t.Helper()
	v, err := verify.New(verify.Config{Issuers: issuers, HTTP: discovery.NewHTTPClient(web), CacheBytes: cacheBytes}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// load loads the keys of all issuers once, without Run. A token with an unknown key causes
// no fetch within the next 10 s.
func load(t testing.TB, v *verify.Verifier) *verify.Verifier {
	t.Helper()
	for _, status := range v.Status() {
		if err := v.Refresh(t.Context(), status.Issuer); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

// run runs a Verifier until the test ends.
func run(t testing.TB, v *verify.Verifier) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); v.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
}

// claims are those of a good token of issuer A, with some replaced; nil leaves
// one out.
func claims(others ...jsonObject) jsonObject {
	now := time.Now().Unix()
	all := jsonObject{
		"iss": issuerA, "sub": "alice", "aud": audience, "exp": now + 600, "iat": now, "jti": "id-1", "client_id": "app", "scope": "read write",
	}
	for _, other := range others {
		for name, value := range other {
			if all[name] = value; value == nil {
				delete(all, name)
			}
		}
	}
	return all
}

// outcome returns the result of a verification in one word: "active", a reason or
// "unavailable".
func outcome(t testing.TB, v *verify.Verifier, token string, req verify.Request) string {
	t.Helper()
	result, err := v.Verify(t.Context(), redact.New(token), req)
	return word(t, result, err)
}

func word(t testing.TB, result verify.Result, err error) string {
	t.Helper()
	switch {
	case err != nil && (result.Facts != nil || result.Rejection != nil), err == nil && (result.Facts == nil) == (result.Rejection == nil):
		t.Errorf("not exactly one answer: %+v, %v", result, err)
	case err != nil:
		return "unavailable"
	case result.Rejection != nil:
		return result.Rejection.Reason.String()
	}
	return "active"
}
