package server_test

import (
	"context"
	"path"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/server"
)

// heldStream sends a message only after the client has left.
type heldStream struct {
	grpc.ServerStream

	sending chan<- struct{}
}

func (s *heldStream) SendMsg(message any) error {
	s.sending <- struct{}{}
	<-s.Context().Done()
	return s.ServerStream.SendMsg(message)
}

// ended waits until a call of the method was counted, and returns its code.
func (w *world) ended(method string) string {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for code := codes.OK; code <= codes.Unauthenticated; code++ {
			if w.count("grpc_server_handled_total", map[string]string{"grpc_method": path.Base(method), "grpc_service": strings.Trim(path.Dir(method), "/"), "grpc_code": code.String()}) > 0 {
				return code.String()
			}
		}
	}
	w.t.Fatalf("no call of %s ended", method)
	return ""
}

func TestDisconnectedWatchIsNoFailure(t *testing.T) {
	for name, test := range map[string]struct {
		leave func(cancel context.CancelFunc, conn *grpc.ClientConn)
		ttl   time.Duration
	}{
		"it cancels":               {func(cancel context.CancelFunc, _ *grpc.ClientConn) { cancel() }, time.Minute},
		"its connection is closed": {func(_ context.CancelFunc, conn *grpc.ClientConn) { _ = conn.Close() }, time.Minute},
		"its deadline passes":      {func(context.CancelFunc, *grpc.ClientConn) {}, time.Second},
		"the same for health":      {func(cancel context.CancelFunc, _ *grpc.ClientConn) { cancel() }, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			sending := make(chan struct{}, 1)
			w := newWorld(t, func(c *server.Config) {
				c.Options = append(c.Options, grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
					return handler(srv, &heldStream{stream, sending})
				}))
			})
			conn := w.connect(w.with(w.ca, template(checkout)))
			ctx, cancel := context.WithTimeout(t.Context(), test.ttl)
			defer cancel()
			method := tokenbrokerv1.TokenBrokerService_WatchToken_FullMethodName
			var err error
			if strings.HasSuffix(name, "health") {
				method = healthpb.Health_Watch_FullMethodName
				_, err = healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{})
			} else {
				_, err = tokenbrokerv1.NewTokenBrokerServiceClient(conn).WatchToken(ctx, &tokenbrokerv1.WatchTokenRequest{ClientName: "orders"})
			}
			if err != nil {
				t.Fatal(err)
			}
			<-sending
			test.leave(cancel, conn)
			// The client cancels at its deadline too, and may be faster than the broker's timer.
			if got := w.ended(method); got != codes.Canceled.String() && got != codes.DeadlineExceeded.String() {
				t.Errorf("the call counts as %s", got)
			}
			if strings.Contains(w.Log.String(), `"level":"ERROR"`) {
				t.Errorf("an error is logged: %s", w.Log.String())
			}
		})
	}
}

// rawCodec sends bytes as they are.
type rawCodec struct{ encoding.Codec }

func (rawCodec) Marshal(message any) ([]byte, error) { return message.([]byte), nil }
func (rawCodec) Unmarshal(_ []byte, _ any) error     { return nil }
func (rawCodec) Name() string                        { return "proto" }

func TestBadStreamRequestIsNoFailure(t *testing.T) {
	for name, request := range map[string][]byte{"none": nil, "malformed": {0x0a, 0xff, 0xff}} {
		for _, method := range []string{tokenbrokerv1.TokenBrokerService_WatchToken_FullMethodName, healthpb.Health_Watch_FullMethodName} {
			t.Run(name+method, func(t *testing.T) {
				w := newWorld(t)
				conn := w.connect(w.with(w.ca, template(checkout)))
				stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method, grpc.ForceCodec(rawCodec{}))
				if err != nil {
					t.Fatal(err)
				}
				if request != nil {
					err = stream.SendMsg(request)
				}
				if err == nil {
					err = stream.CloseSend()
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := stream.RecvMsg(nil); err == nil {
					t.Error("the request is answered")
				}
				if got := w.ended(method); got != codes.InvalidArgument.String() {
					t.Errorf("the call counts as %s", got)
				}
			})
		}
	}
}
