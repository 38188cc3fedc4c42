package server_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/apierror"
)

// dialed is a client that notes when it connects.
type dialed struct {
	*grpc.ClientConn

	times []time.Time
}

func (w *world) dialing(config grpc.DialOption) *dialed {
	w.t.Helper()
	d := &dialed{}
	conn, err := grpc.NewClient("passthrough:///broker", config,
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			d.times = append(d.times, time.Now())
			return w.listener.DialContext(ctx)
		}))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	d.ClientConn = conn
	return d
}

// health is what a new connection gets to know.
func (w *world) health() healthpb.HealthCheckResponse_ServingStatus {
	w.t.Helper()
	got, err := healthpb.NewHealthClient(w.connect(w.anonymous())).Check(w.t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		w.t.Error(err)
	}
	return got.GetStatus()
}

func TestDrain_servesUntilTheDelayIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		mtls := grpc.WithTransportCredentials(credentials.NewTLS(w.with(w.ca, template(checkout))))
		client, watcher := w.dialing(mtls), w.dialing(mtls)
		api := tokenbrokerv1.NewTokenBrokerServiceClient(client)
		mustGet(t, api, "before the drain")
		watch := must(tokenbrokerv1.NewTokenBrokerServiceClient(watcher).WatchToken(t.Context(), &tokenbrokerv1.WatchTokenRequest{ClientName: "orders"}))
		must(watch.Recv())

		begun, stopped := time.Now(), make(chan struct{})
		go func() { defer close(stopped); w.server.Shutdown(5*time.Second, time.Minute) }()
		time.Sleep(100 * time.Millisecond)
		if got := w.health(); got != healthpb.HealthCheckResponse_NOT_SERVING {
			t.Errorf("health while it drains: %v", got)
		}
		for time.Since(begun) < 5*time.Second-time.Millisecond {
			mustGet(t, api, "while it drains")
			time.Sleep(50 * time.Millisecond)
		}
		if len(client.times) < 2 || client.times[1].Sub(begun) > time.Second {
			t.Errorf("the client connected %v after the drain began", client.times)
		}
		_, err := watch.Recv()
		if reason := reasonOf(err); reason != apierror.ReasonShuttingDown || time.Since(begun) < 5*time.Second {
			t.Errorf("the watch ended after %v with %v", time.Since(begun), err)
		}
		<-stopped
		if took := time.Since(begun); took > 6*time.Second {
			t.Errorf("the shutdown took %v", took)
		}
	})
}

func reasonOf(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(interface{ GetReason() string }); ok {
			return info.GetReason()
		}
	}
	return ""
}

// A client that looks at health would fail its calls between NOT_SERVING and GOAWAY.
func TestHealthWatchEndsWithItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		watch := must(healthpb.NewHealthClient(w.connect(w.anonymous())).Watch(t.Context(), &healthpb.HealthCheckRequest{}))
		if got := must(watch.Recv()); got.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Fatalf("before the drain: %v", got)
		}
		begun := time.Now()
		go w.server.Shutdown(5*time.Second, time.Minute)
		got, err := watch.Recv()
		if err != nil || got.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING || time.Since(begun) != 5*time.Second {
			t.Errorf("%v, %v after %v", got, err, time.Since(begun))
		}
		if _, err := watch.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("at the end: %v", err)
		}
	})
}

func TestDrain_callsEndWithinTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.IdP.SetDelay(4 * time.Second)
		api := w.api(w.with(w.ca, template(checkout)))
		answered := make(chan error, 1)
		go func() { answered <- get(t, api) }()
		time.Sleep(time.Second)
		begun := time.Now()
		w.server.Shutdown(2*time.Second, time.Minute)
		if err := <-answered; err != nil || time.Since(begun) < 3*time.Second {
			t.Errorf("the call ended with %v, the shutdown after %v", err, time.Since(begun))
		}
	})
}

func TestShutdown_cutsOffSlowCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		old := w.connect(w.with(w.ca, template(checkout)))
		defer halfOpen(t, old, 1)()
		synctest.Wait()
		begun := time.Now()
		w.server.Shutdown(5*time.Second, 3*time.Second)
		if took := time.Since(begun); took != 8*time.Second {
			t.Errorf("the shutdown took %v", took)
		}
	})
}

// brokenListener fails for good.
type brokenListener struct{ net.Listener }

var errBroken = errors.New("the listener is broken")

func (brokenListener) Accept() (net.Conn, error) { return nil, errBroken }
func (brokenListener) Close() error              { return nil }
func (brokenListener) Addr() net.Addr            { return &net.TCPAddr{} }

func TestDrain_listenerFails(t *testing.T) {
	w := newWorld(t)
	if err := w.server.Serve(brokenListener{}); !errors.Is(err, errBroken) {
		t.Errorf("Serve: %v", err)
	}
	w.server.Shutdown(time.Millisecond, time.Second)
	if err := w.server.Serve(brokenListener{}); err != nil {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}
