package server_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/server"
)

// limited is a world in which the checkout service has limits.
func limited(t *testing.T, its policy.Limits, change ...func(*server.Config)) *world {
	t.Helper()
	return newWorldOf(t, allowing(withLimits(its)...), change...)
}

func withLimits(its policy.Limits) []policy.CallerConfig {
	callers := callersOfTheWorld()
	callers[0].Limits = &its
	return callers
}

// mustBeLimited fails unless a call was refused because of a limit, with the time
// after which to try again, which it returns.
func mustBeLimited(t *testing.T, err error, reason string) time.Duration {
	t.Helper()
	retry := detail[*errdetails.RetryInfo](err)
	if status.Code(err) != codes.ResourceExhausted || detail[*errdetails.ErrorInfo](err).GetReason() != reason || retry.GetRetryDelay().AsDuration() <= 0 {
		t.Fatalf("want RESOURCE_EXHAUSTED with %s and RetryInfo: %v", reason, err)
	}
	return retry.GetRetryDelay().AsDuration()
}

func TestCallerRateIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := limited(t, policy.Limits{PerSecond: 10, Burst: 5})
		checkoutAPI, gatewayAPI := w.api(w.with(w.ca, template(checkout))), w.api(w.with(w.ca, template(gateway)))
		for range 5 {
			mustGet(t, checkoutAPI, "within the burst")
		}
		wait := mustBeLimited(t, get(t, checkoutAPI), apierror.ReasonRateLimited)
		if wait > 100*time.Millisecond {
			t.Errorf("RetryInfo says %v of a rate of 10 in a second", wait)
		}
		for range 50 {
			mustGet(t, gatewayAPI, "another caller")
		}
		time.Sleep(wait)
		mustGet(t, checkoutAPI, "after the time that RetryInfo says")
		mustBeLimited(t, get(t, checkoutAPI), apierror.ReasonRateLimited)
		labels := map[string]string{"caller": "caller-checkout", "limit": "rate"}
		if n := w.count("tokenbroker_limited_calls_total", labels); n != 2 {
			t.Errorf("%v refusals are counted", n)
		}
		time.Sleep(time.Second)
		stream := w.watch(w.with(w.ca, template(checkout)), nil)
		_ = stream
		for range 4 {
			mustGet(t, checkoutAPI, "beside a watch, which is one call")
		}
		mustBeLimited(t, get(t, checkoutAPI), apierror.ReasonRateLimited)
	})
}

// A new policy neither refills what a caller has used up nor keeps its old limits.
func TestUsedRateOutlivesThePolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := limited(t, policy.Limits{PerSecond: 1, Burst: 3})
		api, setup := w.api(w.with(w.ca, template(checkout))), w.Setup
		apply := func(its policy.Limits) {
			t.Helper()
			setup.Policy = allowing(withLimits(its)...)
			if err := w.Broker.Apply(setup); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			mustGet(t, api, "within the burst")
		}
		for range 5 {
			apply(policy.Limits{PerSecond: 1, Burst: 3})
			mustBeLimited(t, get(t, api), apierror.ReasonRateLimited)
		}
		apply(policy.Limits{PerSecond: 100, Burst: 3})
		mustBeLimited(t, get(t, api), apierror.ReasonRateLimited)
		time.Sleep(50 * time.Millisecond)
		for range 3 {
			mustGet(t, api, "at the new rate")
		}
		mustBeLimited(t, get(t, api), apierror.ReasonRateLimited)
		apply(policy.Limits{})
		for range 100 {
			mustGet(t, api, "without limits")
		}
	})
}

// hold has the IdP of a world wait with its answers until the returned function is
// called.
func (w *world) hold() (release func()) {
	held := make(chan struct{})
	w.IdP.SetAnswer(func(http.ResponseWriter, *http.Request) bool { <-held; return false })
	return func() { close(held) }
}

// begin makes calls that wait, and returns when they do.
func begin(t *testing.T, api tokenbrokerv1.TokenBrokerServiceClient, n int) (done chan error) {
	t.Helper()
	done = make(chan error, n)
	for range n {
		go func() { done <- get(t, api) }()
	}
	synctest.Wait()
	return done
}

