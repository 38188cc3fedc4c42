package edge

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// What the examples of gateways have in them, and these tests replace.
const (
	exampleHTTP     = "127.0.0.1:8444"
	exampleGRPC     = "127.0.0.1:8443"
	exampleGateway  = "127.0.0.1:8000"
	exampleUpstream = "127.0.0.1:8080"
	exampleIssuer   = "https://login.example.com"
	exampleAudience = "https://orders.example.com"
)

// delegation is a broker as the examples configure it, and a service that gateways stand in
// front of.
type delegation struct {
	*harness.Broker

	http     string
	socket   string // where http is served as well
	idp      *harness.CountingIdP
	upstream *httptest.Server
	users    map[string]string // tokens of users

	mu   sync.Mutex
	seen []http.Header // by the service
}

func startDelegation(t *testing.T) *delegation {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil { // nginx's workers are another user
		t.Fatal(err)
	}
	e := &delegation{socket: filepath.Join(dir, "http.sock"), idp: harness.SimpleIdP(t, time.Hour)}
	e.serve(t)
	config := strings.NewReplacer(exampleIssuer, e.idp.Issuer(), exampleHTTP, e.http, exampleGRPC, e.Grpc, "listen:", "listen:\n  ops: "+e.Ops+"\n  http_unix: {path: "+e.socket+", mode: \"0666\", caller: edge}",
		"callers:\n", "    missing_sub: client_id\ncallers:\n", "roles: [gateway]", "roles: [gateway, operator]", "  gateway: {", "  operator: {admin: [{actions: [revoke_tokens]}]}\n  gateway: {",
	).Replace(readExample(t, "broker.yaml"))
	e.launch(t, config)
	return e
}

// serve starts the service, and reserves the addresses of the broker.
func (e *delegation) serve(t *testing.T) {
	t.Helper()
	e.Broker, e.http = &harness.Broker{Grpc: harness.FreeAddress(t), Ops: harness.FreeAddress(t)}, harness.FreeAddress(t)
	e.upstream = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.seen = append(e.seen, r.Header.Clone())
		_, _ = io.WriteString(w, "orders\n")
	}))
	t.Cleanup(e.upstream.Close)
}

// launch starts the broker.
func (e *delegation) launch(t *testing.T, config string) {
	t.Helper()
	e.File = harness.WriteFile(t, "broker.yaml", config)
	e.Launch(t, "broker")
	e.Await(t)
}

func readExample(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "..", "examples", "gateways", filepath.FromSlash(path)))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// token mints an access token with these claims in place of its own.
func (e *delegation) token(claims map[string]any) string {
	now := time.Now()
	all := map[string]any{
		"iss": e.idp.Issuer(), "sub": "alice", "aud": exampleAudience, "client_id": "web", "scope": "read",
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	return e.idp.Mint(all).Reveal()
}

// last is what the service saw last; nil: nothing since it was asked.
func (e *delegation) last() http.Header {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.seen) == 0 {
		return nil
	}
	last := e.seen[len(e.seen)-1]
	e.seen = nil
	return last
}

// realGateway is software that nobody here wrote, as its example configures it.
type realGateway struct {
	name    string
	files   []string
	command []string
	env     func(dir string) []string
}

func realGateways() []realGateway {
	none := func(string) []string { return nil }
	return []realGateway{
		{"nginx", []string{"nginx.conf"}, []string{"nginx", "-e", "stderr", "-p", ".", "-c", "nginx.conf"}, none},
		{"caddy", []string{"Caddyfile"}, []string{"caddy", "run", "--config", "Caddyfile", "--adapter", "caddyfile"}, func(dir string) []string {
			return []string{"HOME=" + dir, "XDG_CONFIG_HOME=" + dir, "XDG_DATA_HOME=" + dir}
		}},
		{"haproxy", []string{"haproxy.cfg", "tokenbroker.lua"}, []string{"haproxy", "-db", "-f", "haproxy.cfg"}, none},
	}
}

// upstreamGateways are the gateways with the examples that send upstream tokens.
func upstreamGateways() []realGateway {
	gateways := realGateways()
	for i, file := range []string{"upstream.conf", "Caddyfile.upstream", "upstream.cfg"} {
		g := &gateways[i]
		for j, argument := range g.command {
			if argument == g.files[0] {
				g.command[j] = file
			}
		}
		g.files[0] = file
	}
	return gateways
}

