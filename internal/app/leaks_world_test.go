package app_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
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
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"

	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/redact/redacttest"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// leaks is a broker with everything switched on that tells of it, at its most
// talkative, amid an IdP, callers and a Redis that would give its secrets away.
type leaks struct {
	*app.App

	t      *testing.T
	dir    string
	idp    *devidp.Server
	issuer string
	keys   *httptest.Server // of issuers that demand a token for them
	// publicKeys is the URL of the keys that the broker makes for a client.
	publicKeys string
	redis      *redistest.Server
	conn       *grpc.ClientConn
	apis       leaksAPIs

	// secrets are what must not be seen, by what it is.
	secrets map[string][]string
	// What is searched for them.
	log       *testkit.Log
	collector *otlp
	monitored func() string
	mu        sync.Mutex
	statuses  strings.Builder // of calls that failed, with their details
	answers   strings.Builder // over HTTP and of ext_authz, but for tokens that were asked for
	errors    strings.Builder // of starts that failed, and findings of checks
}

// The names of the clients say what their IdP does.
const (
	leaksGood, leaksOpaque                              = "good", "opaque"
	leaksJSON, leaksDescription, leaksHTML, leaksHeader = "echo-json", "echo-description", "echo-html", "echo-header"
	leaksBroken, leaksRedirect, leaksHangUp             = "echo-broken", "echo-redirect", "hang-up"
	leaksRefused, leaksPlain                            = "refused", "no-tls"
	leaksPanic, leaksHandler, leaksHanging              = "panic", "panic-of-the-handler", "hanging"
	leaksHandlerOfSecrets                               = "panic-of-the-handler-of-secrets"
)

func leaksClients() []string {
	return []string{
		leaksGood, leaksOpaque, leaksJSON, leaksDescription, leaksHTML, leaksHeader, leaksBroken, leaksRedirect, leaksHangUp,
		leaksRefused, leaksPlain, leaksPanic, leaksHandler, leaksHanging,
	}
}

// secret makes a secret and remembers that it must not be seen.
func (l *leaks) secret(what string) string {
	return l.secretly(what, redacttest.Canary(strings.ReplaceAll(what, " ", "-")))
}

func (l *leaks) secretly(what, text string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.secrets == nil {
		l.secrets = map[string][]string{}
	}
	l.secrets[what] = append(l.secrets[what], text)
	return text
}

// token remembers a token. Its header may be seen.
func (l *leaks) token(what, token string) string {
	if parts := strings.Split(token, "."); len(parts) == 3 {
		l.secretly(what, parts[1])
		l.secretly(what, parts[2])
	}
	return l.secretly(what, token)
}

func (l *leaks) file(name, content string) string {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	testkit.WriteFile(l.t, path, content)
	return path
}

// key remembers the private key of a PEM file, line by line.
func (l *leaks) key(what, path string) string {
	l.t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		l.t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "-") && len(line) > 16 {
			l.secretly(what, line)
		}
	}
	return path
}

// serveIdP serves an IdP that repeats what it is sent wherever there is room for
// text.
func (l *leaks) serveIdP(registered []devidp.Client) {
	l.t.Helper()
	listener := httptest.NewUnstartedServer(nil)
	l.issuer = "http://" + listener.Listener.Addr().String()
	var err error
	if l.idp, err = devidp.New(devidp.Config{Issuer: l.issuer, Algorithm: "EdDSA", Clients: registered}); err != nil {
		l.t.Fatal(err)
	}
	hanging := make(chan struct{})
	l.idp.SetAnswer(func(w http.ResponseWriter, r *http.Request) bool { return misbehave(w, r, hanging) })
	l.idp.SetIntrospection(func(w http.ResponseWriter, r *http.Request) bool {
		if r.FormValue("token") != l.secrets["opaque token that is echoed"][0] {
			return false
		}
		http.Error(w, echoed(r), http.StatusInternalServerError)
		return true
	})
	listener.Config.Handler = l.idp
	listener.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	listener.Start()
	l.t.Cleanup(func() { close(hanging); listener.CloseClientConnections(); listener.Close() })
}