func TestConcurrentCallsAreBounded(t *testing.T) {
	for name, tt := range map[string]struct {
		its    policy.Limits
		change func(*server.Config)
		reason string
		others bool // are let in
	}{
		"of a caller": {policy.Limits{Concurrent: 2}, func(*server.Config) {}, apierror.ReasonTooManyCalls, true},
		"of all":      {policy.Limits{}, func(c *server.Config) { c.Limits.InFlight = 2 }, apierror.ReasonOverloaded, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := limited(t, tt.its, tt.change)
				api, other := w.api(w.with(w.ca, template(checkout))), w.api(w.with(w.ca, template(gateway)))
				release := w.hold()
				done := begin(t, api, 2)
				for range 3 {
					mustBeLimited(t, get(t, api), tt.reason)
				}
				others := begin(t, other, 1)
				if !tt.others {
					mustBeLimited(t, <-others, tt.reason)
					others <- nil
				}
				release()
				for _, ended := range []chan error{done, done, others} {
					if err := <-ended; err != nil {
						t.Error(err)
					}
				}
				for range 5 {
					mustGet(t, api, "when they are over")
				}
			})
		})
	}
}

func TestWatchesOfACallerAreBounded(t *testing.T) {
	w := limited(t, policy.Limits{Watches: 2})
	for range 2 {
		w.watch(w.with(w.ca, template(checkout)), nil) // each over a connection of its own
	}
	stream := must(w.api(w.with(w.ca, template(checkout))).WatchToken(t.Context(), &tokenbrokerv1.WatchTokenRequest{ClientName: "orders"}))
	_, err := stream.Recv()
	mustBeLimited(t, err, apierror.ReasonTooManyWatches)
	w.watch(w.with(w.ca, template(gateway)), nil)
}

// halfOpen begins calls over a connection and does not say what they ask.
func halfOpen(t *testing.T, conn *grpc.ClientConn, n int) (end context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	for range n {
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, tokenbrokerv1.TokenBrokerService_GetToken_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = stream.RecvMsg(&tokenbrokerv1.GetTokenResponse{}) }()
	}
	return cancel
}

func TestUnidentifiedCallsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *server.Config) { c.Limits.Streams = 1000 })
		known := w.connect(w.anonymous())
		end := halfOpen(t, known, 500) // before anybody is recognised on it
		defer end()
		mustGet(t, withBearer{tokenbrokerv1.NewTokenBrokerServiceClient(known), w.jwt(nil)}, "by a JWT")

		first, second := w.connect(w.anonymous()), w.connect(w.anonymous())
		endFirst := halfOpen(t, first, 1000)
		endSecond := halfOpen(t, second, 999)
		synctest.Wait()
		mustNot(t, get(t, tokenbrokerv1.NewTokenBrokerServiceClient(second)), "") // the last one that there is room for
		extra := halfOpen(t, second, 1)
		synctest.Wait()
		mustBeLimited(t, get(t, w.api(w.anonymous())), apierror.ReasonOverloaded)
		mustBeLimited(t, get(t, withBearer{w.api(w.anonymous()), w.jwt(nil)}), apierror.ReasonOverloaded)
		mustGet(t, w.api(w.with(w.ca, template(checkout))), "by a certificate")
		mustGet(t, withBearer{tokenbrokerv1.NewTokenBrokerServiceClient(known), w.jwt(nil)}, "by a JWT, over a connection that is known")
		if n := w.count("tokenbroker_limited_calls_total", map[string]string{"limit": "strangers"}); n != 2 {
			t.Errorf("%v refusals are counted", n)
		}

		endFirst()
		synctest.Wait()
		mustGet(t, withBearer{w.api(w.anonymous()), w.jwt(nil)}, "when there is room")
		endSecond()
		extra()
	})
}

// withBearer is a client that presents a JWT.
type withBearer struct {
	tokenbrokerv1.TokenBrokerServiceClient

	token string
}

func (c withBearer) GetToken(ctx context.Context, req *tokenbrokerv1.GetTokenRequest, opts ...grpc.CallOption) (*tokenbrokerv1.GetTokenResponse, error) {
	return c.TokenBrokerServiceClient.GetToken(metadata.NewOutgoingContext(ctx, bearer(c.token)), req, opts...)
}

func TestBadJWTsAreVerifiedForALimitedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		conn := w.connect(w.anonymous())
		api := func(token string) withBearer {
			return withBearer{tokenbrokerv1.NewTokenBrokerServiceClient(conn), token}
		}
		good := w.jwt(nil)
		mustGet(t, api(good), "at first")
		for range 100 {
			mustNot(t, get(t, api(tampered(good))), "not valid")
		}
		wait := mustBeLimited(t, get(t, api(tampered(good))), apierror.ReasonTooManyAttempts)
		mustBeLimited(t, get(t, api(good)), apierror.ReasonTooManyAttempts)
		mustGet(t, withBearer{w.api(w.anonymous()), good}, "over another connection")
		time.Sleep(wait)
		mustGet(t, api(good), "a second later")
	})
}

func TestSilentConnectionsAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *server.Config) { c.Limits.HandshakeTimeout = 3 * time.Second })
		begun := time.Now()
		silent := must(w.listener.DialContext(t.Context()))
		slow := must(w.listener.DialContext(t.Context()))
		hello := []byte{22, 3, 1, 2, 0} // the head of a record, and nothing of what it announces
		must(slow.Write(hello))
		afterTLS := tls.Client(must(w.listener.DialContext(t.Context())), &tls.Config{RootCAs: w.ca.Pool(), ServerName: "broker", NextProtos: []string{"h2"}})
		if err := afterTLS.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		for name, conn := range map[string]net.Conn{"silent": silent, "slow": slow, "silent after TLS": afterTLS} {
			if _, err := io.Copy(io.Discard, conn); err != nil && name != "silent after TLS" {
				t.Errorf("%s: %v", name, err)
			}
			_ = conn.Close()
		}
		if took := time.Since(begun); took > 4*time.Second {
			t.Errorf("closed after %v", took)
		}
		synctest.Wait()
		if n := w.count("tokenbroker_handshake_failures_total", map[string]string{"reason": "timeout"}); n != 2 {
			t.Errorf("%v timeouts are counted", n)
		}
	})
}

func TestConnectionsAreBounded(t *testing.T) {
	w := newWorld(t, func(c *server.Config) { c.Limits.Connections = 2 })
	first, second := w.connect(w.with(w.ca, template(checkout))), w.connect(w.anonymous())
	mustGet(t, tokenbrokerv1.NewTokenBrokerServiceClient(first), "the first")
	mustNot(t, get(t, tokenbrokerv1.NewTokenBrokerServiceClient(second)), "no proof")
	third := w.api(w.with(w.ca, template(checkout)))
	if err := get(t, third); status.Code(err) != codes.Unavailable {
		t.Errorf("a third connection: %v", err)
	}
	if w.count("tokenbroker_handshake_failures_total", map[string]string{"reason": "too_many_connections"}) == 0 || !strings.Contains(w.Log.String(), "too many connections") {
		t.Error("it is neither counted nor logged")
	}
	mustGet(t, tokenbrokerv1.NewTokenBrokerServiceClient(first), "the first again")
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := third.GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: "orders"}, grpc.WaitForReady(true)); err != nil {
		t.Errorf("when there is room: %v", err)
	}
}

// What is not TLS, and what speaks another version, is counted and told nothing.
func TestFailedHandshakesAreCountedByReason(t *testing.T) {
	w := newWorld(t)
	dial := func() net.Conn { return must(w.listener.DialContext(t.Context())) }
	for reason, fail := range map[string]func(conn net.Conn){
		"not_tls": func(conn net.Conn) { must(io.WriteString(conn, "GET / HTTP/1.1\r\nHost: broker\r\n\r\n")) },
		"closed":  func(conn net.Conn) { _ = conn.Close() },
		"protocol": func(conn net.Conn) {
			_ = tls.Client(conn, &tls.Config{ServerName: "broker", RootCAs: w.ca.Pool(), MaxVersion: tls.VersionTLS12}).Handshake()
		},
		"refused_by_client": func(conn net.Conn) {
			_ = tls.Client(conn, &tls.Config{ServerName: "broker", RootCAs: w.strangers.Pool()}).Handshake()
		},
	} {
		conn := dial()
		fail(conn)
		for deadline := time.Now().Add(30 * time.Second); w.count("tokenbroker_handshake_failures_total", map[string]string{"reason": reason}) == 0; {
			if time.Now().After(deadline) {
				t.Fatalf("%s is not counted", reason)
			}
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			_, _ = conn.Read(make([]byte, 1024))
		}
		_ = conn.Close()
	}
	mustGet(t, w.api(w.with(w.ca, template(checkout))), "after all that")
}
