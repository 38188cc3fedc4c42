package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/cezzis/tokenbroker/client"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/escape"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
)

// devGateway is the caller of HTTP requests without credentials.
const devGateway = "gateway"

// devManaged is the sample client with a managed secret, which is set over the API.
const devManagedClient = "billing-api"

const (
	ordersAudience  = "https://orders.example.com"
	billingAudience = "https://billing.example.com"
	devWarning      = `
  ***  FOR DEVELOPMENT ONLY: an identity provider without authentication, secrets  ***
  ***  in a temporary folder, no TLS. Do not put anything real into it.            ***
`
)

// sampleClient is a client in both the sample IdP and the sample configuration.
type sampleClient struct {
	name, auth, audience string
	scopes               []string
}

func sampleClients() []sampleClient {
	return []sampleClient{
		{"orders-api", "client_secret_basic", ordersAudience, []string{"read", "write"}},
		{devManagedClient, "client_secret_post", billingAudience, []string{"invoices:read"}},
	}
}

func newDev() *cobra.Command {
	var (
		opts         devOptions
		idp          idpOptions
		idpOnly      bool
		certificates string
		hosts        []string
		callers      []string
	)
	cmd := exitWith(exitNegative, &cobra.Command{
		Use:   "dev",
		Short: "Try everything on this machine, with nothing to install",
		Long: `Run a sample identity provider and a broker in one process on loopback, get a token
over gRPC, verify it, verify a modified one, rotate a client's secret, and show
all four. Then serve until Ctrl-C, so that the other commands can be tried in another
terminal.

The broker has one caller with all permissions. Its credential is in a file that only
this user can read; the other commands and clients find it there. The file is removed
at exit, also when the terminal is closed. An HTTP request without the credential is
identified as a gateway, which may only verify tokens.

If a default port is in use, for example by another "broker dev", the next free one is
taken; the command prints all addresses.

With --certificates create certificates to try TLS, and exit.`,
		Example: `  broker dev
  broker dev --exit
  broker dev --idp-only --listen 127.0.0.1:9000
  broker dev --certificates ./tls --host broker.internal`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if certificates != "" {
				return writeCertificates(cmd.OutOrStdout(), certificates, hosts, callers)
			}
			if idpOnly {
				return serveIDP(cmd.Context(), cmd.ErrOrStderr(), idp)
			}
			ctx, stop := untilHangup(cmd.Context())
			defer stop()
			return dev(ctx, cmd.OutOrStdout(), opts)
		},
	})
	flags := cmd.Flags()
	flags.BoolVar(&opts.exit, "exit", false, "exit after the demonstration; exit code 0 only if all of it worked")
	flags.StringVar(&opts.addr, "addr", "", "where the broker serves gRPC (default "+defaultAddr+", with --exit any free port)")
	flags.StringVar(&opts.http, "http", "", "where the broker serves gateways and OAuth clients over HTTP, or off (default "+defaultHTTP+", with --exit off)")
	flags.StringVar(&opts.ops, "ops", "", "where the broker serves metrics and the status page, or off (default "+defaultOps+", with --exit off)")
	flags.BoolVar(&idpOnly, "idp-only", false, "run the sample identity provider alone")
	flags.StringVar(&idp.listen, "listen", "127.0.0.1:9000", "with --idp-only: where it listens")
	flags.StringVar(&idp.issuer, "issuer", "", "with --idp-only: its issuer URL, as others reach it (default http://LISTEN)")
	flags.StringVar(&idp.secrets, "secrets", "", "with --idp-only: the directory with a file of each client's secret, named as the client, and optionally a second one with the suffix .new; read for each request (default: a client's secret is its name and -secret)")
	flags.StringVar(&certificates, "certificates", "", "create a CA and certificates of a broker and of callers in this directory, and exit")
	flags.StringSliceVar(&hosts, "host", nil, "with --certificates: another name or address of the broker (repeatable)")
	flags.StringSliceVar(&callers, "caller", []string{"demo"}, "with --certificates: the name of a caller, whose SPIFFE ID is spiffe://example.com/NAME (repeatable)")
	return cmd
}

type idpOptions struct{ listen, issuer, secrets string }

// clientSecrets returns the secrets of the sample clients: the one in the client's file
// and, if it exists, the one in the file with the suffix ".new", or the default.
func (o idpOptions) clientSecrets() (map[string][]redact.String, error) {
	secrets := map[string][]redact.String{}
	for _, c := range sampleClients() {
		if o.secrets == "" {
			secrets[c.name] = []redact.String{redact.New(c.name + "-secret")}
			continue
		}
		for _, file := range []string{c.name, c.name + ".new"} {
			value, err := readSampleSecret(filepath.Join(o.secrets, file))
			switch {
			case err == nil:
				secrets[c.name] = append(secrets[c.name], value)
			case file == c.name:
				return nil, fmt.Errorf("the secret of the sample client %s: %w", c.name, err)
			}
		}
	}
	return secrets, nil
}

