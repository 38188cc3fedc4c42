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

// seen is what a server saw of a caller.
type seen struct {
	authorization, agent string
	certificate          []byte // of the caller; nil: none
}

// observer is a server that notes who calls.
type observer struct {
	*grpc.Server

	health *health.Server
	addr   string

	mu    sync.Mutex
	calls []seen
}

func (o *observer) all() []seen {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]seen{}, o.calls...)
}

func (o *observer) last(t *testing.T) seen {
	t.Helper()
	all := o.all()
	if len(all) == 0 {
		t.Fatal("nobody called")
	}
	return all[len(all)-1]
}

// observe serves on the network until the test ends.
func observe(t *testing.T, network, address string, opts ...grpc.ServerOption) *observer {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	o := &observer{Server: grpc.NewServer(opts...), health: health.NewServer(), addr: listener.Addr().String()}
	tokenbrokerv1.RegisterTokenBrokerServiceServer(o, &stub{get: func(ctx context.Context, _ *tokenbrokerv1.GetTokenRequest) (*tokenbrokerv1.GetTokenResponse, error) {
		var call seen
		call.authorization = strings.Join(metadata.ValueFromIncomingContext(ctx, "authorization"), "|")
		call.agent = strings.Join(metadata.ValueFromIncomingContext(ctx, "user-agent"), "|")
		from, _ := peer.FromContext(ctx)
		if info, ok := from.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
			call.certificate = info.State.PeerCertificates[0].Raw
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.calls = append(o.calls, call)
		return answer("token-of-"+o.addr, time.Hour), nil
	}})
	healthpb.RegisterHealthServer(o, o.health)
	o.serving(true)
	ended := make(chan error, 1)
	go func() { ended <- o.Serve(listener) }()
	t.Cleanup(func() { o.Stop(); <-ended })
	return o
}

func (o *observer) serving(yes bool) {
	now := healthpb.HealthCheckResponse_NOT_SERVING
	if yes {
		now = healthpb.HealthCheckResponse_SERVING
	}
	o.health.SetServingStatus(tokenbrokerv1.TokenBrokerService_ServiceDesc.ServiceName, now)
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

// serverTLS wants a certificate of the caller.
func serverTLS(t *testing.T, certs *redistest.Certificates) grpc.ServerOption {
	t.Helper()
	own, err := tls.LoadX509KeyPair(certs.ServerCert, certs.ServerKey)
	if err != nil {
		t.Fatal(err)
	}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(read(t, certs.CA))
	return grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{own}, ClientCAs: authorities, ClientAuth: tls.VerifyClientCertIfGiven}))
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
	o := observe(t, "tcp", "127.0.0.1:0", serverTLS(t, first))
	c := connect(t, o.addr, client.WithTLSFiles(files))
	if _, err := c.Token(t.Context(), name); err != nil || o.last(t).certificate == nil {
		t.Fatalf("with the first files: %v", err)
	}
	before := o.last(t).certificate

	// Files that are being replaced do not matter to a connection that comes then.
	write(t, files.Cert, "half a certif")
	o.Stop()
	o = observe(t, "tcp", o.addr, serverTLS(t, first))
	testkit.Succeeds(t, "while the files are replaced", func() error { _, err := c.Token(t.Context(), name); return err })

	install(second)
	o.Stop()
	o = observe(t, "tcp", o.addr, serverTLS(t, second))
	testkit.Succeeds(t, "with the second files", func() error { _, err := c.Token(t.Context(), name); return err })
	if after := o.last(t).certificate; after == nil || string(after) == string(before) {
		t.Error("the certificate is still the first")
	}
}

