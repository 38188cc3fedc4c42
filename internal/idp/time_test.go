package idp_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/token"
)

// script is an IdP without a network, for bubbles: the n-th request gets the
// n-th answer, and the last answer is repeated. A nil one fails to connect.
type script []http.HandlerFunc

type transport func(*http.Request) (*http.Response, error)

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) { return t(r) }

// fetch asks the scripted IdP and returns how many requests that took.
func (s script) fetch(t *testing.T) (grant token.Grant, requests int, err error) {
	t.Helper()
	roundTrip := func(r *http.Request) (*http.Response, error) {
		answer := s[min(requests, len(s)-1)]
		requests++
		if answer == nil {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
		}
		w := httptest.NewRecorder()
		answer(w, r)
		if err := r.Context().Err(); err != nil {
			return nil, err
		}
		return w.Result(), nil
	}
	c := client(t, idp.Config{TokenURL: "https://idp.example/token", HTTP: discovery.NewHTTPClient(transport(roundTrip))})
	grant, err = c.Fetch(t.Context(), version, idp.Request{})
	return grant, requests, err
}

// after takes its time, or what the request leaves it.
func after(delay time.Duration, answer http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(delay):
			answer(w, r)
		case <-r.Context().Done():
		}
	}
}

func TestOneRetryIfTheIdPDidNotProcessTheRequest(t *testing.T) {
	for name, first := range map[string]http.HandlerFunc{
		"a refused connection":         nil,
		"502":                          answers(502, "text/html", ""),
		"503":                          answers(503, "text/html", ""),
		"504":                          answers(504, "text/html", ""),
		"503 with a transient code":    answers(503, jsonType, `{"error":"temporarily_unavailable"}`),
		"503 with a rate limit's end":  answers(503, jsonType, "", "X-RateLimit-Reset", "60"),
		"502 with a body that is JSON": answers(502, jsonType, good),
	} {
		t.Run(name, func(t *testing.T) {
			least, most := time.Hour, time.Duration(0)
			for range 50 {
				synctest.Test(t, func(t *testing.T) {
					start := time.Now()
					grant, requests, err := script{first, grants(good)}.fetch(t)
					if err != nil || requests != 2 {
						t.Fatalf("%d requests, %v", requests, err)
					}
					pause := time.Since(start)
					least, most = min(least, pause), max(most, pause)
					if !grant.RequestedAt.Equal(start.Add(pause)) {
						t.Errorf("asked at %v after the first attempt, not at the second's start", grant.RequestedAt.Sub(start))
					}
				})
			}
			if least < 200*time.Millisecond || most > 600*time.Millisecond || most-least < 100*time.Millisecond {
				t.Errorf("paused %v to %v", least, most)
			}
		})
	}
}

func TestNoSecondRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, requests, err := script{nil, answers(503, jsonType, ""), grants(good)}.fetch(t)
		if fault := isFault(t, err, idp.Transient, "HTTP 503"); requests != 2 || fault.Status != 503 {
			t.Errorf("%d requests", requests)
		}
	})
}

func TestNoRetry(t *testing.T) {
	for name, first := range map[string]http.HandlerFunc{
		"invalid_client":                 answers(401, jsonType, `{"error":"invalid_client"}`),
		"invalid_client with 503":        answers(503, jsonType, `{"error":"invalid_client"}`),
		"401":                            answers(401, jsonType, ``),
		"invalid_scope":                  answers(400, jsonType, `{"error":"invalid_scope"}`),
		"429":                            answers(429, jsonType, ``),
		"503 with Retry-After":           answers(503, jsonType, ``, "Retry-After", "1"),
		"502 with Retry-After":           answers(502, jsonType, ``, "Retry-After", "1"),
		"500":                            answers(500, jsonType, ``),
		"408":                            answers(408, jsonType, ``),
		"404":                            answers(404, jsonType, ``),
		"a redirect":                     answers(307, jsonType, ``, "Location", "https://idp.example/token"),
		"an answer that makes no sense":  answers(200, "text/html", `<html>`),
		"temporarily_unavailable in 400": answers(400, jsonType, `{"error":"temporarily_unavailable"}`),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				_, requests, err := script{first, grants(good)}.fetch(t)
				if err == nil || requests != 1 || time.Since(start) != 0 {
					t.Errorf("%d requests in %v: %v", requests, time.Since(start), err)
				}
			})
		})
	}
}

