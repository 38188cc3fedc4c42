// Package brokertest runs a complete token broker inside a test: the real one,
// with its own identity provider, in memory.
//
//	b := brokertest.New(t)
//	orders := b.Client().TokenSource("orders-api")
//
// The identity provider mints real tokens or returns a text that the test sets
// ([Broker.SetToken]), and fails on demand. [Broker.Mint] makes tokens to
// present to a service that verifies them. [Broker.Kill] and [Broker.Start]
// test an outage of the broker.
//
// The package works inside testing/synctest, except [OnLoopback]: there,
// time.Sleep(time.Hour) returns at once and ages tokens by an hour.
//
// It is not for production: every caller may get every token.
package brokertest

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/test/bufconn"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redact"
)

// Issuer is the issuer of the tokens.
const Issuer = "https://idp.example.com"

// Client is an OAuth client that the broker is configured with.
type Client struct {
	// Name is the name that callers request. Required.
	Name string
	// Audiences that its tokens may be for; the first is the default. Empty:
	// "https://NAME.example.com".
	Audiences []string
	// Scopes of its tokens. Empty: read and write.
	Scopes []string
	// Exchanges are the audiences of the users' tokens that the client exchanges for its
	// own: see [client.OnBehalfOf]. Empty: the client gets tokens of its own.
	Exchanges []string
}

// Option changes the broker that New and Start create.
type Option func(*options)

type options struct {
	clients  []Client
	lifetime time.Duration
	loopback bool
	log      *slog.Logger
}

// WithClients configures the broker with these clients. The default is
// "orders-api" alone.
func WithClients(clients ...Client) Option {
	return func(o *options) { o.clients = append(o.clients, clients...) }
}

// WithLifetime sets the lifetime of tokens, in whole seconds. The default is
// one hour.
func WithLifetime(d time.Duration) Option {
	return func(o *options) { o.lifetime = d }
}

// OnLoopback makes the broker listen at [Broker.Addr], for programs and for
// clients that [Broker.Client] did not create. Without it the broker has no
// network listener.
func OnLoopback() Option {
	return func(o *options) { o.loopback = true }
}

// WithLogger sets the logger of the broker. Without it nothing is logged.
func WithLogger(log *slog.Logger) Option {
	return func(o *options) { o.log = log }
}

// Broker is a broker and its identity provider. It is safe for concurrent use.
type Broker struct {
	opts  options
	idp   *devidp.Server
	dir   string
	calls interceptor
	admin *client.Client

	lifecycle sync.Mutex // held while the broker starts or ends

	mu      sync.Mutex
	running *instance // nil: stopped
	addr    string    // of the listener on loopback, which a start reuses
	clients []*client.Client
	fixed   map[string]string // tokens by client
}

// instance is a running broker.
type instance struct {
	listener *listener
	memory   *bufconn.Listener // nil: on loopback
	stop     context.CancelFunc
	done     chan error
}

