package server_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/server"
)

// deafConn hides from a client how many headers the server accepts. A server's
// SETTINGS frame is the first that it sends.
type deafConn struct {
	net.Conn

	settings []byte // that the client has not read yet
	begun    bool
}

func (c *deafConn) Read(p []byte) (int, error) {
	if !c.begun {
		c.begun = true
		if err := c.readSettings(); err != nil {
			return 0, err
		}
	}
	if len(c.settings) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.settings)
	c.settings = c.settings[n:]
	return n, nil
}

func (c *deafConn) readSettings() error {
	const maxHeaderListSize, unknown = 6, 0xf000
	var head [9]byte
	if _, err := io.ReadFull(c.Conn, head[:]); err != nil {
		return err
	}
	c.settings = make([]byte, 9+binary.BigEndian.Uint32(head[:])>>8)
	copy(c.settings, head[:])
	if _, err := io.ReadFull(c.Conn, c.settings[9:]); err != nil || head[3] != apitest.Settings {
		return err
	}
	for at := 9; at < len(c.settings); at += 6 {
		if binary.BigEndian.Uint16(c.settings[at:]) == maxHeaderListSize {
			binary.BigEndian.PutUint16(c.settings[at:], unknown)
		}
	}
	return nil
}

// deaf connects a client that does not know how many headers the server accepts.
func (w *world) deaf(config *tls.Config) (conn *grpc.ClientConn, connections *atomic.Int32) {
	w.t.Helper()
	config.NextProtos = []string{"h2"}
	connections = &atomic.Int32{}
	conn = must(grpc.NewClient("passthrough:///broker", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			connections.Add(1)
			raw, err := w.listener.DialContext(ctx)
			if err != nil {
				return nil, err
			}
			return &deafConn{Conn: tls.Client(raw, config)}, nil
		})))
	w.t.Cleanup(func() { _ = conn.Close() })
	return conn, connections
}

// manyHeaders are about so many KiB of headers: in one, or in many.
func manyHeaders(ctx context.Context, kib int, one bool) context.Context {
	if one {
		return metadata.AppendToOutgoingContext(ctx, "x-much", strings.Repeat("x", kib<<10))
	}
	var headers []string
	for range kib {
		headers = append(headers, "x-much", strings.Repeat("x", 1<<10-len("x-much")-32))
	}
	return metadata.AppendToOutgoingContext(ctx, headers...)
}

func TestTooManyHeadersFailTheCallOnly(t *testing.T) {
	w := newWorld(t)
	for name, config := range map[string]*tls.Config{"a caller": w.with(w.ca, template(checkout)), "a stranger": w.anonymous()} {
		t.Run(name, func(t *testing.T) {
			conn, connections := w.deaf(config)
			api := tokenbrokerv1.NewTokenBrokerServiceClient(conn)
			ctx := metadata.NewOutgoingContext(t.Context(), bearer(w.jwt(nil)))
			watch := must(api.WatchToken(ctx, &tokenbrokerv1.WatchTokenRequest{ClientName: "orders"}))
			must(watch.Recv())
			release := w.hold()
			call := make(chan error, 1)
			go func() {
				_, err := api.GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: "orders", Scopes: []string{"read"}})
				call <- err
			}()
			for i := range 100 {
				kib := 12 + i*53/100 // up to 64
				_, err := api.GetToken(manyHeaders(ctx, kib, i%2 == 0), &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
				if kib < 16 && err != nil || kib >= 16 && reasonOf(err) != apierror.ReasonHeadersTooLarge {
					t.Fatalf("%d KiB: %v", kib, err)
				}
			}
			release()
			if err := <-call; err != nil {
				t.Error("the call:", err)
			}
			must(tokenbrokerv1.NewAdminServiceClient(w.connect(w.with(w.ca, template(checkout)))).PurgeTokens(t.Context(), &tokenbrokerv1.PurgeTokensRequest{ClientName: "orders", RequestId: name}))
			if _, err := watch.Recv(); err != nil {
				t.Error("the watch:", err)
			}
			if n := connections.Load(); n != 1 {
				t.Errorf("%d connections", n)
			}
		})
	}
	if n := w.count("tokenbroker_limited_calls_total", map[string]string{"limit": "headers"}); n != 2*92 {
		t.Errorf("%v refusals are counted", n)
	}
}

func TestHeadersAreBounded(t *testing.T) {
	for name, tt := range map[string]struct {
		change   func(*server.Config)
		fits     int // KiB
		too      int
		token    int
		tooToken int
	}{
		"by default":    {func(*server.Config) {}, 15, 16, 15, 33},
		"as configured": {func(c *server.Config) { c.Limits.HeaderSize, c.Limits.TokenSize = 8<<10, 32<<10 }, 7, 8, 31, 41},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tt.change)
			api := w.api(w.with(w.ca, template(checkout)))
			get := func(ctx context.Context) error {
				_, err := api.GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
				return err
			}
			presenting := func(kib int) context.Context {
				return metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+strings.Repeat("x", kib<<10))
			}
			if err := get(manyHeaders(t.Context(), tt.fits, true)); err != nil {
				t.Error(err)
			}
			if err := get(manyHeaders(presenting(tt.token), tt.fits, false)); err != nil {
				t.Error("beside a token:", err)
			}
			for what, ctx := range map[string]context.Context{
				"one":       manyHeaders(t.Context(), tt.too, true),
				"many":      manyHeaders(t.Context(), tt.too, false),
				"binary":    metadata.AppendToOutgoingContext(t.Context(), "x-much-bin", strings.Repeat("x", tt.too<<10*3/4)),
				"the token": presenting(tt.tooToken),
			} {
				if err := get(ctx); status.Code(err) != codes.ResourceExhausted || reasonOf(err) != apierror.ReasonHeadersTooLarge {
					t.Errorf("%s: %v", what, err)
				}
			}
			mustGet(t, api, "afterwards")
		})
	}
}

func TestEndlessHeadersCloseTheConnection(t *testing.T) {
	w := newWorld(t)
	h := w.raw(w.anonymous())
	stream := h.Stream()
	field := append([]byte{0, 1, 'x', 127, 0x81, 0x07}, strings.Repeat("v", 1<<10)...) // its value has a length of 127 + 0x381
	err := h.Send(apitest.Frame(apitest.Headers, 0, stream, nil))
	for range 10_000 { // far beyond what buffers on the way hold
		if err != nil {
			return
		}
		err = h.Send(apitest.Frame(apitest.Continuation, 0, stream, field))
	}
	t.Error("10,000 KiB of headers were read")
}