func TestUntrustedServerGetsNoCall(t *testing.T) {
	certs, others := redistest.NewCertificates(t), redistest.NewCertificates(t)
	o := observe(t, "tcp", "127.0.0.1:0", serverTLS(t, certs))
	for what, option := range map[string]client.Option{
		"of another authority":         client.WithTLSFiles(client.TLSFiles{CA: others.CA}),
		"with another name":            client.WithTLSFiles(client.TLSFiles{CA: certs.CA, ServerName: "broker.example.com"}),
		"of none of the system's":      client.WithTLS(nil),
		"of another authority, config": client.WithTLS(others.Anonymous()),
	} {
		c := connect(t, o.addr, option, client.WithTokenFile(write(t, filepath.Join(t.TempDir(), "token"), "secret")))
		if _, err := c.Token(t.Context(), name); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", what, err)
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

func TestTokenFileIsReadAgain(t *testing.T) {
	o := observe(t, "tcp", "127.0.0.1:0")
	dir := t.TempDir()
	// As Kubernetes projects it: a link to a directory that is replaced.
	project := func(generation, token string) {
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
	project("1", "first.token")
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
	project("2", "second.token")
	begun := time.Now()
	for presented() != "Bearer second.token" {
		if time.Since(begun) > 5*time.Second {
			t.Fatal("the file was not read again")
		}
	}
	if err := os.Remove(filepath.Join(dir, "current")); err != nil {
		t.Fatal(err)
	}
	for begun := time.Now(); time.Since(begun) < 1200*time.Millisecond; {
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
		made, err := client.New(target, client.WithPlaintext(), client.WithTokenFile(token))
		if (err == nil) != ok {
			t.Errorf("%s: %v", target, err)
		}
		if err == nil {
			_ = made.Close()
		}
		told, err := client.New(target, client.WithPlaintext(), client.WithTokenFile(token), client.WithTokenInPlaintext())
		if err != nil {
			t.Errorf("%s, told: %v", target, err)
			continue
		}
		_ = told.Close()
	}
}

func TestNewRefusesInvalidOptions(t *testing.T) {
	dir := t.TempDir()
	certs := redistest.NewCertificates(t)
	write(t, filepath.Join(dir, "empty"), "\n")
	write(t, filepath.Join(dir, "two"), "a b")
	for what, option := range map[string]client.Option{
		"no such token":          client.WithTokenFile(filepath.Join(dir, "none")),
		"an empty token":         client.WithTokenFile(filepath.Join(dir, "empty")),
		"two tokens":             client.WithTokenFile(filepath.Join(dir, "two")),
		"no such authorities":    client.WithTLSFiles(client.TLSFiles{CA: filepath.Join(dir, "none")}),
		"no authorities":         client.WithTLSFiles(client.TLSFiles{CA: filepath.Join(dir, "two")}),
		"half a pair":            client.WithTLSFiles(client.TLSFiles{Cert: certs.ClientCert}),
		"another's key":          client.WithTLSFiles(client.TLSFiles{Cert: certs.ClientCert, Key: certs.ServerKey}),
		"a target that is none":  client.WithTarget("nonsense:///\x00"),
		"a list with half of it": client.WithTarget("a:1,b"),
	} {
		c, err := client.New("broker.example.com:1", option)
		if err == nil {
			_, err = c.Token(t.Context(), name)
			_ = c.Close()
		}
		if err == nil || strings.Contains(err.Error(), "a b") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestUnixSocketNeedsNoOptions(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	o := observe(t, "unix", socket)
	c := connect(t, "unix://"+socket, client.WithTokenFile(write(t, filepath.Join(t.TempDir(), "token"), "secret")), client.WithUserAgent("checkout/1.4"))
	if _, err := c.Token(t.Context(), name); err != nil || o.last(t).authorization != "Bearer secret" {
		t.Errorf("over a socket: %v", err)
	}
	if agent := o.last(t).agent; !strings.HasPrefix(agent, "checkout/1.4 tokenbroker-go") {
		t.Errorf("user agent %q", agent)
	}
}

// All replicas are used in turn; one that says that it does not serve is left
// alone until it does.
func TestReplicasAreUsedInTurn(t *testing.T) {
	var replicas []*observer
	var addresses []string
	for range 3 {
		o := observe(t, "tcp", "127.0.0.1:0")
		replicas, addresses = append(replicas, o), append(addresses, o.addr)
	}
	c := connect(t, strings.Join(addresses, ","), client.WithPlaintext())
	used := func() map[string]bool {
		found := map[string]bool{}
		for range 12 {
			token, err := c.Token(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			found[token.AccessToken()] = true
		}
		return found
	}
	want := func(n int) {
		t.Helper()
		for begun := time.Now(); len(used()) != n; {
			if time.Since(begun) > 10*time.Second {
				t.Fatalf("%d replicas are used, want %d", len(used()), n)
			}
		}
	}
	want(3)
	replicas[1].serving(false)
	want(2)
	replicas[2].Stop()
	want(1)
	replicas[1].serving(true)
	want(2)
	observe(t, "tcp", addresses[2])
	want(3)
}

// A replica that drains serves until it closes its listener, and may be the only one
// that the client can reach.
func TestDrainingReplicaIsTheLastResort(t *testing.T) {
	one, other := observe(t, "tcp", "127.0.0.1:0"), observe(t, "tcp", "127.0.0.1:0")
	for target, replicas := range map[string][]*observer{one.addr: {one}, one.addr + "," + other.addr: {one, other}} {
		c := connect(t, target, client.WithPlaintext())
		used := func() map[string]bool {
			found := map[string]bool{}
			for range 12 {
				token, err := c.Token(t.Context(), name)
				if err != nil {
					t.Fatalf("%s: %v", target, err)
				}
				found[token.AccessToken()] = true
			}
			return found
		}
		testkit.Eventually(t, target+" leads to all replicas", func() bool { return len(used()) == len(replicas) })
		for _, replica := range replicas {
			replica.serving(false)
		}
		for begun := time.Now(); time.Since(begun) < 500*time.Millisecond; {
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

// handler counts the calls that gRPC tells it of.
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
		t.Errorf("told of %v", h.methods)
	}
}