// start starts the gateway in front of the service and returns its address.
func (g *realGateway) start(t *testing.T, e *delegation, at string) (address string) {
	t.Helper()
	harness.Need(t, g.name)
	dir := t.TempDir()
	address = harness.FreeAddress(t)
	replace := strings.NewReplacer(exampleHTTP, at, exampleGateway, address, exampleUpstream, strings.TrimPrefix(e.upstream.URL, "http://"))
	for _, name := range g.files {
		testkit.WriteFile(t, filepath.Join(dir, name), replace.Replace(readExample(t, g.name+"/"+name)))
	}
	running := harness.Start(t, dir, g.env(dir), g.command[0], g.command[1:]...)
	t.Cleanup(func() { running.Stop(t, harness.Terminate) }) // its workers end with it, which they do not if it is killed
	client := &http.Client{Timeout: harness.Patience}
	defer client.CloseIdleConnections()
	running.Ready(t, func() bool {
		response, err := harness.Fetch(t, client, http.MethodGet, "http://"+address+"/", nil)
		return err == nil && response.Body.Close() == nil && response.StatusCode == http.StatusUnauthorized
	})
	return address
}

// asked is an answer of a gateway.
type asked struct {
	status    int
	challenge string
	took      time.Duration
	passed    http.Header // what the service saw; nil: nothing
}

func (e *delegation) ask(t *testing.T, address, target string, authorization ...string) asked {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header["Authorization"] = authorization
	// What somebody sends who would like to be another.
	for _, name := range identityHeaders() {
		request.Header[name] = []string{"spoofed", "spoofed again"}
	}
	request.Header.Set("X-Verify-Audience", "https://spoofed.example.com")
	client := &http.Client{Timeout: harness.Patience, Transport: &http.Transport{DisableKeepAlives: true}}
	begun := time.Now()
	response, err := client.Do(request)
	if err != nil {
		t.Fatalf("%s%s: %v", address, target, err)
	}
	body, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if err != nil || bytes.Contains(body, []byte("%0A")) || strings.HasPrefix(response.Header.Get("Content-Type"), "application/json") && !json.Valid(body) {
		t.Errorf("%s%s: the body %q, %v", address, target, body, err)
	}
	return asked{response.StatusCode, response.Header.Get("WWW-Authenticate"), time.Since(begun), e.last()}
}

func (e *delegation) signal(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := e.Process.Cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// stopped reports whether no thread of the broker's runs any more: signals take a
// moment to reach them all.
func (e *delegation) stopped() bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", e.Process.Cmd.Process.Pid))
	for _, thread := range threads {
		stat, _ := os.ReadFile(thread)
		if !bytes.Contains(stat, []byte(") T ")) {
			return false
		}
	}
	return err == nil && len(threads) > 0
}

func TestGatewaysDelegate(t *testing.T) {
	t.Parallel()
	gateways := realGateways()
	rows := make([]strings.Builder, len(gateways))
	t.Run("gateways", func(t *testing.T) {
		for i, g := range gateways {
			t.Run(g.name, func(t *testing.T) {
				t.Parallel() // each waits for a broker that is slow
				judgeGateway(t, &g, &rows[i])
			})
		}
	})
	var table strings.Builder
	out := tabwriter.NewWriter(&table, 0, 4, 2, ' ', 0)
	fmt.Fprintln(out, "gateway\tcase\tstatus\tchallenge\treached the service")
	for i := range rows {
		fmt.Fprint(out, rows[i].String())
	}
	_ = out.Flush()
	t.Logf("\n%s", &table)
}

// A service behind CGI, WSGI, PHP or Rack gets headers as variables, in whose names all
// that is neither a letter nor a digit is an underscore. No spelling of an identity
// header reaches the variable.
func TestGatewaysStripOtherSpellings(t *testing.T) {
	t.Parallel()
	e := startDelegation(t)
	authorization := "Authorization: Bearer " + e.token(nil) + "\r\n"
	want := map[string]string{"X_AUTH_SUBJECT": "alice", "X_AUTH_SUBJECT_TYPE": "sub", "X_AUTH_ISSUER": e.idp.Issuer(), "X_AUTH_CLIENT_ID": "web", "X_AUTH_SCOPE": "read", "X_AUTH_ACTOR": ""}
	for _, g := range realGateways() {
		t.Run(g.name, func(t *testing.T) {
			address := g.start(t, e, e.http)
			passed := 0
			for _, lines := range spellings() {
				status, variables := e.askRaw(t, address, authorization+lines)
				if variables != nil {
					passed++
				} else if status == http.StatusOK {
					t.Fatalf("%q: 200, and the service saw nothing", lines)
				}
				for name, value := range want {
					if variables != nil && variables[name] != value {
						t.Errorf("%q: the service sees %s=%q, want %q", lines, name, variables[name], value)
					}
				}
			}
			if passed == 0 {
				t.Error("no request passed")
			}
			t.Logf("%d of %d requests passed, without the header", passed, len(spellings()))
		})
	}
}