// echoed is all of a request.
func echoed(r *http.Request) string {
	_, password, _ := r.BasicAuth()
	return strings.Join([]string{r.RequestURI, fmt.Sprint(r.Form), r.Header.Get("Authorization"), password}, " ")
}

func misbehave(w http.ResponseWriter, r *http.Request, hanging <-chan struct{}) bool {
	text := strings.NewReplacer(`"`, "", `\`, "").Replace(echoed(r))
	w.Header().Set("Content-Type", "application/json")
	switch r.Form.Get("audience") {
	case leaksJSON:
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"error":%q}`, text)
	case leaksDescription:
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"error":"invalid_request","error_description":%q}`, text)
	case leaksHTML:
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, "<html>%s", text)
	case leaksHeader:
		w.Header().Set("WWW-Authenticate", "Basic realm="+text)
		w.Header().Set("Retry-After", text)
		w.WriteHeader(http.StatusServiceUnavailable)
	case leaksRedirect:
		w.Header().Set("Location", "https://idp.example/?"+url.QueryEscape(text))
		w.WriteHeader(http.StatusFound)
	case leaksBroken:
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 %s\r\n\r\n", text)
			_ = conn.Close()
		}
	case leaksHangUp:
		panic(http.ErrAbortHandler)
	case leaksHanging:
		<-hanging
	default:
		return false
	}
	return true
}

// panicky is the network, until it is asked to take a marked request.
type panicky struct{ http.RoundTripper }

func (p panicky) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.GetBody == nil {
		return p.RoundTripper.RoundTrip(r)
	}
	body, err := r.GetBody()
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(body)
	if strings.Contains(string(text), "audience="+leaksPanic+"&") || strings.Contains(string(text), "token-that-panics") {
		panic(fmt.Sprintf("%s %v %v", text, r.Header, err))
	}
	return p.RoundTripper.RoundTrip(r)
}

// echoRedis is a Redis that answers everything with an error that repeats it.
func echoRedis(t *testing.T) string {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				said := ""
				for reader := bufio.NewReader(conn); ; {
					line, err := reader.ReadString('\n')
					if err != nil {
						return
					}
					if said += " " + strings.TrimSpace(line); !strings.HasPrefix(line, "$") && !strings.HasPrefix(line, "*") && reader.Buffered() == 0 {
						_, _ = fmt.Fprintf(conn, "-ERR unknown command, with args beginning with:%s\r\n", said)
						said = ""
					}
				}
			})
		}
	})
	t.Cleanup(func() { _ = listener.Close(); serving.Wait() })
	return listener.Addr().String()
}

// config is a configuration that has it all.
func (l *leaks) config(redisAddress, redisTLS, password string) string {
	l.t.Helper()
	gone, err := new(net.ListenConfig).Listen(l.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	_ = gone.Close()
	public, err := new(net.ListenConfig).Listen(l.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	_ = public.Close()
	pki := newPKI(l.t)
	l.key("private key of the listener", filepath.Join(pki.dir, "tls.key"))
	ring := l.file("ring.json", string(sealed.GenerateRing().Reveal()))
	l.sealingKeys(ring)

	var text strings.Builder
	fmt.Fprintf(&text, "listen: {grpc: \"127.0.0.1:0\", http: \"127.0.0.1:0\", ops: \"127.0.0.1:0\", public_keys: {address: %q, url: \"http://%s\"}, %s}\nserver: {pprof: true, reflection: true, slow_call: 1ms}\nlog: {level: debug}\n", public.Addr(), public.Addr(), pki.config())
	text.WriteString(upstreamConfig())
	l.t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token="+l.secret("token for the collector"))
	fmt.Fprintf(&text, "audit: {file: %q, tokens: every, verifications: all}\ntracing: {endpoint: \"http://%s\", sample: 1}\n", filepath.Join(l.dir, "audit.jsonl"), l.collectorAddress())
	fmt.Fprintf(&text, "store: {redis: {addresses: [%q], username: tokenbroker, password: %q%s}, sealing_keys: %q}\n", redisAddress, "file:"+l.file("redis-password", password), redisTLS, "file:"+ring)
	text.WriteString("clients:\n")
	for i, name := range leaksClients() {
		at := l.issuer
		switch name {
		case leaksRefused:
			at = "http://" + gone.Addr().String()
		case leaksPlain:
			at = strings.Replace(at, "http:", "https:", 1)
		}
		query := "?key=" + l.secret("query of a token URL")
		if name == leaksGood || name == leaksOpaque {
			query = "" // the IdP does not want it
		}
		auth := []string{"client_secret_basic", "client_secret_post"}[i%2]
		fmt.Fprintf(&text, "  %s: {token_url: \"%s%s%s\", client_id: %s, auth: %s, secret: %q, audience: %s}\n",
			name, at, devidp.TokenPath, query, name, auth, "file:"+l.file(name, l.secrets["secret of "+name][0]), name)
	}
	for name, audience := range leaksManagedClients() {
		fmt.Fprintf(&text, "  %s: {token_url: %q, client_id: %s, secret: managed, audience: %s}\n", name, l.issuer+devidp.TokenPath, name, audience)
	}
	printed := l.file(leaksPrinted, l.secrets["secret of "+leaksPrinted][0])
	for name, command := range map[string]string{
		leaksPrinted: "[/bin/cat, " + printed + "]", "printed-badly": "[/bin/sh, -c, 'cat " + printed + "; cat " + printed + " >&2; exit 3']",
	} {
		fmt.Fprintf(&text, "  %s: {token_url: %q, client_id: %s, secret: {exec: {command: %s}}, audience: %[3]s}\n", name, l.issuer+devidp.TokenPath, leaksPrinted, command)
	}
	fmt.Fprintf(&text, "  %s: {token_url: %q, client_id: %s, secret: %q, audience: %s, exchange: {actor: client}}\n",
		leaksBehalf, l.issuer+devidp.TokenPath, leaksBehalf, "file:"+l.file(leaksBehalf, l.secrets["secret of "+leaksBehalf][0]), leaksBehalf)
	fmt.Fprintf(&text, "  %s: {token_url: %q, client_id: %s, auth: private_key_jwt, key: {algorithm: ES256}, audience: api}\n", leaksMade, l.issuer+devidp.TokenPath, leaksMade)
	fmt.Fprintf(&text, "issuers: [{issuer: %q, audiences: [api, %s], types: [JWT, at+jwt], introspection: {client: good, cache: 0s, endpoint: \"%s%s\"}}%s]\n",
		l.issuer, leaksGood, l.issuer, devidp.IntrospectionPath, l.keysWithTokens())
	fmt.Fprintf(&text, "callers: [{name: robot, issuer: %q, subject: robot, roles: [all]}, {name: guest, issuer: %q, subject: guest, roles: [little]}, {name: gate, spiffe_id: %q, roles: [all]}]\n", l.issuer, l.issuer, gateID)
	text.WriteString("roles:\n  all: {get: [{client: \"*\", audiences: [\"*\"], resources: [\"*\"], scopes: [\"*\"]}], verify: [{issuer: \"*\", audiences: [\"*\"]}], admin: [{actions: [\"*\"]}]")
	fmt.Fprintf(&text, ", exchange: [{client: %s, from: {issuers: [%q], audiences: [bff]}, audiences: [\"*\"]}]}\n", leaksBehalf, l.issuer)
	fmt.Fprintf(&text, "  little: {get: [{client: %s}]}\n", leaksGood)
	l.dial(pki)
	return text.String()
}

func (l *leaks) sealingKeys(ring string) {
	l.t.Helper()
	content, err := os.ReadFile(ring)
	if err != nil {
		l.t.Fatal(err)
	}
	var read struct {
		Names string
		Keys  map[string]string
	}
	if err := json.Unmarshal(content, &read); err != nil {
		l.t.Fatal(err)
	}
	for _, key := range append(slices.Collect(maps.Values(read.Keys)), read.Names) {
		l.secretly("sealing key", key)
		raw, err := base64.StdEncoding.DecodeString(key)
		if err != nil {
			l.t.Fatal(err)
		}
		l.secretly("sealing key", string(raw)) // and so in hex
	}
}

func (l *leaks) collectorAddress() string {
	if l.collector != nil {
		return "127.0.0.1:1"
	}
	var address string
	l.collector, address = startOTLP(l.t)
	return address
}

func (l *leaks) dial(p *pki) {
	l.t.Helper()
	if l.conn != nil {
		return
	}
	l.conn = l.connect(credentials.NewTLS(p.client(nil)))
	l.connectAPIs(p)
}

func (l *leaks) connect(secure credentials.TransportCredentials) *grpc.ClientConn {
	l.t.Helper()
	conn, err := grpc.NewClient("passthrough:///broker", grpc.WithTransportCredentials(secure), grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", l.GRPCAddr())
		}))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// as is the context of a call by a JWT.
func (l *leaks) as(jwt string) context.Context {
	return metadata.AppendToOutgoingContext(l.t.Context(), "authorization", "Bearer "+jwt, "baggage", "jwt="+jwt)
}

func (l *leaks) jwt(subject string, claims map[string]any) string {
	all := map[string]any{"iss": l.issuer, "sub": subject, "aud": "tokenbroker", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(), "jti": redacttest.Canary("jti")}
	maps.Copy(all, claims)
	return l.token("JWT of a caller", l.idp.Mint(all).Reveal())
}

// expect checks how a call ended, and keeps what its caller was told.
func (l *leaks) expect(what string, err error, want codes.Code) {
	l.t.Helper()
	told := status.Convert(err)
	if told.Code() != want {
		l.t.Errorf("%s: %v, want %v", what, err, want)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(&l.statuses, "%s: %v\n%s\n", what, err, prototext.Format(told.Proto()))
	for _, detail := range told.Details() {
		fmt.Fprintf(&l.statuses, "%+v\n", detail)
	}
}

func (l *leaks) fails(what string, err error, says string) {
	l.t.Helper()
	if err == nil || !strings.Contains(err.Error(), says) {
		l.t.Errorf("%s: %v, want %q", what, err, says)
	}
	for ; err != nil; err = errors.Unwrap(err) {
		fmt.Fprintf(&l.errors, "%v %+v %#v %q\n", err, err, err, err)
	}
}

func startLeaks(t *testing.T) *leaks {
	t.Helper()
	l := &leaks{t: t, dir: t.TempDir(), log: &testkit.Log{}}
	var registered []devidp.Client
	for _, name := range leaksClients() {
		registered = append(registered, devidp.Client{
			ID: name, Secrets: []redact.String{redact.New(l.secret("secret of " + name))}, Audiences: []string{name, "api"}, Opaque: name == leaksOpaque,
		})
	}
	registered = append(registered, devidp.Client{
		ID: leaksPrinted, Secrets: []redact.String{redact.New(l.secret("secret of " + leaksPrinted))}, Audiences: []string{leaksPrinted},
	}, devidp.Client{
		ID: leaksBehalf, Secrets: []redact.String{redact.New(l.secret("secret of " + leaksBehalf))}, Audiences: []string{leaksBehalf},
		Exchange: &devidp.Exchange{SubjectAudiences: []string{"bff"}, RequireActor: true},
	})
	managed := devidp.Client{ID: leaksManaged, Audiences: []string{"api"}}
	for range 3 {
		managed.Secrets = append(managed.Secrets, redact.New(l.secret("managed secret")))
	}
	registered = append(registered, managed, l.made())
	l.token("opaque token that is echoed", "opaque-"+redacttest.Canary("opaque"))
	l.serveIdP(registered)
	l.serveKeys()
	password := l.secret("password of Redis")
	certificates := redistest.NewCertificates(t)
	l.key("private key towards Redis", certificates.ClientKey)
	l.redis = redistest.Start(t, redistest.Options{
		ACL: []string{strings.Replace(redisstore.ACLExample, "PASSWORD", password, 1) + " " + redisstore.ACLConfirm}, Certificates: certificates, AppendOnly: true,
		Config: []string{"slowlog-log-slower-than 0", "slowlog-max-len 100000"},
	})
	l.monitored = l.redis.Monitor()
	tls := fmt.Sprintf(", tls: {ca: %q, cert: %q, key: %q}", certificates.CA, certificates.ClientCert, certificates.ClientKey)
	config := l.config(l.redis.Addr(), tls, password)

	options := &slog.HandlerOptions{Level: slog.LevelDebug}
	log := slog.New(slog.NewMultiHandler(slog.NewJSONHandler(l.log, options), slog.NewTextHandler(l.log, options)))
	handlerPanics := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if ask, ok := req.(interface{ GetClientName() string }); ok && strings.HasPrefix(ask.GetClientName(), leaksHandler) {
			header, _ := metadata.FromIncomingContext(ctx)
			panic(fmt.Sprint(req, header.Get("authorization")))
		}
		return handler(ctx, req)
	}
	var err error
	l.App, err = app.New(parsed(t, config), app.Options{
		Logger: log, Transport: panicky{l.keys.Client().Transport},
		ServerOptions: []grpc.ServerOption{grpc.ChainUnaryInterceptor(handlerPanics)},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	t.Cleanup(sync.OnceFunc(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}))
	// What somebody who looks for a fault may add.
	for name, value := range l.Internals(ctx) {
		log.Debug("by mistake", "name", name, "value", value)
		log.Debug(fmt.Sprintf("by mistake: %s: %v %+v %#v %s", name, value, value, value, value))
	}
	l.wrongConfigurations(config, password)
	return l
}

// wrongConfigurations starts brokers that cannot start, and reads files that hold a
// secret in the wrong place.
func (l *leaks) wrongConfigurations(cfg, password string) {
	l.t.Helper()
	opts := app.Options{Logger: slog.New(slog.NewJSONHandler(l.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	start := func(text string) error {
		broker, err := app.New(parsed(l.t, text), opts)
		if err == nil {
			broker.Close()
		}
		return err
	}
	secret := l.secrets["secret of "+leaksGood][0]
	for what, wrong := range map[string]string{
		"a literal":           strings.Replace(cfg, "\"file:"+filepath.Join(l.dir, leaksGood)+"\"", secret, 1),
		"no space":            strings.Replace(cfg, "audit: {", "audit:"+secret+": {", 1),
		"a secret as URL":     strings.Replace(cfg, l.issuer+devidp.TokenPath, "https://user:"+secret+"@idp.example/token", 1),
		"a secret in an enum": strings.Replace(cfg, "tokens: every", "tokens: "+secret, 1),
	} {
		_, err := config.Parse("broker.yaml", []byte(wrong))
		l.fails(what, err, "broker.yaml")
	}
	elsewhere := strings.Replace(cfg, "audit.jsonl", "another.jsonl", 1)
	repeats := strings.Replace(l.config(echoRedis(l.t), "", password), "audit.jsonl", "another.jsonl", 1)
	if err := start(repeats); err != nil { // it is taken for one that is away, which is logged
		l.fails("a Redis that repeats what it is sent", err, "Redis")
	}
	l.file("redis-password", l.secret("password of Redis")) // a wrong one
	l.fails("a wrong password of Redis", start(elsewhere), "refuses the login")
	l.file("redis-password", password)
	l.file("ring-broken.json", `{"names": "`+l.secret("sealing key")+`"}`)
	l.fails("a broken ring", start(strings.Replace(elsewhere, "ring.json", "ring-broken.json", 1)), "ring")
}
