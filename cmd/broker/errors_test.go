package main

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client/brokertest"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// connecting returns a command line for each command that connects to a broker.
func connecting(t *testing.T) map[string][]string {
	t.Helper()
	secret := testkit.SecretFile(t, "a-new-secret-of-a-client")
	backup := filepath.Join(t.TempDir(), "backup")
	testkit.WriteFile(t, backup, `{"v":1,"created":"2026-01-01T00:00:00Z","clients":{"orders-api":"AAAA"}}`)
	lines := map[string][]string{
		"broker get":                {"get", "orders-api"},
		"broker verify":             {"verify", "x.y.z"},
		"broker status":             {"status"},
		"broker clients":            {"clients"},
		"broker purge":              {"purge", "orders-api"},
		"broker revoke":             {"revoke", "eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2EiLCJqdGkiOiI1ZjJjIn0.AA"},
		"broker revocations add":    {"revocations", "add", "--issuer", "https://a", "--token-id", "5f2c"},
		"broker revocations list":   {"revocations", "list"},
		"broker revocations delete": {"revocations", "delete", "r1"},
		"broker secret rotate":      {"secret", "rotate", "orders-api", "--file", secret},
		"broker secret activate":    {"secret", "activate", "orders-api"},
		"broker secret rollback":    {"secret", "rollback", "orders-api"},
		"broker secret retire":      {"secret", "retire", "orders-api", "3f9a1c22"},
		"broker secret export":      {"secret", "export", filepath.Join(t.TempDir(), "export")},
		"broker secret import":      {"secret", "import", backup},
		"broker key list":           {"key", "list", "orders-api"},
		"broker key publish":        {"key", "publish", "orders-api"},
		"broker key rotate":         {"key", "rotate", "orders-api"},
		"broker healthcheck":        {"healthcheck"},
	}
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		path := cmd.CommandPath()
		if cmd.Flags().Lookup("server-name") != nil && lines[path] == nil && path != "broker doctor" {
			t.Errorf("%s connects to a broker and is not tested", path)
		}
		for _, child := range cmd.Commands() {
			visit(child)
		}
	}
	visit(newRoot())
	return lines
}

// serveGRPC serves an API without services until the end of the test.
func serveGRPC(t *testing.T, config *tls.Config) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var options []grpc.ServerOption
	if config != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(config)))
	}
	server := grpc.NewServer(options...)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

// serverConfig is the configuration of a TLS server with a certificate of certs.
func serverConfig(t *testing.T, certs *redistest.Certificates, auth tls.ClientAuthType) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(certs.ServerCert, certs.ServerKey)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(certs.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: auth, ClientCAs: pool}
}

// serveSilence accepts connections and never responds.
func serveSilence(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return listener.Addr().String()
}

func isolate(t *testing.T) {
	t.Helper()
	for _, name := range []string{"TOKENBROKER_ADDR", "TOKENBROKER_CA", "TOKENBROKER_CERT", "TOKENBROKER_KEY", "TOKENBROKER_SERVER_NAME", "TOKENBROKER_TOKEN_FILE", "TOKENBROKER_PLAINTEXT"} {
		t.Setenv(name, "")
	}
	t.Setenv("XDG_STATE_HOME", t.TempDir())
}

