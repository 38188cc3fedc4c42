package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// someStatus is a status with a finding.
func someStatus(now time.Time) *tokenbrokerv1.GetStatusResponse {
	return &tokenbrokerv1.GetStatusResponse{
		Replicas: []*tokenbrokerv1.ReplicaStatus{
			{Id: "a", Presence: tokenbrokerv1.ReplicaPresence_REPLICA_PRESENCE_ALIVE, Version: "v1"},
			{Id: "b", Presence: tokenbrokerv1.ReplicaPresence_REPLICA_PRESENCE_LOST, Version: "v1"},
		},
		Store: &tokenbrokerv1.StoreStatus{
			Kind: "redis", Durable: "yes", Evicts: "no",
			Servers: []*tokenbrokerv1.StoreServerStatus{{Name: "r:1", Reads: true, Error: "it is out of memory"}},
		},
		Issuers:      []*tokenbrokerv1.IssuerStatus{{Issuer: "i", KeysLoadedAt: timestamppb.New(now)}},
		Clients:      []*tokenbrokerv1.ClientStatus{{Name: "x", State: tokenbrokerv1.ClientState_CLIENT_STATE_OK}, {Name: "y", State: tokenbrokerv1.ClientState_CLIENT_STATE_NO_SECRET}},
		Certificates: []*tokenbrokerv1.CertificateStatus{{Use: "listener", Name: "broker\x1b[2J", ExpiresAt: timestamppb.New(now)}},
		Findings: []*tokenbrokerv1.Finding{{
			Severity: tokenbrokerv1.FindingSeverity_FINDING_SEVERITY_CRITICAL, Id: "secret-missing", Message: "Client y has no secret.",
			Action: "Set the secret with `broker secret rotate`.", Since: timestamppb.New(now.Add(-2 * time.Minute)),
		}},
	}
}

func TestStatusIsReadAtAGlance(t *testing.T) {
	now := time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)
	wide := `replicas      1 alive of 2, version v1
store         redis r:1 refuses writes: it is out of memory, data is kept on disk
clients       2 configured, 1 ok, 1 no secret
issuers       1 configured, all keys are fetched
certificates  the first expires on 2026-03-01: listener broker\u001b[2J

CRITICAL  Client y has no secret.
          For 2m. Set the secret with ` + "`broker secret rotate`" + `. [secret-missing]

Runbook: https://github.com/cezzis/tokenbroker/blob/main/docs/runbook.md#ID
`
	narrow := `replicas      1 alive of 2, version v1
store         redis r:1 refuses writes:
              it is out of memory, data
              is kept on disk
clients       2 configured, 1 ok, 1 no
              secret
issuers       1 configured, all keys are
              fetched
certificates  the first expires on
              2026-03-01: listener
              broker\u001b[2J

CRITICAL  Client y has no secret.
          For 2m. Set the secret with
          ` + "`broker secret rotate`" + `.
          [secret-missing]
`
	for width, want := range map[int]string{0: wide, 40: narrow} {
		var out bytes.Buffer
		if err := printStatus(&out, someStatus(now), now, width); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("width %d: got\n%swant\n%s", width, out.String(), want)
		}
	}
}

// fakeAdmin serves the status that it has, or an error.
type fakeAdmin struct {
	tokenbrokerv1.UnimplementedAdminServiceServer

	status  *tokenbrokerv1.GetStatusResponse
	clients []*tokenbrokerv1.Client
	err     error
	calls   atomic.Int64
}

func (f *fakeAdmin) GetStatus(context.Context, *tokenbrokerv1.GetStatusRequest) (*tokenbrokerv1.GetStatusResponse, error) {
	f.calls.Add(1)
	return f.status, f.err
}

func (f *fakeAdmin) ListClients(context.Context, *tokenbrokerv1.ListClientsRequest) (*tokenbrokerv1.ListClientsResponse, error) {
	return &tokenbrokerv1.ListClientsResponse{Clients: f.clients}, f.err
}