func identityHeaders() []string {
	return []string{"X-Auth-Subject", "X-Auth-Subject-Type", "X-Auth-Issuer", "X-Auth-Client-Id", "X-Auth-Scope", "X-Auth-Actor"}
}

// spellings are lines of headers that a service could take for identity headers.
func spellings() (lines []string) {
	for _, name := range identityHeaders() {
		for _, odd := range "!#$%&'*+.^_`|~" {
			last := strings.LastIndexByte(name, '-')
			lines = append(lines, strings.ReplaceAll(name, "-", string(odd)), strings.Replace(name, "-", string(odd), 1), name[:last]+string(odd)+name[last+1:])
		}
		lines = append(lines, name, strings.ToUpper(name), strings.ToLower(name), strings.ToUpper(strings.ReplaceAll(name, "-", "_")), name+" ", name+"\t", " "+name, "A: b\r\n "+name, name+"\x00", name+"\x0b", name+"(", name+"é")
	}
	for i, line := range lines {
		lines[i] = line + ": root\r\n"
	}
	return append(lines,
		"X_Auth_Subject: root\r\nx_auth_subject: root\r\nX-AUTH_SUBJECT: root\r\n", "X-Auth-Subject: root\r\nX-Auth-Subject: root\r\nX_Auth_Subject: root\r\n",
		"X-Auth-Subject:\r\nX_Auth-Subject:\r\n", "Connection: close, X-Auth-Subject\r\n", "Connection: X_Auth_Subject\r\nX_Auth_Subject: root\r\n",
	)
}

// askRaw sends a request with these lines of headers, and returns the variables that
// the service gets of it; nil: it got no request.
func (e *delegation) askRaw(t *testing.T, address, lines string) (status int, variables map[string]string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(harness.Patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "GET /orders/ HTTP/1.1\r\nHost: "+address+"\r\n"+lines+"\r\n"); err != nil {
		t.Fatal(err)
	}
	if response, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil { // else the connection was closed
		status = response.StatusCode
		_ = response.Body.Close()
	}
	for name, values := range e.last() {
		if variables == nil {
			variables = map[string]string{}
		}
		name = strings.Map(asVariable, name)
		if earlier, given := variables[name]; given {
			values = append([]string{earlier}, values...)
		}
		variables[name] = strings.Join(values, ",")
	}
	return status, variables
}

func asVariable(c rune) rune {
	switch {
	case 'a' <= c && c <= 'z':
		return c - 'a' + 'A'
	case 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return c
	default:
		return '_'
	}
}

// Where nginx and the broker are on one host, the mode of a socket says who may be the
// gateway; here anybody may, because nginx's workers are another user.
func TestGatewayOverAUnixSocket(t *testing.T) {
	t.Parallel()
	e := startDelegation(t)
	g := realGateways()[0]
	address := g.start(t, e, "unix:"+e.socket)
	if got := e.ask(t, address, "/orders/", "Bearer "+e.token(nil)); got.status != http.StatusOK || got.passed.Get("X-Auth-Subject") != "alice" {
		t.Errorf("good: %d, %v", got.status, got.passed)
	}
	if got := e.ask(t, address, "/orders/", "Bearer "+e.token(map[string]any{"scope": "write"})); got.status != http.StatusForbidden || got.passed != nil {
		t.Errorf("without the scope: %d, %v", got.status, got.passed)
	}
}

