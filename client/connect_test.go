package client_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/client/brokertest"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// recordedCall is the credentials and user agent of a call.
type recordedCall struct {
	authorization, agent string
	certificate          []byte // of the caller; may be nil
}

// recordingServer is a server that records its calls.
type recordingServer struct {
	*grpc.Server

	health *health.Server
	addr   string

	mu    sync.Mutex
	calls []recordedCall
}

func (o *recordingServer) all() []recordedCall {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]recordedCall{}, o.calls...)
}

func (o *recordingServer) last(t *testing.T) recordedCall {
	t.Helper()
	all := o.all()
	if len(all) == 0 {
		t.Fatal("the server was not called")
	}
	return all[len(all)-1]
}

// startRecordingServer serves on the network until the test ends.
func startRecordingServer(t *testing.T, network, address string, opts ...grpc.ServerOption) *recordingServer {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	o := &recordingServer{Server: grpc.NewServer(opts...), health: health.NewServer(), addr: listener.Addr().String()}
	tokenbrokerv1.RegisterTokenBrokerServiceServer(o, &stub{get: func(ctx context.Context, _ *tokenbrokerv1.GetTokenRequest) (*tokenbrokerv1.GetTokenResponse, error) {
		var call recordedCall
		call.authorization = strings.Join(metadata.ValueFromIncomingContext(ctx, "authorization"), "|")
		call.agent = strings.Join(metadata.ValueFromIncomingContext(ctx, "user-agent"), "|")
		from, _ := peer.FromContext(ctx)
		if info, ok := from.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
			call.certificate = info.State.PeerCertificates[0].Raw
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.calls = append(o.calls, call)
		return newTokenResponse("token-of-"+o.addr, time.Hour), nil
	}})
	healthpb.RegisterHealthServer(o, o.health)
	o.serving(true)
	ended := make(chan error, 1)
	go func() { ended <- o.Serve(listener) }()
	t.Cleanup(func() { o.Stop(); <-ended })
	return o
}

func (o *recordingServer) serving(serving bool) {
	status := healthpb.HealthCheckResponse_NOT_SERVING
	if serving {
		status = healthpb.HealthCheckResponse_SERVING
	}
	o.health.SetServingStatus(tokenbrokerv1.TokenBrokerService_ServiceDesc.ServiceName, status)
}

func connect(t *testing.T, target string, opts ...client.Option) *client.Client {
	t.Helper()
	c, err := client.New(target, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// serverTLS requests a certificate of the caller.
func serverTLS(t *testing.T, certs *redistest.Certificates) grpc.ServerOption {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(certs.ServerCert, certs.ServerKey)
	if err != nil {
		t.Fatal(err)
	}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(read(t, certs.CA))
	return grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: authorities, ClientAuth: tls.VerifyClientCertIfGiven}))
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func write(t *testing.T, file, text string) string {
	t.Helper()
	testkit.WriteFile(t, file, text)
	return file
}

func TestTLSFilesAreReadForEachConnection(t *testing.T) {
	first, second := redistest.NewCertificates(t), redistest.NewCertificates(t)
	dir := t.TempDir()
	files := client.TLSFiles{CA: filepath.Join(dir, "ca"), Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
	install := func(certs *redistest.Certificates) {
		write(t, files.CA, string(read(t, certs.CA)))
		write(t, files.Cert, string(read(t, certs.ClientCert)))
		write(t, files.Key, string(read(t, certs.ClientKey)))
	}
	install(first)
	o := startRecordingServer(t, "tcp", "127.0.0.1:0", serverTLS(t, first))
	c := connect(t, o.addr, client.WithTLSFiles(files))
	if _, err := c.Token(t.Context(), name); err != nil || o.last(t).certificate == nil {
		t.Fatalf("with the first files: %v", err)
	}
	before := o.last(t).certificate

	// A new connection does not fail while the files are being replaced.
	write(t, files.Cert, "half a certif")
	o.Stop()
	o = startRecordingServer(t, "tcp", o.addr, serverTLS(t, first))
	testkit.Succeeds(t, "while the files are replaced", func() error { _, err := c.Token(t.Context(), name); return err })

	install(second)
	o.Stop()
	o = startRecordingServer(t, "tcp", o.addr, serverTLS(t, second))
	testkit.Succeeds(t, "with the second files", func() error { _, err := c.Token(t.Context(), name); return err })
	if after := o.last(t).certificate; after == nil || string(after) == string(before) {
		t.Error("the certificate is still the first")
	}
}

func TestUntrustedServerGetsNoCall(t *testing.T) {
	certs, others := redistest.NewCertificates(t), redistest.NewCertificates(t)
	o := startRecordingServer(t, "tcp", "127.0.0.1:0", serverTLS(t, certs))
	for label, option := range map[string]client.Option{
		"of another authority":         client.WithTLSFiles(client.TLSFiles{CA: others.CA}),
		"with another name":            client.WithTLSFiles(client.TLSFiles{CA: certs.CA, ServerName: "broker.example.com"}),
		"of an unknown authority":      client.WithTLS(nil),
		"of another authority, config": client.WithTLS(others.Anonymous()),
	} {
		c := connect(t, o.addr, option, client.WithTokenFile(write(t, filepath.Join(t.TempDir(), "token"), "secret")))
		if _, err := c.Token(t.Context(), name); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", label, err)
		}
	}
	if len(o.all()) > 0 {
		t.Error("the server was called")
	}
	c := connect(t, o.addr, client.WithTLSFiles(client.TLSFiles{CA: certs.CA, ServerName: "localhost"}))
	if _, err := c.Token(t.Context(), name); err != nil {
		t.Errorf("with its name: %v", err)
	}
}