// New starts a broker that is closed when the test ends. If it cannot start,
// the test fails.
func New(t testing.TB, opts ...Option) *Broker {
	t.Helper()
	b, err := Start(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// Start is New for use outside a test, such as in an example. Close the broker
// at the end.
func Start(opts ...Option) (*Broker, error) {
	o := options{lifetime: time.Hour, log: slog.New(slog.DiscardHandler)}
	for _, opt := range opts {
		opt(&o)
	}
	if len(o.clients) == 0 {
		o.clients = []Client{{Name: "orders-api"}}
	}
	o.clients = slices.Clone(o.clients)
	for i := range o.clients {
		c := &o.clients[i]
		if len(c.Audiences) == 0 {
			c.Audiences = []string{"https://" + c.Name + ".example.com"}
		}
		if len(c.Scopes) == 0 {
			c.Scopes = []string{"read", "write"}
		}
	}
	b := &Broker{opts: o, fixed: map[string]string{}}
	if err := b.prepare(); err != nil {
		return nil, fmt.Errorf("brokertest: %w", err)
	}
	if err := b.start(); err != nil {
		_ = os.RemoveAll(b.dir)
		return nil, fmt.Errorf("brokertest: %w", err)
	}
	b.admin = b.Client()
	return b, nil
}

// prepare creates the identity provider and the secrets of its clients.
func (b *Broker) prepare() error {
	var err error
	if b.dir, err = os.MkdirTemp("", "brokertest-"); err != nil {
		return err
	}
	config := devidp.Config{Issuer: Issuer, Lifetime: b.opts.lifetime, Algorithm: "EdDSA"}
	for _, c := range b.opts.clients {
		value := rand.Text()
		if err := os.WriteFile(filepath.Join(b.dir, c.Name), []byte(value), 0o600); err != nil {
			return err
		}
		registered := devidp.Client{ID: c.Name, Secrets: []redact.String{redact.New(value)}, Scopes: c.Scopes, Audiences: c.Audiences}
		if len(c.Exchanges) > 0 {
			registered.Exchange = &devidp.Exchange{SubjectAudiences: c.Exchanges}
		}
		config.Clients = append(config.Clients, registered)
	}
	if b.idp, err = devidp.New(config); err != nil {
		return err
	}
	b.idp.SetAnswer(b.respondFixed)
	return nil
}

// config returns the configuration that an operator would write.
func (b *Broker) config() (*config.Config, error) {
	var text strings.Builder
	text.WriteString(`listen: {grpc: {address: "127.0.0.1:0", caller: test}, ops: "off"}
server: {drain_timeout: 1s}
callers: [{name: test, roles: [all], limits: {per_second: 0, concurrent: 0, watches: 0}}]
roles:
  all:
    get: [{client: "*", audiences: ["*"], resources: ["*"], scopes: ["*"]}]
    verify: [{issuer: "*", audiences: ["*"]}]
    admin: [{actions: ["*"]}]
`)
	var clients, grants strings.Builder
	var audiences []string
	for _, c := range b.opts.clients {
		exchange := ""
		if len(c.Exchanges) > 0 {
			exchange = ", exchange: {}"
			fmt.Fprintf(&grants, "      - {client: %s, from: {issuers: [%q], audiences: [%s]}, audiences: [\"*\"], scopes: [\"*\"]}\n", c.Name, Issuer, quoted(c.Exchanges))
		}
		fmt.Fprintf(&clients, "  %s: {issuer: %q, client_id: %q, secret: %q, auth: client_secret_post, audience: %q, scopes: [%s]%s}\n",
			c.Name, Issuer, c.Name, "file:"+filepath.Join(b.dir, c.Name), c.Audiences[0], strings.Join(c.Scopes, ", "), exchange)
		audiences = append(audiences, slices.Concat(c.Audiences, c.Exchanges)...)
	}
	if grants.Len() > 0 {
		text.WriteString("    exchange:\n" + grants.String())
	}
	slices.Sort(audiences)
	fmt.Fprintf(&text, "clients:\n%sissuers: [{issuer: %q, audiences: [%s]}]\n", clients.String(), Issuer, quoted(slices.Compact(audiences)))
	return config.Parse("brokertest.yaml", []byte(text.String()))
}

// quoted returns the items of a list in YAML.
func quoted(values []string) string {
	all := make([]string, len(values))
	for i, value := range values {
		all[i] = strconv.Quote(value)
	}
	return strings.Join(all, ", ")
}

// start assembles a broker as in a deployment, except for its listener and its
// connection to the identity provider, and serves it.
func (b *Broker) start() error {
	config, err := b.config()
	if err != nil {
		return err
	}
	r, err := b.listen()
	if err != nil {
		return err
	}
	broker, err := app.New(config, app.Options{
		Logger:        b.opts.log,
		Transport:     b.idp.RoundTripper(),
		Listener:      r.listener,
		ServerOptions: []grpc.ServerOption{grpc.ChainUnaryInterceptor(b.calls.unary), grpc.ChainStreamInterceptor(b.calls.stream)},
	})
	if err != nil {
		_ = r.listener.Close()
		return err
	}
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.Background())
	r.done = make(chan error, 1)
	go func() { r.done <- broker.Run(ctx) }()
	b.setRunning(r)
	return nil
}

func (b *Broker) listen() (*instance, error) {
	if !b.opts.loopback {
		memory := bufconn.Listen(256 << 10)
		return &instance{listener: &listener{Listener: memory}, memory: memory}, nil
	}
	address := cmp.Or(b.Addr(), "127.0.0.1:0")
	var network net.ListenConfig
	tcp, err := network.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.addr = tcp.Addr().String()
	b.mu.Unlock()
	return &instance{listener: &listener{Listener: tcp}}, nil
}

// Close stops the broker and closes the clients that it created.
func (b *Broker) Close() {
	b.mu.Lock()
	clients := b.clients
	b.clients = nil
	b.mu.Unlock()
	for _, c := range clients {
		_ = c.Close()
	}
	b.Stop()
	_ = os.RemoveAll(b.dir)
}

// Stop shuts the broker down gracefully, if it runs: it reports not serving,
// ends its watches, and lets calls in progress finish.
func (b *Broker) Stop() { b.shutDown(false) }

// Kill stops the broker as a crash does, if it runs: its connections break.
func (b *Broker) Kill() { b.shutDown(true) }

func (b *Broker) shutDown(abruptly bool) {
	b.lifecycle.Lock()
	defer b.lifecycle.Unlock()
	r := b.setRunning(nil)
	if r == nil {
		return
	}
	if abruptly {
		r.listener.cut()
	}
	r.stop()
	must(<-r.done)
}

// Start starts the broker again after Stop or Kill. The broker has lost its
// state; the identity provider has kept its own.
func (b *Broker) Start() {
	b.lifecycle.Lock()
	defer b.lifecycle.Unlock()
	if b.current() == nil {
		must(b.start())
	}
}

// setRunning sets the running broker, and returns the previous one.
func (b *Broker) setRunning(r *instance) (previous *instance) {
	b.mu.Lock()
	defer b.mu.Unlock()
	previous, b.running = b.running, r
	return previous
}

func (b *Broker) current() *instance {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.running
}

// must panics on an error, which only a mistake in the test can cause.
func must(err error) {
	if err != nil {
		panic("brokertest: " + err.Error())
	}
}

// Addr returns the HOST:PORT that the broker listens at with [OnLoopback], or
// "" without it. Set TOKENBROKER_ADDR to it for programs that use
// client.FromEnv.
func (b *Broker) Addr() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.addr
}