func readSampleSecret(path string) (redact.String, error) {
	ref, err := secret.ParseRef("file:" + path)
	if err != nil {
		return redact.String{}, err
	}
	source, err := secret.Open(ref)
	if err != nil {
		return redact.String{}, err
	}
	return source.Current().Value, nil
}

// serveIDP serves only the sample IdP. It reads the secrets again for each request, so
// that changing them is like changing them at an IdP.
func serveIDP(ctx context.Context, out io.Writer, opts idpOptions) error {
	secrets, err := opts.clientSecrets()
	if err != nil {
		return err
	}
	listener, err := listenOn(ctx, opts.listen)
	if err != nil {
		return err
	}
	issuer := opts.issuer
	if issuer == "" {
		issuer = "http://" + listener.Addr().String()
	}
	idp, err := sampleIDP(issuer, secrets)
	if err != nil {
		_ = listener.Close()
		return err
	}
	_, _ = fmt.Fprintf(out, "%s\nsample identity provider: %s (listening on %s)\n", devWarning, issuer, listener.Addr())
	stop := serveHTTP(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if secrets, err := opts.clientSecrets(); err == nil {
			for _, c := range sampleClients() {
				idp.SetSecrets(c.name, secrets[c.name]...)
			}
		}
		idp.ServeHTTP(w, r)
	}))
	<-ctx.Done()
	stop()
	return nil
}

func listenOn(ctx context.Context, addr string) (net.Listener, error) {
	var network net.ListenConfig
	return network.Listen(ctx, "tcp", addr)
}

func serveHTTP(listener net.Listener, handler http.Handler) (stop func()) {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // ends with Close
	}()
	return func() {
		_ = server.Close()
		<-done
	}
}

func sampleIDP(issuer string, secrets map[string][]redact.String) (*devidp.Server, error) {
	cfg := devidp.Config{Issuer: issuer}
	for _, c := range sampleClients() {
		cfg.Clients = append(cfg.Clients, devidp.Client{
			ID: c.name, Secrets: secrets[c.name], Scopes: c.scopes, Audiences: []string{c.audience},
		})
	}
	return devidp.New(cfg)
}

// untilHangup returns a context that also ends when the terminal is closed. A program under
// nohup ignores that.
func untilHangup(ctx context.Context) (context.Context, context.CancelFunc) {
	if signal.Ignored(syscall.SIGHUP) {
		return context.WithCancel(ctx)
	}
	return signal.NotifyContext(ctx, syscall.SIGHUP)
}

type devOptions struct {
	exit bool
	addr string
	http string
	ops  string
}

// The addresses where broker dev serves HTTP and metrics.
const (
	defaultHTTP = "127.0.0.1:8444"
	defaultOps  = "127.0.0.1:9090"
)

// addresses has the address of each listener; "off" is none.
type addresses struct{ grpc, http, ops string }

// listen returns the addresses of the options. In place of a default address that is in use
// it returns one with the next free port.
func (o devOptions) listen(ctx context.Context) (addresses, error) {
	if o.exit {
		return addresses{cmp.Or(o.addr, "127.0.0.1:0"), cmp.Or(o.http, "off"), cmp.Or(o.ops, "off")}, nil
	}
	all := addresses{o.addr, o.http, o.ops}
	var held []net.Listener // so that each listener gets another port
	defer func() {
		for _, listener := range held {
			_ = listener.Close()
		}
	}()
	for _, one := range []struct {
		address   *string
		preferred string
	}{{&all.grpc, defaultAddr}, {&all.http, defaultHTTP}, {&all.ops, defaultOps}} {
		if *one.address != "" {
			continue
		}
		listener, err := listenFrom(ctx, one.preferred)
		if err != nil {
			return addresses{}, err
		}
		held, *one.address = append(held, listener), listener.Addr().String()
	}
	return all, nil
}

// portsToTry is how many ports listenFrom tries.
const portsToTry = 100

// listenFrom listens at an address, or at the next one with a free port.
func listenFrom(ctx context.Context, preferred string) (net.Listener, error) {
	from, err := netip.ParseAddrPort(preferred)
	if err != nil {
		return nil, err
	}
	for i := range uint16(portsToTry) {
		listener, err := listenOn(ctx, netip.AddrPortFrom(from.Addr(), from.Port()+i).String())
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
			return listener, err
		}
	}
	return nil, fmt.Errorf("no port from %d to %d of %s is free: name an address by --addr, --http and --ops", from.Port(), int(from.Port())+portsToTry-1, from.Addr())
}