func TestUnknownHostIsNamed(t *testing.T) {
	c := connect(t, "dns:///broker.invalid:8443", client.WithPlaintext())
	_, err := c.Token(t.Context(), name)
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "host") {
		t.Errorf("got %v, want the host that cannot be resolved", err)
	}
}

func TestTokenFileIsReadAgain(t *testing.T) {
	o := startRecordingServer(t, "tcp", "127.0.0.1:0")
	dir := t.TempDir()
	// As Kubernetes projects it: a link to a directory that is replaced.
	replace := func(generation, token string) {
		if err := os.Mkdir(filepath.Join(dir, generation), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, generation, "token"), token+"\n")
		if err := os.Symlink(generation, filepath.Join(dir, "new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "current")); err != nil {
			t.Fatal(err)
		}
	}
	replace("1", "first.token")
	c := connect(t, o.addr, client.WithPlaintext(), client.WithTokenFile(filepath.Join(dir, "current", "token")))
	presented := func() string {
		if _, err := c.Token(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		return o.last(t).authorization
	}
	if got := presented(); got != "Bearer first.token" {
		t.Errorf("presented %q", got)
	}
	replace("2", "second.token")
	start := time.Now()
	for presented() != "Bearer second.token" {
		if time.Since(start) > 5*time.Second {
			t.Fatal("the file was not read again")
		}
	}
	if err := os.Remove(filepath.Join(dir, "current")); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); time.Since(start) < 1200*time.Millisecond; {
		if got := presented(); got != "Bearer second.token" {
			t.Fatalf("presented %q while the file is away", got)
		}
	}
}

func TestTokenNeedsTLSBeyondTheHost(t *testing.T) {
	token := write(t, filepath.Join(t.TempDir(), "token"), "secret")
	for target, ok := range map[string]bool{
		"127.0.0.1:1": true, "localhost:1": true, "[::1]:1": true, "dns:///localhost:1": true, "unix:///run/broker.sock": true,
		"127.0.0.1:1,localhost:2": true, "127.0.0.1:1,broker.example.com:1": false,
		"broker.example.com:1": false, "dns:///broker.example.com:1": false, "10.0.0.1:1": false, "localhost.example.com:1": false, "": false,
	} {
		c, err := client.New(target, client.WithPlaintext(), client.WithTokenFile(token))
		if (err == nil) != ok {
			t.Errorf("%s: %v", target, err)
		}
		if err == nil {
			_ = c.Close()
		}
		allowed, err := client.New(target, client.WithPlaintext(), client.WithTokenFile(token), client.WithTokenInPlaintext())
		if err != nil {
			t.Errorf("%s with WithTokenInPlaintext: %v", target, err)
			continue
		}
		_ = allowed.Close()
	}
}

