package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/client/brokertest"
)

func TestMain(m *testing.M) {
	if os.Getenv("RUN_THE_PROGRAM") != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

func TestProgramFailsIfItCannotStart(t *testing.T) {
	program := exec.CommandContext(t.Context(), os.Args[0])
	program.Env = []string{"RUN_THE_PROGRAM=1", "TOKENBROKER_CA=" + filepath.Join(t.TempDir(), "none")}
	output, err := program.CombinedOutput()
	if err == nil || program.ProcessState.ExitCode() != 1 || !strings.Contains(string(output), "no such file") {
		t.Errorf("%v: %s", err, output)
	}
}

const audience = "https://orders.example.com"

// serve serves in memory until the test ends, and returns how to reach it.
func serve(t *testing.T, server *grpc.Server) grpc.DialOption {
	t.Helper()
	listener := bufconn.Listen(64 << 10)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-ended })
	return grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) })
}

// certificates are what TLS needs at both ends.
func certificates(t *testing.T) (client, server credentials.TransportCredentials) {
	t.Helper()
	lender := httptest.NewTLSServer(nil) // which has a certificate for example.com
	defer lender.Close()
	trusted := x509.NewCertPool()
	trusted.AddCert(lender.Certificate())
	return credentials.NewTLS(&tls.Config{RootCAs: trusted}), credentials.NewTLS(&tls.Config{Certificates: lender.TLS.Certificates})
}

// archive refuses the tokens that it is told to.
type archive struct {
	*orders

	refused atomic.Value
}

func (a *archive) Count(ctx context.Context, of *wrapperspb.StringValue) (*wrapperspb.Int64Value, error) {
	if token := metadata.ValueFromIncomingContext(ctx, "authorization")[0]; a.refused.CompareAndSwap("the next", token) || a.refused.Load() == token {
		return nil, status.Error(codes.Unauthenticated, "refused")
	}
	return a.orders.Count(ctx, of)
}

// From a caller's token to another service and back, through whatever happens.
func TestServiceEndToEnd(t *testing.T) {
	broker := brokertest.New(t, brokertest.WithClients(brokertest.Client{Name: "orders-api", Audiences: []string{audience}}))
	old := &archive{orders: &orders{open: 40}}
	old.refused.Store("")
	v := broker.Client().Verifier(client.RequireAudience(audience), client.RequireScopes("read"))
	ours, theirs := certificates(t)
	archiveServer := grpc.NewServer(grpc.Creds(theirs), grpc.UnaryInterceptor(client.UnaryServerInterceptor(v)))
	registerOrders(archiveServer, old)

	toArchive, err := dialArchive(broker.Client(), "passthrough:///example.com", serve(t, archiveServer), grpc.WithTransportCredentials(ours))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = toArchive.Close() })
	conn, err := grpc.NewClient("passthrough:///orders", grpc.WithTransportCredentials(insecure.NewCredentials()),
		serve(t, newServer(broker.Client(), &orders{open: 2, archive: toArchive})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })

	alice := broker.Mint(brokertest.Claims{Subject: "alice", Scopes: []string{"read"}})
	step := func(what, token string, want codes.Code) {
		t.Helper()
		ctx := t.Context()
		if token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
		}
		if n, err := callCount(ctx, conn, ""); status.Code(err) != want || err == nil && n != 42 {
			t.Errorf("%s: %d, %v", what, n, err)
		}
	}
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Errorf("health: %v", err)
	}
	step("a good token", alice, codes.OK)
	step("no token", "", codes.Unauthenticated)
	step("an expired token", broker.Mint(brokertest.Claims{Lifetime: -time.Minute}), codes.Unauthenticated)
	step("a token without the scope", broker.Mint(brokertest.Claims{}), codes.PermissionDenied)
	old.refused.Store("the next")
	step("the archive refuses our token", alice, codes.OK)
	if n := broker.IdPRequests(); n != 2 {
		t.Errorf("%d tokens were fetched, want the first and its replacement", n)
	}
	broker.Kill()
	step("no broker, a caller that is known", alice, codes.OK)
	step("no broker, a caller that is not", broker.Mint(brokertest.Claims{Subject: "carol", Scopes: []string{"read"}}), codes.Unavailable)
}

func TestClientIsNotTheUserOfItsName(t *testing.T) {
	service := &orders{open: 2}
	for subjectType, want := range map[client.SubjectType]codes.Code{client.SubjectSub: codes.OK, client.SubjectClientID: codes.PermissionDenied} {
		ctx := client.ContextWithClaims(t.Context(), &client.Claims{Subject: "alice", SubjectType: subjectType})
		if _, err := service.Count(ctx, wrapperspb.String("")); status.Code(err) != want {
			t.Errorf("%s: %v, want %v", subjectType, err, want)
		}
	}
}