func TestUnreachableBrokerIsExplained(t *testing.T) {
	isolate(t)
	certs, others := redistest.NewCertificates(t), redistest.NewCertificates(t)
	plain, secure := serveGRPC(t, nil), serveGRPC(t, serverConfig(t, certs, tls.VerifyClientCertIfGiven))
	mutual := serveGRPC(t, serverConfig(t, certs, tls.RequireAndVerifyClientCert))
	older := serverConfig(t, certs, tls.RequireAndVerifyClientCert)
	older.MaxVersion = tls.VersionTLS12
	mutual12 := serveGRPC(t, older)
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	secureWeb := func(http2 bool) string {
		server := httptest.NewUnstartedServer(http.NotFoundHandler())
		server.TLS, server.EnableHTTP2 = serverConfig(t, certs, tls.NoClientCert), http2
		server.StartTLS()
		t.Cleanup(server.Close)
		return server.Listener.Addr().String()
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	ca := []string{"--ca", certs.CA}
	for name, c := range map[string]struct {
		addr  string
		flags []string
		want  string
	}{
		"no broker":                     {gone.Listener.Addr().String(), nil, "no broker listens at ADDR: start it"},
		"no broker at a socket":         {"unix:" + filepath.Join(t.TempDir(), "s"), nil, "no broker listens at /"},
		"no broker at several":          {gone.Listener.Addr().String() + "," + gone.Listener.Addr().String(), nil, "no broker listens at 127."},
		"an unknown host":               {"broker.invalid:8443", ca, `the host "broker.invalid" cannot be resolved (`},
		"the port of HTTP":              {web.Listener.Addr().String(), nil, "ADDR serves HTTP and not gRPC"},
		"the port of HTTP, with TLS":    {web.Listener.Addr().String(), ca, "ADDR serves HTTP and not gRPC"},
		"the port of HTTPS":             {secureWeb(false), ca, "ADDR serves HTTP and not gRPC"},
		"the port of HTTPS with HTTP/2": {secureWeb(true), ca, "ADDR serves HTTP and not gRPC"},
		"TLS required":                  {secure, nil, "the broker at ADDR requires TLS: give the file with its CA by --ca"},
		"mutual TLS required":           {mutual, nil, "the broker at ADDR requires TLS"},
		"no TLS":                        {plain, ca, "the broker at ADDR does not use TLS: add --plaintext"},
		"an untrusted certificate":      {secure, []string{"--ca", others.CA}, "is not issued by a CA in " + others.CA},
		"the system's authorities":      {secure, []string{"--plaintext=false"}, "is not issued by a CA that this system trusts: give the file"},
		"a wrong name":                  {secure, append(ca, "--server-name", "other.example"), `is for localhost, 127.0.0.1 and not for "other.example"`},
		"no client certificate":         {mutual, ca, "the broker at ADDR requires a client certificate: give the files by --cert and --key"},
		"no client certificate in 1.2":  {mutual12, ca, "the broker at ADDR requires a client certificate"},
		"a refused client certificate":  {mutual, append(ca, "--cert", others.ClientCert, "--key", others.ClientKey), "the broker at ADDR refuses the client certificate " + others.ClientCert},
		"a refused certificate in 1.2":  {mutual12, append(ca, "--cert", others.ClientCert, "--key", others.ClientKey), "refuses the client certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			for command, args := range connecting(t) {
				t.Run(command, func(t *testing.T) {
					t.Parallel()
					stdout, stderr, code := runCommand(t.Context(), append(append(args, "--addr", c.addr), c.flags...)...)
					checkSentence(t, command, stdout, stderr, code, strings.ReplaceAll(c.want, "ADDR", c.addr))
				})
			}
		})
	}
}

// checkSentence fails the test unless the error is a sentence with that text.
func checkSentence(t *testing.T, command, stdout, stderr string, code int, want string) {
	t.Helper()
	wantCode := exitTrouble
	if command == "broker healthcheck" {
		wantCode = exitNegative
	}
	first, rest, _ := strings.Cut(stderr, "\n")
	if strings.HasPrefix(first, "to resume: ") {
		first, rest, _ = strings.Cut(rest, "\n")
	}
	if code != wantCode || stdout != "" || !strings.HasPrefix(first, "broker: ") || !strings.Contains(first, want) || rest != "" {
		t.Errorf("exit code %d, want %d and %q:\n%s%s", code, wantCode, want, stdout, stderr)
	}
	for _, part := range []string{"rpc error", "desc =", "transport:", "attempts", "Unavailable"} {
		if strings.Contains(stderr, part) {
			t.Errorf("%q in %s", part, stderr)
		}
	}
}

func TestSilentServerIsExplained(t *testing.T) {
	isolate(t)
	_, stderr, code := runCommand(t.Context(), "status", "--addr", serveSilence(t), "--timeout", "100ms")
	if code != exitTrouble || !strings.Contains(stderr, "did not respond within 100ms: try again") {
		t.Errorf("%d, %s", code, stderr)
	}
}