func TestNewRefusesInvalidOptions(t *testing.T) {
	dir := t.TempDir()
	certs := redistest.NewCertificates(t)
	write(t, filepath.Join(dir, "empty"), "\n")
	write(t, filepath.Join(dir, "two"), "a b")
	for label, option := range map[string]client.Option{
		"no such token":         client.WithTokenFile(filepath.Join(dir, "none")),
		"an empty token":        client.WithTokenFile(filepath.Join(dir, "empty")),
		"two tokens":            client.WithTokenFile(filepath.Join(dir, "two")),
		"no such authorities":   client.WithTLSFiles(client.TLSFiles{CA: filepath.Join(dir, "none")}),
		"no authorities":        client.WithTLSFiles(client.TLSFiles{CA: filepath.Join(dir, "two")}),
		"half a pair":           client.WithTLSFiles(client.TLSFiles{Cert: certs.ClientCert}),
		"another's key":         client.WithTLSFiles(client.TLSFiles{Cert: certs.ClientCert, Key: certs.ServerKey}),
		"an invalid target":     client.WithTarget("nonsense:///\x00"),
		"a list without a port": client.WithTarget("a:1,b"),
	} {
		c, err := client.New("broker.example.com:1", option)
		if err == nil {
			_, err = c.Token(t.Context(), name)
			_ = c.Close()
		}
		if err == nil || strings.Contains(err.Error(), "a b") {
			t.Errorf("%s: %v", label, err)
		}
	}
}

func TestUnixSocketNeedsNoOptions(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	o := startRecordingServer(t, "unix", socket)
	c := connect(t, "unix://"+socket, client.WithTokenFile(write(t, filepath.Join(t.TempDir(), "token"), "secret")), client.WithUserAgent("checkout/1.4"))
	if _, err := c.Token(t.Context(), name); err != nil || o.last(t).authorization != "Bearer secret" {
		t.Errorf("over a socket: %v", err)
	}
	if agent := o.last(t).agent; !strings.HasPrefix(agent, "checkout/1.4 tokenbroker-go") {
		t.Errorf("user agent %q", agent)
	}
}

// All replicas are used in turn, except those that report not serving.
func TestReplicasAreUsedInTurn(t *testing.T) {
	var replicas []*recordingServer
	var addresses []string
	for range 3 {
		o := startRecordingServer(t, "tcp", "127.0.0.1:0")
		replicas, addresses = append(replicas, o), append(addresses, o.addr)
	}
	c := connect(t, strings.Join(addresses, ","), client.WithPlaintext())
	used := func() map[string]bool {
		tokens := map[string]bool{}
		for range 12 {
			token, err := c.Token(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			tokens[token.AccessToken()] = true
		}
		return tokens
	}
	waitForReplicas := func(n int) {
		t.Helper()
		for start := time.Now(); len(used()) != n; {
			if time.Since(start) > 10*time.Second {
				t.Fatalf("%d replicas are used, want %d", len(used()), n)
			}
		}
	}
	waitForReplicas(3)
	replicas[1].serving(false)
	waitForReplicas(2)
	replicas[2].Stop()
	waitForReplicas(1)
	replicas[1].serving(true)
	waitForReplicas(2)
	startRecordingServer(t, "tcp", addresses[2])
	waitForReplicas(3)
}

// A draining replica serves until it closes its listener, and may be the only reachable
// one.
func TestDrainingReplicaIsTheLastResort(t *testing.T) {
	one, other := startRecordingServer(t, "tcp", "127.0.0.1:0"), startRecordingServer(t, "tcp", "127.0.0.1:0")
	for target, replicas := range map[string][]*recordingServer{one.addr: {one}, one.addr + "," + other.addr: {one, other}} {
		c := connect(t, target, client.WithPlaintext())
		used := func() map[string]bool {
			tokens := map[string]bool{}
			for range 12 {
				token, err := c.Token(t.Context(), name)
				if err != nil {
					t.Fatalf("%s: %v", target, err)
				}
				tokens[token.AccessToken()] = true
			}
			return tokens
		}
		testkit.Eventually(t, target+" leads to all replicas", func() bool { return len(used()) == len(replicas) })
		for _, replica := range replicas {
			replica.serving(false)
		}
		for start := time.Now(); time.Since(start) < 500*time.Millisecond; {
			used()
		}
		if n := len(used()); n != len(replicas) {
			t.Errorf("%s: %d replicas are used while all drain", target, n)
		}
		for _, replica := range replicas {
			replica.serving(true)
		}
	}
}

// handler records the methods of the calls that gRPC reports.
type handler struct {
	stats.Handler

	mu      sync.Mutex
	methods []string
}

func (h *handler) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.methods = append(h.methods, info.FullMethodName)
	return ctx
}

func (*handler) HandleRPC(context.Context, stats.RPCStats) {}

func (*handler) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (*handler) HandleConn(context.Context, stats.ConnStats) {}

func TestStatsHandlerSeesCalls(t *testing.T) {
	b := brokertest.New(t)
	var h handler
	c := b.Client(client.WithStatsHandler(&h))
	if _, err := c.Token(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Contains(h.methods, "/tokenbroker.v1.TokenBrokerService/GetToken") {
		t.Errorf("the handler got %v", h.methods)
	}
}
