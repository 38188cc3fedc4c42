package edge

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// bareVariable has the program of these tests serve a bare gRPC server at its value.
const bareVariable = "TOKENBROKER_E2E_BARE"

// bareService answers with one token.
type bareService struct {
	tokenbrokerv1.UnimplementedTokenBrokerServiceServer
}

func (bareService) GetToken(context.Context, *tokenbrokerv1.GetTokenRequest) (*tokenbrokerv1.GetTokenResponse, error) {
	return &tokenbrokerv1.GetTokenResponse{AccessToken: "token", TokenType: "Bearer", ExpiresAt: timestamppb.New(time.Now().Add(time.Hour))}, nil
}

// serveBare serves with the defaults of gRPC until the process ends.
func serveBare(address string) error {
	var network net.ListenConfig
	listener, err := network.Listen(context.Background(), "tcp", address)
	if err != nil {
		return err
	}
	bare := grpc.NewServer()
	tokenbrokerv1.RegisterTokenBrokerServiceServer(bare, bareService{})
	return bare.Serve(listener)
}

// resetFlood opens and resets calls over some connections for some time, and connects
// again at once when a connection is closed.
type resetFlood struct{ streams, connections atomic.Int64 }

func (f *resetFlood) run(address string, lasts time.Duration) {
	const connections, batch = 4, 100
	ctx, cancel := context.WithTimeout(context.Background(), lasts)
	defer cancel()
	var senders sync.WaitGroup
	for range connections {
		senders.Go(func() {
			for ctx.Err() == nil {
				f.connections.Add(1)
				f.once(ctx, address, batch)
			}
		})
	}
	senders.Wait()
}

func (f *resetFlood) once(ctx context.Context, address string, batch int) {
	var network net.Dialer
	conn, err := network.DialContext(ctx, "tcp", address)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	h, err := apitest.NewHTTP2(conn)
	for err == nil && ctx.Err() == nil {
		var frames [][]byte
		for range batch {
			stream := h.Stream()
			frames = append(frames, apitest.Call(stream, tokenbrokerv1.TokenBrokerService_GetToken_FullMethodName), apitest.ResetOf(stream))
		}
		if err = h.Send(frames...); err == nil {
			f.streams.Add(int64(batch))
		}
	}
}

// besideResets makes good calls while others flood the server, and returns how many
// failed.
func besideResets(t *testing.T, what, address string, lasts time.Duration, header metadata.MD) (failed int, flood *resetFlood) {
	t.Helper()
	conn := harness.Must(grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials())))
	defer func() { _ = conn.Close() }()
	api := tokenbrokerv1.NewTokenBrokerServiceClient(conn)
	call := func() (time.Duration, error) {
		ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(t.Context(), header), 5*time.Second)
		defer cancel()
		begun := time.Now()
		_, err := api.GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
		return time.Since(begun), err
	}
	testkit.Eventually(t, what+" answers", func() bool { _, err := call(); return err == nil })
	flood = &resetFlood{}
	done := make(chan struct{})
	go func() { defer close(done); flood.run(address, lasts) }()
	var mu sync.Mutex
	var took []time.Duration
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(10 * time.Millisecond):
				}
				d, err := call()
				mu.Lock()
				took = append(took, d)
				if err != nil {
					failed++
					t.Logf("%s: %v", what, err)
				}
				mu.Unlock()
			}
		})
	}
	callers.Wait()
	p50, p99 := quantiles(took)
	t.Logf("%s: %d good calls, %d failed, p50 %v, p99 %v, beside %d resets over %d connections in %v",
		what, len(took), failed, p50, p99, flood.streams.Load(), flood.connections.Load(), lasts)
	if len(took) == 0 || flood.streams.Load() == 0 {
		t.Errorf("%s: the test tests nothing", what)
	}
	return failed, flood
}

// Clients that were not identified open and reset calls as fast as they can. Good calls
// do no worse than with a bare gRPC server.
func TestResetFloodFailsNoGoodCall(t *testing.T) {
	lasts := 2 * time.Second
	if harness.IsLong() {
		lasts = 6 * time.Second
	}
	address := harness.FreeAddress(t)
	bare := harness.Start(t, t.TempDir(), []string{bareVariable + "=" + address}, harness.Must(os.Executable()))
	besideResets(t, "bare gRPC", address, lasts, nil)
	bare.Stop(t, os.Kill)

	key := josetest.New(t, "EdDSA", "key")
	keys, idp := startKeyServer(t, key), harness.SimpleIdP(t, time.Hour)
	b := &harness.Broker{Grpc: harness.FreeAddress(t), Ops: harness.FreeAddress(t)}
	b.File = harness.WriteFile(t, "broker.yaml", fmt.Sprintf("listen: {grpc: {address: %q, plaintext: true}, ops: %q}\n", b.Grpc, b.Ops)+
		fmt.Sprintf("issuers: [{issuer: %q, jwks_url: %q, audiences: [tokenbroker], algorithms: [EdDSA]}]\n", minterIssuer, keys.URL)+
		fmt.Sprintf("callers: [{name: alice, issuer: %q, subject: alice, roles: [all]}]\n", minterIssuer)+
		"roles: {all: {get: [{client: orders}]}}\n"+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}))
	b.Launch(t, "broker")
	b.Await(t)
	now := time.Now().Unix()
	jwt := key.Token(key.Header(), josetest.JSON{
		"iss": minterIssuer, "sub": "alice", "aud": "tokenbroker", "exp": now + 3600, "iat": now, "client_id": "app", "jti": "1",
	})
	failed, flood := besideResets(t, "the broker", b.Grpc, lasts, metadata.Pairs("authorization", "Bearer "+jwt))
	if failed > 0 {
		t.Errorf("%d good calls failed", failed)
	}
	if closed := b.Metric(t, `tokenbroker_handshake_failures_total{reason="too_many_frames"}`); closed == 0 || flood.connections.Load() <= 4 {
		t.Errorf("%v connections were closed", closed)
	}
}