func TestRefusedCallIsExplained(t *testing.T) {
	isolate(t)
	b := brokertest.New(t, brokertest.OnLoopback())
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"not permitted":  {[]string{"get", "orders"}, exitTrouble, "there is no such thing, or this caller may not have it"},
		"a malformed ID": {[]string{"revocations", "delete", "x"}, exitNegative, "(NotFound)"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := runCommand(t.Context(), append(c.args, "--addr", b.Addr())...)
			if code != c.code || stdout != "" || !strings.Contains(stderr, c.want) || strings.Contains(stderr, "rpc error") {
				t.Errorf("exit code %d:\n%s%s", code, stdout, stderr)
			}
		})
	}
}

func TestMisspeltClientIsSuggested(t *testing.T) {
	isolate(t)
	b := brokertest.New(t, brokertest.OnLoopback(), brokertest.WithClients(brokertest.Client{Name: "orders-api"}, brokertest.Client{Name: "billing-api"}))
	for command, args := range map[string][]string{
		"get": {"get", "order-api"}, "clients": {"clients", "orders_api"}, "purge": {"purge", "Orders-api"}, "rollback": {"secret", "rollback", "orders-ap"},
	} {
		if _, stderr, code := runCommand(t.Context(), append(args, "--addr", b.Addr())...); code != exitTrouble || !strings.Contains(stderr, `did you mean the client "orders-api"?`) {
			t.Errorf("%s: exit code %d: %s", command, code, stderr)
		}
	}
	if _, stderr, _ := runCommand(t.Context(), "get", "something-else", "--addr", b.Addr()); strings.Contains(stderr, "did you mean") {
		t.Errorf("suggested for another name: %s", stderr)
	}
	if _, stderr, code := runCommand(t.Context(), "clients", "order-api", "--plaintext", "--addr", (&fakeAdmin{err: status.Error(codes.PermissionDenied, "no"), clients: []*tokenbrokerv1.Client{{Name: "orders-api"}}}).serve(t)); code != exitTrouble || strings.Contains(stderr, "orders-api") {
		t.Errorf("a caller who may not list clients: %d, %s", code, stderr)
	}
}

func TestNearest(t *testing.T) {
	names := []string{"orders-api", "orders-v2", "billing"}
	for misspelt, want := range map[string]string{
		"order-api": "orders-api", "oders-v2": "orders-v2", "BILLING": "billing", "biling": "billing", "": "", "x": "", "orders-api": "", "kühl": "",
	} {
		if got := nearest(misspelt, names); got != want {
			t.Errorf("%q: %q, want %q", misspelt, got, want)
		}
	}
}

func TestUsageErrorsShowTheUsage(t *testing.T) {
	for line, want := range map[string]string{
		"get":                    "accepts 1 arg(s), received 0\nusage: broker get CLIENT [flags]\n",
		"get a --nosuch":         "unknown flag: --nosuch\nusage: broker get CLIENT",
		"get a --min-ttl x":      "usage: broker get CLIENT",
		"verify":                 "usage: broker verify -|TOKEN",
		"status x":               "usage: broker status",
		"nosuch":                 "usage: broker COMMAND\n\"broker --help\" shows",
		"secret nosuch":          "usage: broker secret COMMAND\n",
		"secret rotate a b":      "usage: broker secret rotate CLIENT",
		"revocations add --all":  "usage: broker revocations add --issuer ISSUER",
		"clients a --failing":    "usage: broker clients [NAME]",
		"serve":                  "usage: broker serve FILE",
		"policy usage /dev/null": "broker: ",
		"dev x":                  "usage: broker dev",
	} {
		stdout, stderr, code := runCommand(t.Context(), strings.Fields(line)...)
		if code != exitTrouble || stdout != "" || !strings.HasPrefix(stderr, "broker: ") || !strings.Contains(stderr, want) {
			t.Errorf("broker %s: exit code %d:\n%s%s", line, code, stdout, stderr)
		}
	}
}

func TestExitCodesAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/command-line.md")
	if err != nil {
		t.Fatal(err)
	}
	help, _, _ := runCommand(t.Context(), "--help")
	if !strings.Contains(help, exitCodesHelp) {
		t.Error("the help does not list the exit codes")
	}
	if !strings.Contains(string(page), strings.TrimPrefix(exitCodesHelp, "Exit codes of all commands:\n")) {
		t.Error("docs/command-line.md does not have the table of the help")
	}
}