func (f *fakeAdmin) GetClient(_ context.Context, req *tokenbrokerv1.GetClientRequest) (*tokenbrokerv1.GetClientResponse, error) {
	for _, one := range f.clients {
		if one.GetName() == req.GetClientName() {
			return &tokenbrokerv1.GetClientResponse{Client: one}, nil
		}
	}
	return nil, status.Error(codes.PermissionDenied, "not permitted")
}

// serve serves the fake until the end of the test, and returns its address.
func (f *fakeAdmin) serve(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	tokenbrokerv1.RegisterAdminServiceServer(server, f)
	healthpb.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

// runCommand runs a command, and returns its output and its exit code.
func runCommand(ctx context.Context, args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	code = runTo(ctx, args, strings.NewReader(""), &out, &errs)
	return out.String(), errs.String(), code
}

func TestStatusSetsTheExitCode(t *testing.T) {
	healthy := someStatus(time.Now())
	healthy.Findings = nil
	up, findings := (&fakeAdmin{status: healthy}).serve(t), (&fakeAdmin{status: someStatus(time.Now())}).serve(t)
	forbidden := (&fakeAdmin{err: status.Error(codes.PermissionDenied, "get_status is not permitted")}).serve(t)
	for _, c := range []struct {
		name   string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"no finding", []string{"--addr", up}, 0, "No findings.", ""},
		{"findings", []string{"--addr", findings}, 1, "CRITICAL  Client y has no secret.", ""},
		{"findings in JSON", []string{"--addr", findings, "--json"}, 1, `"id":"secret-missing"`, ""},
		{"unreachable", []string{"--addr", "127.0.0.1:1", "--timeout", "2s"}, 2, "", "broker: "},
		{"not permitted", []string{"--addr", forbidden}, 2, "", "broker: get_status is not permitted (PermissionDenied)"},
		{"an argument", []string{"orders"}, 2, "", "broker: unknown command"},
		{"an unknown flag", []string{"--nosuch"}, 2, "", "broker: unknown flag"},
		{"a bad flag", []string{"--timeout", "soon"}, 2, "", "broker: invalid argument"},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, stderr, code := runCommand(t.Context(), append([]string{"status", "--plaintext"}, c.args...)...)
			if code != c.code || !strings.Contains(stdout, c.stdout) || c.stdout == "" && stdout != "" || !strings.HasPrefix(stderr, c.stderr) || c.stderr == "" && stderr != "" {
				t.Errorf("exit code %d, want %d\n%s%s", code, c.code, stdout, stderr)
			}
		})
	}
}

func TestStatusFitsTheWidth(t *testing.T) {
	t.Setenv("COLUMNS", "50")
	stdout, _, _ := runCommand(t.Context(), "status", "--plaintext", "--addr", (&fakeAdmin{status: someStatus(time.Now())}).serve(t))
	for line := range strings.Lines(stdout) {
		if utf8.RuneCountInString(strings.TrimSuffix(line, "\n")) > 50 {
			t.Errorf("too long: %s", line)
		}
	}
	if !strings.Contains(stdout, "secret-missing") {
		t.Error(stdout)
	}
}

func TestStatusWatchShowsItAgain(t *testing.T) {
	fake := &fakeAdmin{status: someStatus(time.Now())}
	ctx, stop := context.WithCancel(t.Context())
	out, in := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- runTo(ctx, []string{"status", "--watch", "--plaintext", "--addr", fake.serve(t)}, strings.NewReader(""), in, io.Discard)
	}()
	shown := make([]byte, 1<<16)
	for range 2 {
		if n, err := out.Read(shown); err != nil || !strings.Contains(string(shown[:n]), "CRITICAL") {
			t.Fatalf("%s, %v", shown[:n], err)
		}
	}
	stop()
	if got := <-code; got != 0 || fake.calls.Load() < 2 {
		t.Errorf("exit code %d after %d calls", got, fake.calls.Load())
	}
}