func TestBudget(t *testing.T) {
	if idp.Budget != 9*time.Second || idp.AttemptTimeout != 8*time.Second {
		t.Fatal("the bounds are others")
	}
	for name, tt := range map[string]struct {
		script   script
		requests int
		elapsed  time.Duration
		granted  bool
	}{
		"an answer just in time":            {script{after(8*time.Second-1, grants(good))}, 1, 8*time.Second - 1, true},
		"an attempt ends at its timeout":    {script{after(time.Minute, grants(good))}, 1, 8 * time.Second, false},
		"too late for a retry":              {script{after(7900*time.Millisecond, answers(503, jsonType, "")), grants(good)}, 1, 7900 * time.Millisecond, false},
		"a retry ends at the budget's end":  {script{after(7*time.Second, answers(503, jsonType, "")), after(time.Minute, grants(good))}, 2, 9 * time.Second, false},
		"a quick failure, and a slow retry": {script{nil, after(7*time.Second, grants(good))}, 2, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				_, requests, err := tt.script.fetch(t)
				if (err == nil) != tt.granted || requests != tt.requests {
					t.Errorf("%d requests: %v", requests, err)
				}
				if elapsed := time.Since(start); tt.elapsed != 0 && elapsed != tt.elapsed {
					t.Errorf("took %v, want %v", elapsed, tt.elapsed)
				}
				if err != nil {
					isFault(t, err, idp.Transient, "")
				}
			})
		})
	}
}

// slowBody trickles until the request ends.
type slowBody struct{ ctx context.Context }

func (b slowBody) Read(p []byte) (int, error) {
	select {
	case <-time.After(time.Second):
		p[0] = ' '
		return 1, nil
	case <-b.ctx.Done():
		return 0, b.ctx.Err()
	}
}

func (b slowBody) Close() error { return nil }

func TestSlowBody(t *testing.T) {
	for status, class := range map[int]idp.Class{200: idp.Transient, 401: idp.CredentialRefused, 429: idp.Throttled, 302: idp.Misconfigured} {
		synctest.Test(t, func(t *testing.T) {
			requests, start := 0, time.Now()
			c := client(t, idp.Config{TokenURL: "https://idp.example/token", HTTP: discovery.NewHTTPClient(transport(func(r *http.Request) (*http.Response, error) {
				requests++
				return &http.Response{StatusCode: status, Header: http.Header{}, Body: slowBody{r.Context()}}, nil
			}))})
			_, err := c.Fetch(t.Context(), version, idp.Request{})
			isFault(t, err, class, "")
			if elapsed := time.Since(start); elapsed != idp.AttemptTimeout || requests != 1 {
				t.Errorf("%d: %d requests in %v", status, requests, elapsed)
			}
		})
	}
}

// The body must be closed whatever comes, and drained up to the cap so that the
// connection can be used again.
type countedBody struct {
	io.Reader
	read, closed int
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.read += n
	return n, err
}

func (b *countedBody) Close() error { b.closed++; return nil }

func TestBodyIsDrainedToTheCapAndClosed(t *testing.T) {
	for status := range map[int]bool{200: true, 302: true, 400: true, 401: true, 429: true, 500: true} {
		for _, tt := range []struct{ size, read int }{{0, 0}, {1000, 1000}, {256 << 10, 256 << 10}, {10 << 20, 256<<10 + 1}} {
			body := &countedBody{Reader: strings.NewReader(strings.Repeat(" ", tt.size))}
			c := client(t, idp.Config{TokenURL: "https://idp.example/token", HTTP: discovery.NewHTTPClient(transport(func(*http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: status, Header: http.Header{}, Body: body}, nil
			}))})
			if _, err := c.Fetch(t.Context(), version, idp.Request{}); err == nil {
				t.Error("no error")
			}
			if body.read != tt.read || body.closed == 0 {
				t.Errorf("%d: %d of %d bytes were read, want %d; closed %d times", status, body.read, tt.size, tt.read, body.closed)
			}
		}
	}
}

func TestCallersDeadlineEndsTheFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		requests, start := 0, time.Now()
		c := client(t, idp.Config{TokenURL: "https://idp.example/token", HTTP: discovery.NewHTTPClient(transport(func(r *http.Request) (*http.Response, error) {
			requests++
			<-r.Context().Done()
			return nil, r.Context().Err()
		}))})
		_, err := c.Fetch(ctx, version, idp.Request{})
		isFault(t, err, idp.Transient, "did not respond")
		if !errors.Is(err, context.DeadlineExceeded) || requests != 1 || time.Since(start) != 100*time.Millisecond {
			t.Errorf("%d requests in %v: %v", requests, time.Since(start), err)
		}
	})
}

func TestDiscoveryIsWithinTheBudgetOfTheFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := discovery.NewHTTPClient(transport(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}))
		issuer := discovery.New(discovery.Config{Issuer: "https://idp.example", HTTP: slow})
		start := time.Now()
		_, err := client(t, idp.Config{Issuer: issuer, HTTP: slow}).Fetch(t.Context(), version, idp.Request{})
		isFault(t, err, idp.Transient, "cannot be found")
		if elapsed := time.Since(start); elapsed != discovery.Timeout {
			t.Errorf("took %v", elapsed)
		}
	})
}