func judgeGateway(t *testing.T, g *realGateway, out io.Writer) {
	e := startDelegation(t)
	address := g.start(t, e, e.http)
	good := e.token(nil)
	hourAgo := time.Now().Add(-time.Hour).Unix()
	check := func(name string, got asked, status int, challenge string) {
		t.Helper()
		passed := got.passed != nil
		fmt.Fprintf(out, "%s\t%s\t%d\t%s\t%v\n", g.name, name, got.status, strings.TrimPrefix(got.challenge, `Bearer realm="api", `), passed)
		if got.status != status || !strings.Contains(got.challenge, challenge) || passed != (status == http.StatusOK) {
			t.Errorf("%s: %d, challenge %q, passed %v; want %d, %q", name, got.status, got.challenge, passed, status, challenge)
		}
	}
	passed := e.ask(t, address, "/orders/7?scope=admin&audience=https://other.example.com", "Bearer "+good)
	check("good", passed, 200, "")
	for name, want := range map[string]string{"X-Auth-Subject": "alice", "X-Auth-Subject-Type": "sub", "X-Auth-Issuer": e.idp.Issuer(), "X-Auth-Client-Id": "web", "X-Auth-Scope": "read"} {
		if got := passed.passed[name]; len(got) != 1 || got[0] != want {
			t.Errorf("the service sees %s %q, want %q", name, got, want)
		}
	}
	if got := strings.Join(passed.passed["X-Auth-Actor"], ""); got != "" {
		t.Errorf("the service sees an actor, though the header is reserved: %q", got)
	}
	without := e.ask(t, address, "/orders/", "Bearer "+e.token(map[string]any{"client_id": ""}))
	check("good, without client_id", without, 200, "")
	if got := strings.Join(without.passed["X-Auth-Client-Id"], ""); got != "" {
		t.Errorf("the service sees a client that the token does not name: %q", got)
	}
	client := e.ask(t, address, "/orders/", "Bearer "+e.token(map[string]any{"sub": nil, "client_id": "alice"}))
	check("good, of a client without a user", client, 200, "")
	if subject := strings.Join(client.passed["X-Auth-Subject"], ""); subject != "" || client.passed.Get("X-Auth-Subject-Type") != "client_id" || client.passed.Get("X-Auth-Client-Id") != "alice" {
		t.Errorf("the service takes a client for a user: %v", client.passed)
	}
	check("missing", e.ask(t, address, "/orders/"), 401, `Bearer realm="api"`)
	check("tampered", e.ask(t, address, "/orders/", "Bearer "+good[:len(good)-4]+"AAAA"), 401, "invalid_token")
	check("malformed", e.ask(t, address, "/orders/", "Bearer x"), 401, "invalid_token")
	check("expired", e.ask(t, address, "/orders/", "Bearer "+e.token(map[string]any{"iat": hourAgo - 60, "exp": hourAgo})), 401, "invalid_token")
	check("another audience", e.ask(t, address, "/orders/?audience=https://other.example.com", "Bearer "+e.token(map[string]any{"aud": "https://other.example.com"})), 401, "invalid_token")
	check("without the scope", e.ask(t, address, "/orders/?scope=write", "Bearer "+e.token(map[string]any{"scope": "write"})), 403, `scope="read"`)
	if got := e.ask(t, address, "/orders/", "Bearer "+good, "Bearer "+good); got.status == 200 || got.passed != nil {
		t.Errorf("two tokens: %d", got.status)
	} else {
		check("two tokens", got, got.status, "")
	}
	revoked := e.token(map[string]any{"jti": "revoked-1"})
	check("not revoked yet", e.ask(t, address, "/orders/", "Bearer "+revoked), 200, "")
	if res := e.Run(t, "revocations", "add", "--issuer", e.idp.Issuer(), "--token-id", "revoked-1", "--reason", "a test"); res.Code != 0 {
		t.Fatalf("revocations add: %v", res)
	}
	check("revoked", e.ask(t, address, "/orders/", "Bearer "+revoked), 401, "invalid_token")

	e.signal(t, syscall.SIGSTOP)
	testkit.Eventually(t, "the broker stands still", e.stopped)
	slow := e.ask(t, address, "/orders/", "Bearer "+good)
	check("broker slow, after "+strconv.Itoa(int(slow.took.Round(time.Second)/time.Second))+" s", slow, 503, "")
	e.signal(t, syscall.SIGCONT)
	e.Process.Stop(t, os.Kill)
	check("broker down", e.ask(t, address, "/orders/", "Bearer "+good), 503, "")
	e.Launch(t, "broker")
	e.Await(t)
	testkit.Eventually(t, "the gateway finds the broker again", func() bool {
		got := e.ask(t, address, "/orders/", "Bearer "+good)
		return got.status == http.StatusOK
	})
}