// Client returns a new client of the broker, which is closed with the broker.
func (b *Broker) Client(opts ...client.Option) *client.Client {
	target := b.Addr()
	base := []client.Option{client.WithPlaintext()}
	if target == "" {
		target = "passthrough:///brokertest"
		base = append(base, client.WithDialOptions(grpc.WithContextDialer(b.dial)))
	}
	c, err := client.New(target, append(base, opts...)...)
	must(err)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clients = append(b.clients, c)
	return c
}

// dial connects to the running broker.
func (b *Broker) dial(ctx context.Context, _ string) (net.Conn, error) {
	r := b.current()
	if r == nil {
		return nil, fmt.Errorf("brokertest: the broker is stopped: %w", net.ErrClosed)
	}
	return r.memory.DialContext(ctx)
}

// Calls are the numbers of calls that the broker received, by RPC, including
// failed ones.
type Calls struct{ GetToken, WatchToken, VerifyToken int }

// Calls returns the numbers of calls that the broker received so far.
func (b *Broker) Calls() Calls {
	return Calls{b.calls.count("GetToken"), b.calls.count("WatchToken"), b.calls.count("VerifyToken")}
}

// FailNext makes the next n calls of the broker fail with this code.
func (b *Broker) FailNext(n int, code codes.Code) { b.calls.failNext(n, code) }

// SetDelay makes the broker wait before it responds to a call.
func (b *Broker) SetDelay(d time.Duration) { b.calls.setDelay(d) }
