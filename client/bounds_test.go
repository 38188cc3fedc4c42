package client_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cezzis/tokenbroker/client"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

func withoutLog() client.Option { return client.WithLogger(logTo(io.Discard)) }

// A token is not returned in the last tenth of its life, or in the last 10 s.
func TestSource_expiryMargin(t *testing.T) {
	for life, margin := range map[time.Duration]time.Duration{
		10 * time.Second: time.Second, 90 * time.Second: 9 * time.Second, 100 * time.Second: 10 * time.Second,
		110 * time.Second: 10 * time.Second, time.Hour: 10 * time.Second,
	} {
		t.Run(fmt.Sprint(life), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var once sync.Once
				s := &stub{get: func(context.Context, *tokenbrokerv1.GetTokenRequest) (*tokenbrokerv1.GetTokenResponse, error) {
					var resp *tokenbrokerv1.GetTokenResponse
					once.Do(func() { resp = newTokenResponse("only", life) })
					if resp == nil {
						return nil, status.Error(codes.FailedPrecondition, "there is no other")
					}
					return resp, nil
				}}
				source := s.serve(t, polling(), withoutLog()).TokenSource(name)
				mustToken(t, source)
				time.Sleep(life - margin - time.Millisecond)
				mustToken(t, source)
				time.Sleep(time.Millisecond)
				if token, err := source.Token(t.Context()); err == nil {
					t.Errorf("a token was returned %v before it expires", time.Until(token.ExpiresAt()))
				}
			})
		})
	}
}

// pausesAfter returns the pauses between the calls of a source if the broker fails.
func pausesAfter(t *testing.T, err error, calls int) (pauses []time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var at []time.Time
		s := &stub{get: func(context.Context, *tokenbrokerv1.GetTokenRequest) (*tokenbrokerv1.GetTokenResponse, error) {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Now())
			return nil, err
		}}
		source := s.serve(t, polling(), withoutLog()).TokenSource(name)
		for {
			_, _ = source.Token(t.Context())
			mu.Lock()
			if len(at) > calls {
				break
			}
			mu.Unlock()
			time.Sleep(time.Millisecond)
		}
		defer mu.Unlock()
		for i := range calls {
			pauses = append(pauses, at[i+1].Sub(at[i]))
		}
	})
	return pauses
}

func TestSource_backoffBounds(t *testing.T) {
	for range 20 { // the pauses are drawn at random
		for i, pause := range pausesAfter(t, status.Error(codes.FailedPrecondition, "no"), 9) {
			limit := min(200*time.Millisecond<<i, 10*time.Second)
			if pause < limit/2 || pause > limit+time.Millisecond {
				t.Fatalf("pause %d is %v, not between %v and %v", i+1, pause, limit/2, limit)
			}
		}
	}
}

func TestSource_retryAfterAtMost30Seconds(t *testing.T) {
	for advised, want := range map[time.Duration]struct{ least, most time.Duration }{
		time.Millisecond: {100 * time.Millisecond, 200 * time.Millisecond}, // less than the source's own pause
		20 * time.Second: {20 * time.Second, 22 * time.Second},
		30 * time.Second: {30 * time.Second, 33 * time.Second},
		time.Hour:        {30 * time.Second, 33 * time.Second},
	} {
		st, err := status.New(codes.ResourceExhausted, "wait").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(advised)})
		if err != nil {
			t.Fatal(err)
		}
		if pause := pausesAfter(t, st.Err(), 1)[0]; pause < want.least || pause > want.most+time.Millisecond {
			t.Errorf("advised %v: the source waited %v, not between %v and %v", advised, pause, want.least, want.most)
		}
	}
}

// Retry-After is in whole seconds: rounded up, and never 0.
func TestMiddlewareRoundsRetryAfterUp(t *testing.T) {
	for advised, want := range map[time.Duration]string{
		0: "1", time.Millisecond: "1", time.Second: "1", time.Second + time.Millisecond: "2", 17 * time.Second: "17",
	} {
		st, err := status.New(codes.Unavailable, "wait").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(advised)})
		if err != nil {
			t.Fatal(err)
		}
		s := &stub{verify: func(context.Context, *tokenbrokerv1.VerifyTokenRequest) (*tokenbrokerv1.VerifyTokenResponse, error) {
			return nil, st.Err()
		}}
		handler := client.HTTPMiddleware(s.serve(t, withoutLog()).Verifier())(http.HandlerFunc(greet))
		response := get(handler, "/", "Bearer a.b.c")
		if got := response.Header.Get("Retry-After"); response.StatusCode != http.StatusServiceUnavailable || got != want {
			t.Errorf("advised %v: %d, Retry-After %q, want %q", advised, response.StatusCode, got, want)
		}
	}
}