// dev runs the sample IdP and a broker that uses it, demonstrates them, and serves until
// ctx ends.
func dev(ctx context.Context, out io.Writer, opts devOptions) error {
	dir, err := os.MkdirTemp("", "tokenbroker-dev-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	listener, err := listenOn(ctx, "127.0.0.1:0")
	if err != nil {
		return err
	}
	issuer := "http://" + listener.Addr().String()
	path, secrets, err := writeSample(ctx, dir, issuer, opts)
	if err != nil {
		_ = listener.Close()
		return err
	}
	idp, err := sampleIDP(issuer, secrets)
	if err != nil {
		_ = listener.Close()
		return err
	}
	defer serveHTTP(listener, idp)()
	config, err := config.Load(path)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(escape.NewWriter(os.Stderr), &slog.HandlerOptions{Level: slog.LevelWarn}))
	broker, err := app.New(config, app.Options{Logger: log})
	if err != nil {
		return err
	}
	addr := broker.GRPCAddr()
	if opts.exit {
		addr = "" // only this process uses it
	}
	cred, isDefault, err := newCredential(idp, addr, dir)
	if err != nil {
		broker.Close()
		return err
	}
	runCtx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- broker.Run(runCtx) }()
	renewed := make(chan struct{})
	go func() { defer close(renewed); cred.renew(runCtx) }()
	defer func() { stop(); <-renewed }()

	_, _ = fmt.Fprintf(out, "%s\nsample identity provider  %s\nbroker, gRPC             %s\nbroker, HTTP             %s\nmetrics, status page     %s\nconfiguration            %s\ncredential of %s        %s\n\n",
		devWarning, issuer, broker.GRPCAddr(), cmp.Or(broker.HTTPAddr(), "off"), opsPages(broker.OpsAddr()), path, devCaller, cred.path)
	errDemo := demonstrate(ctx, out, broker.GRPCAddr(), cred.path, secrets[devManagedClient][0])
	if errDemo == nil && !opts.exit {
		_, _ = io.WriteString(out, nextSteps(broker, cred.path, newSecretFile(dir), isDefault))
		select {
		case <-ctx.Done():
		case err := <-done:
			return err
		}
	}
	stop()
	return errors.Join(errDemo, <-done)
}

// opsPages returns the URLs of the metrics and of the status page.
func opsPages(addr string) string {
	if addr == "" {
		return "off"
	}
	return fmt.Sprintf("http://%s/metrics, http://%[1]s/", addr)
}

// newSecretFile returns the path of the next secret for the managed client.
func newSecretFile(dir string) string { return filepath.Join(dir, devManagedClient+".new-secret") }

// writeSample writes a configuration file, the files that it refers to, and a new secret.
func writeSample(ctx context.Context, dir, issuer string, opts devOptions) (path string, secrets map[string][]redact.String, err error) {
	var text strings.Builder
	listen, err := opts.listen(ctx)
	if err != nil {
		return "", nil, err
	}
	http := listen.http
	gateway, gatewayRole := "", ""
	if http != "off" {
		http = fmt.Sprintf("{address: %q, caller: %s}", http, devGateway)
		gateway = fmt.Sprintf("  - {name: %s, roles: [gateway]}\n", devGateway)
		gatewayRole = "  gateway: {verify: [{issuer: \"*\"}]}\n"
	}
	fmt.Fprintf(&text, "# Written by broker dev.\nlisten: {grpc: %q, http: %s, ops: %q}\n", listen.grpc, http, listen.ops)
	ring := filepath.Join(dir, "ring.json")
	if err := sealed.WriteRing(ring, sealed.GenerateRing()); err != nil {
		return "", nil, err
	}
	fmt.Fprintf(&text, "store: {bolt: %q, sealing_keys: %q}\nclients:\n", filepath.Join(dir, "broker.db"), "file:"+ring)
	secrets = map[string][]redact.String{}
	for _, c := range sampleClients() {
		file, value := filepath.Join(dir, c.name+".secret"), rand.Text()
		secrets[c.name] = []redact.String{redact.New(value)}
		source := "file:" + file
		if c.name == devManagedClient {
			source, file, value = "managed", newSecretFile(dir), rand.Text()
			secrets[c.name] = append(secrets[c.name], redact.New(value))
		}
		if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
			return "", nil, err
		}
		fmt.Fprintf(&text, "  %s:\n    issuer: %s\n    client_id: %s\n    secret: %s\n    auth: %s\n    audience: %s\n    scopes: [%s]\n",
			c.name, issuer, c.name, source, c.auth, c.audience, strings.Join(c.scopes, ", "))
	}
	fmt.Fprintf(&text, "issuers:\n  - issuer: %s\n    audiences: [%s, %s]\n", issuer, ordersAudience, billingAudience)
	fmt.Fprintf(&text, "callers:\n  - {name: %s, issuer: %s, subject: %[1]s, roles: [everything]}\n", devCaller, issuer)
	text.WriteString(gateway + "roles:\n" + gatewayRole + "  everything:\n    get: [{client: \"*\"}]\n    verify: [{issuer: \"*\"}]\n    admin: [{actions: [\"*\"]}]\n")
	path = filepath.Join(dir, "broker.yaml")
	return path, secrets, os.WriteFile(path, []byte(text.String()), 0o600)
}

// demonstrate gets a token, verifies it, verifies a tampered copy, and sets the secret of
// the managed client, over real gRPC. It returns an error if a result is unexpected.
func demonstrate(ctx context.Context, out io.Writer, addr, credential string, newSecret redact.String) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	c, err := client.New(addr, client.WithPlaintext(), client.WithTokenFile(credential))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()

	token, err := c.Token(ctx, "orders-api")
	if err != nil {
		return fmt.Errorf("getting a token: %w", err)
	}
	_, _ = fmt.Fprintf(out, "1. GetToken orders-api\n   a %s token, scopes %v, expires %s, origin %s\n",
		token.Type(), token.Scopes(), token.ExpiresAt().Format(time.RFC3339), token.Origin())

	claims, err := c.Verify(ctx, token.AccessToken(), client.RequireAudience(ordersAudience), client.RequireScopes("read"))
	if err != nil {
		return fmt.Errorf("verifying the token: %w", err)
	}
	_, _ = fmt.Fprintf(out, "2. VerifyToken, for %s with scope read\n   active: subject %s of %s\n", ordersAudience, claims.Subject, claims.Issuer)

	_, err = c.Verify(ctx, tamper(token.AccessToken()))
	rejected, ok := errors.AsType[*client.RejectedError](err)
	switch {
	case err == nil:
		return errors.New("a modified token was accepted")
	case !ok:
		return fmt.Errorf("verifying a modified token: %w", err)
	}
	_, _ = fmt.Fprintf(out, "3. VerifyToken, one character of the signature changed\n   rejected: %s: %s\n", rejected.Reason, rejected.Message)
	return rotateFirstSecret(ctx, out, tokenbrokerv1.NewAdminServiceClient(c.Conn()), newSecret)
}

func rotateFirstSecret(ctx context.Context, out io.Writer, admin tokenbrokerv1.AdminServiceClient, value redact.String) error {
	resp, err := admin.RotateSecret(ctx, &tokenbrokerv1.RotateSecretRequest{
		ClientName: devManagedClient, Secret: []byte(value.Reveal()), RequestId: rand.Text(), Reason: "broker dev",
	})
	if err != nil {
		return fmt.Errorf("rotating a secret: %w", err)
	}
	_, _ = fmt.Fprintf(out, "4. RotateSecret %s, which had no secret\n", devManagedClient)
	for _, step := range resp.GetSteps() {
		_, _ = fmt.Fprintf(out, "   %s: %s\n", step.GetName(), step.GetMessage())
	}
	return nil
}

// tamper changes the first character of a JWT's signature.
func tamper(token string) string {
	i := strings.LastIndexByte(token, '.') + 1
	replacement := byte('A')
	if token[i] == replacement {
		replacement = 'B'
	}
	return token[:i] + string(replacement) + token[i+1:]
}

// nextSteps returns commands to try. They name the file of the credential unless isDefault
// is true.
func nextSteps(broker *app.App, credential, newSecret string, isDefault bool) string {
	addr, flag := broker.GRPCAddr(), ""
	if addr != defaultAddr {
		flag = " --addr " + addr
	}
	if !isDefault {
		flag += " --token-file " + credential
	}
	overHTTP := ""
	if broker.HTTPAddr() != "" {
		overHTTP = `
  curl -H "Authorization: Bearer $(cat FILE)" -d grant_type=client_credentials -d client_id=orders-api http://HTTP/oauth2/token
  curl -i -H "Authorization: Bearer $(go run ./cmd/broker get orders-api FLAG)" "http://HTTP/verify?audience=` + ordersAudience + `&scope=read"
`
	}
	return strings.NewReplacer(" FLAG", flag, "FILE", credential, "NEW", newSecret, "ADDR", addr, "HTTP", broker.HTTPAddr()).Replace(`
Serving until Ctrl-C. In another terminal:

  go run ./cmd/broker get orders-api FLAG
  go run ./cmd/broker get orders-api --scope read --json FLAG
  go run ./cmd/broker get orders-api FLAG | go run ./cmd/broker verify - FLAG
  go run ./cmd/broker secret rotate ` + devManagedClient + ` FLAG < NEW
  go run ./cmd/broker clients FLAG
  grpcurl -plaintext -H "authorization: Bearer $(cat FILE)" -d '{"client_name": "orders-api"}' ADDR tokenbroker.v1.TokenBrokerService/GetToken
` + overHTTP + "\n")
}
