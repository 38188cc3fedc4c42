package httpapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/httpapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// api is a served broker.
type api struct {
	*apitest.Fixture

	server  *httpapi.Server
	address string
	client  *http.Client
}

// serve serves a broker on loopback, bound to a caller.
func serve(t testing.TB, bound string, change func(*httpapi.Config)) *api {
	t.Helper()
	return serveFixture(t, apitest.New(t), bound, change)
}

func serveFixture(t testing.TB, fixture *apitest.Fixture, bound string, change func(*httpapi.Config)) *api {
	t.Helper()
	f := &api{Fixture: fixture}
	cfg := httpapi.Config{
		Broker: f.Broker, Callers: f.Server(t, "").Callers().HTTP(caller.Bound{TCP: bound}), Judge: gateway.New(gateway.Config{Broker: f.Broker}),
		Logger: f.Logger, URL: "https://broker.example.com:8444",
	}
	if change != nil {
		change(&cfg)
	}
	server := httpapi.New(cfg)
	f.server = server
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener, nil) }()
	transport := &http.Transport{DisableCompression: true}
	f.address, f.client = listener.Addr().String(), &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		server.Shutdown(time.Second)
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return f
}

// answer is a response that was read.
type answer struct {
	status int
	header http.Header
	body   string
	closes bool // the connection
}

func (f *api) do(t testing.TB, method, target string, header http.Header, body string) answer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+f.address+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		request.Header[http.CanonicalHeaderKey(name)] = values
	}
	response, err := f.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, string(data), response.Close}
}

func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

func (f *api) post(t testing.TB, path string, header http.Header, form url.Values) answer {
	t.Helper()
	all := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	maps.Copy(all, header)
	return f.do(t, http.MethodPost, path, all, form.Encode())
}

func (a answer) json(t testing.TB) map[string]any {
	t.Helper()
	body := map[string]any{}
	if err := json.Unmarshal([]byte(a.body), &body); err != nil {
		t.Fatalf("%d %q: %v", a.status, a.body, err)
	}
	return body
}

const need = "/verify?scope=read"

func TestVerify_statuses(t *testing.T) {
	f := serve(t, apitest.Gate, nil)
	good := f.Token(nil)
	fresh := func() string { return f.Token(nil) } // each case begins with a token that no other case has left in a cache
	expired := f.Token(map[string]any{"exp": time.Now().Add(-time.Hour).Unix(), "iat": time.Now().Add(-2 * time.Hour).Unix()})
	f.do(t, "GET", need, bearer(good), "") // so that it is remembered when it was tampered with
	for name, tt := range map[string]struct {
		target    string
		header    http.Header
		status    int
		challenge string
	}{
		"good":                        {need, bearer(good), 200, ""},
		"scheme in another case":      {need, http.Header{"Authorization": {"bEARER " + fresh()}}, 200, ""},
		"several spaces":              {need, http.Header{"Authorization": {"Bearer   " + fresh()}}, 200, ""},
		"a tab":                       {need, http.Header{"Authorization": {"Bearer \t" + fresh()}}, 401, `error="invalid_request"`},
		"the path of a request":       {"/verify/orders/7?scope=read", bearer(fresh()), 200, ""},
		"its audience":                {"/verify?audience=" + url.QueryEscape(apitest.Audience) + "&scope=read+write&issuer=" + url.QueryEscape(apitest.Issuer), bearer(fresh()), 200, ""},
		"no token":                    {need, nil, 401, `Bearer realm="api"`},
		"another scheme":              {need, http.Header{"Authorization": {"Basic YTpi"}}, 401, `Bearer realm="api"`},
		"expired":                     {need, bearer(expired), 401, `Bearer realm="api", error="invalid_token", error_description="The access token expired"`},
		"tampered":                    {need, bearer(good[:len(good)-4] + "AAAA"), 401, `error="invalid_token"`},
		"malformed":                   {need, bearer("x.y.z"), 401, `error="invalid_token"`},
		"no JWT":                      {need, bearer("opaque"), 401, `error="invalid_token"`},
		"empty":                       {need, http.Header{"Authorization": {"Bearer "}}, 401, `Bearer realm="api"`},
		"two tokens in one header":    {need, http.Header{"Authorization": {"Bearer " + fresh() + ", Bearer " + fresh()}}, 401, `error="invalid_request"`},
		"two headers":                 {need, http.Header{"Authorization": {"Bearer " + fresh(), "Bearer " + fresh()}}, 401, `error="invalid_request"`},
		"a token in the query":        {need + "&access_token=" + fresh(), nil, 401, `error="invalid_request"`},
		"another one in the query":    {need + "&access_token=x", bearer(fresh()), 401, `error="invalid_request"`},
		"another audience":            {need, bearer(f.Token(map[string]any{"aud": "https://other.example.com"})), 401, `error="invalid_token"`},
		"another issuer":              {need, bearer(f.Token(map[string]any{"iss": "https://evil.example.com"})), 401, `error="invalid_token"`},
		"bound to a key":              {need, bearer(f.Token(map[string]any{"cnf": map[string]any{"jkt": strings.Repeat("A", 43)}})), 401, `bound to a key`},
		"without a scope":             {"/verify?scope=read+admin", bearer(fresh()), 403, `Bearer realm="api", error="insufficient_scope", error_description="The access token lacks required scopes", scope="read admin"`},
		"the gateway asks of another": {"/verify?audience=https://other.example.com", bearer(fresh()), 503, ""},
		"the gateway says nothing":    {"/verify", bearer(fresh()), 503, ""},
		"the client's query":          {"/verify?id=7", bearer(fresh()), 503, ""},
		"the client's query, added":   {need + "&audience=a&audience=b", bearer(fresh()), 503, ""},
		"a malformed query":           {need + "&%zz", bearer(fresh()), 503, ""},
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "OPTIONS", "PURGE"} {
			got := f.do(t, method, tt.target, tt.header, "")
			challenge := got.header.Get("WWW-Authenticate")
			if got.status != tt.status || !strings.HasSuffix(challenge, tt.challenge) && !strings.Contains(challenge, tt.challenge) || (tt.challenge == "") != (challenge == "") {
				t.Errorf("%s, %s: %d, challenge %q; want %d, %q", name, method, got.status, challenge, tt.status, tt.challenge)
			}
			if cached := got.header.Get("Cache-Control"); tt.status != 200 && cached != "no-store" {
				t.Errorf("%s: Cache-Control %q", name, cached)
			}
			if wait := got.header.Get("Retry-After"); tt.status == 503 && wait != "1" { // at least, in whole seconds
				t.Errorf("%s: Retry-After %q", name, wait)
			}
			if tt.status != 200 && got.header.Get("X-Auth-Subject")+got.header.Get("X-Auth-Issuer") != "" {
				t.Errorf("%s: says whose token it is", name)
			}
		}
	}
	if log := f.Log.String(); strings.Contains(log, good[20:60]) || strings.Contains(log, expired[20:60]) {
		t.Error("a token is in the log")
	}
}

func TestHTTPDoesNotChangeFacts(t *testing.T) {
	f, confirmed := serve(t, apitest.Gate, nil), apitest.ManyFacts()
	confirmed["cnf"] = map[string]any{"jkt": "a"}
	for _, claims := range []map[string]any{apitest.ManyFacts(), confirmed} {
		token := f.Token(claims)
		f.ExpectUnchangedFacts(t, token, apitest.Audience)
		f.do(t, "GET", need, bearer(token), "")
		f.do(t, "GET", "/verify?scope=none", bearer(token), "")
		f.post(t, "/oauth2/introspect", nil, url.Values{"token": {token}})
	}
	byJWT := serve(t, "", nil)
	token := byJWT.CallerJWT(apitest.Shop)
	byJWT.ExpectUnchangedFacts(t, token, caller.DefaultAudience)
	byJWT.post(t, "/oauth2/introspect", bearer(token), url.Values{"token": {token}})
}

// A ninth header would make the map of headers take another form.
func TestVerify_eightHeaders(t *testing.T) {
	f := serve(t, apitest.Gate, nil)
	got := f.do(t, "GET", need, bearer(f.Token(nil)), "")
	got.header.Del("Date")
	got.header.Del("Content-Length")
	if got.status != http.StatusOK || len(got.header) > 8 {
		t.Errorf("status %d with %d headers: %v", got.status, len(got.header), got.header)
	}
	if denied := f.do(t, "GET", need, nil, ""); denied.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Error("a response with a body has no X-Content-Type-Options")
	}
}

func TestVerify_identityHeaders(t *testing.T) {
	f := serve(t, apitest.Gate, nil)
	got := f.do(t, "GET", need, bearer(f.Token(map[string]any{"sub": "Zoë %1 ", "client_id": nil})), "")
	want := map[string]string{
		"X-Auth-Subject": "Zo%C3%AB %251%20", "X-Auth-Subject-Type": "sub", "X-Auth-Issuer": apitest.Issuer, "X-Auth-Client-Id": "", "X-Auth-Scope": "read write", "X-Auth-Actor": "",
		"Cache-Control": "private, max-age=299", "Vary": "Authorization",
	}
	for name, value := range want {
		if values := got.header.Values(name); len(values) != 1 || values[0] != value && name != "Cache-Control" {
			t.Errorf("%s: %q, want one %q", name, values, value)
		}
	}
	if cached := got.header.Get("Cache-Control"); !strings.HasPrefix(cached, "private, max-age=") {
		t.Errorf("Cache-Control: %q", cached)
	}
	soon := f.do(t, "GET", need, bearer(f.Token(map[string]any{"exp": time.Now().Add(-time.Second).Unix()})), "")
	if soon.status != 200 || soon.header.Get("Cache-Control") != "no-store" {
		t.Errorf("a token within the leeway: %d, Cache-Control %q", soon.status, soon.header.Get("Cache-Control"))
	}
}

// A service that looks at X-Auth-Subject alone must not take a client for a user.
func TestClientIsNoSubjectForServices(t *testing.T) {
	f := serve(t, apitest.Gate, nil)
	token := f.Token(map[string]any{"sub": nil, "client_id": "alice"})
	got := f.do(t, "GET", need, bearer(token), "")
	for name, value := range map[string]string{"X-Auth-Subject": "", "X-Auth-Subject-Type": "client_id", "X-Auth-Issuer": apitest.Issuer, "X-Auth-Client-Id": "alice", "X-Auth-Actor": ""} {
		if values := got.header.Values(name); got.status != 200 || len(values) != 1 || values[0] != value {
			t.Errorf("%d, %s: %q, want one %q", got.status, name, values, value)
		}
	}
	introspected := f.post(t, introspectPath, bearer(f.CallerJWT(apitest.Shop)), with("token", token)).json(t)
	if introspected["active"] != true || introspected["sub"] != "alice" || introspected["subject_type"] != "client_id" {
		t.Errorf("introspection: %v", introspected)
	}
	introspected = f.post(t, introspectPath, bearer(f.CallerJWT(apitest.Shop)), with("token", f.Token(nil))).json(t)
	if _, marked := introspected["subject_type"]; marked || introspected["sub"] != "user-1" {
		t.Errorf("introspection of a user's token: %v", introspected)
	}
}

// With several issuers of opaque tokens the gateway says which one to ask, or its
// listener; whoever makes a request never does.
func TestSeveralIssuersOfOpaqueTokens(t *testing.T) {
	a, b := apitest.OpaqueToken(apitest.OpaqueA), apitest.OpaqueToken(apitest.OpaqueB)
	withListenerIssuer := func(f *apitest.Fixture, issuer string) func(*httpapi.Config) {
		return func(c *httpapi.Config) {
			c.Callers = f.Server(t, "").Callers().HTTP(caller.Bound{TCP: apitest.Gate, OpaqueTCP: issuer})
		}
	}
	for name, tt := range map[string]struct {
		listener, query, token string
		status                 int
	}{
		"nobody says":                     {"", "?scope=read", a, 401},
		"the query says":                  {"", "?issuer=" + apitest.OpaqueA, a, 200},
		"the query names the other":       {"", "?issuer=" + apitest.OpaqueA, b, 401},
		"the listener says":               {apitest.OpaqueB, "?scope=read", b, 200},
		"the listener names the other":    {apitest.OpaqueB, "?scope=read", a, 401},
		"the query goes before":           {apitest.OpaqueB, "?issuer=" + apitest.OpaqueA, a, 200},
		"the query names one without it":  {apitest.OpaqueB, "?issuer=" + apitest.Issuer, b, 401},
		"the request names it in headers": {"", "?scope=read", a, 401},
	} {
		t.Run(name, func(t *testing.T) {
			fixture := apitest.NewOpaque(t)
			f := serveFixture(t, fixture, apitest.Gate, withListenerIssuer(fixture, tt.listener))
			header := bearer(tt.token)
			header.Set("X-Verify-Issuer", apitest.OpaqueA)
			if got := f.do(t, "GET", "/verify"+tt.query, header, ""); got.status != tt.status {
				t.Errorf("%d, want %d", got.status, tt.status)
			}
		})
	}
	t.Run("needs in headers", func(t *testing.T) {
		fixture := apitest.NewOpaque(t)
		f := serveFixture(t, fixture, apitest.Gate, func(c *httpapi.Config) {
			withListenerIssuer(fixture, apitest.OpaqueB)(c)
			c.NeedsInHeaders = true
		})
		for issuer, status := range map[string]int{"": 503, apitest.OpaqueA: 200, apitest.OpaqueB: 401} {
			header := bearer(a)
			header.Set("X-Verify-Audience", apitest.Audience)
			if issuer != "" {
				header.Set("X-Verify-Issuer", issuer)
			}
			if got := f.do(t, "GET", "/verify", header, ""); got.status != status {
				t.Errorf("issuer %q: %d, want %d", issuer, got.status, status)
			}
		}
		header := bearer(f.Token(nil))
		header.Set("X-Verify-Audience", apitest.Audience)
		if got := f.do(t, "GET", "/verify", header, ""); got.status != 503 || !strings.Contains(f.Log.String(), "X-Verify-Issuer is missing") {
			t.Errorf("a JWT, and a gateway that names no issuer: %d", got.status)
		}
	})
	t.Run("introspection", func(t *testing.T) {
		f := serveFixture(t, apitest.NewOpaque(t), "", nil)
		for issuer, active := range map[string]bool{"": false, apitest.OpaqueA: true, apitest.OpaqueB: false} {
			got := f.post(t, introspectPath, bearer(f.CallerJWT(apitest.Shop)), with("token", a, "issuer", issuer)).json(t)
			if got["active"] != active {
				t.Errorf("issuer %q: %v", issuer, got)
			}
		}
	})
}

// A gateway that sends another spelling of an identity header along would pass it on to
// the service.
func TestVerify_otherSpellingsOfIdentityHeaders(t *testing.T) {
	f := serve(t, apitest.Gate, nil)
	for name, want := range map[string]int{
		"X-Auth-Subject": 200, "x-auth-SUBJECT": 200, "X-Request_Id": 200, "X-Auth-Subjects": 200,
		"X_Auth_Subject": 401, "x_auth-subject": 401, "X-Auth_Subject": 401, "X.Auth.Subject": 401, "X-Auth-Client_Id": 401, "X_Auth_Actor": 401, "X-Auth.Actor": 401, "X`Auth`Scope": 401, "x*auth^issuer": 401,
	} {
		status, _ := f.raw(t, "GET "+need+" HTTP/1.1\r\nHost: b\r\n"+name+": root\r\nAuthorization: Bearer "+f.Token(nil)+"\r\n\r\n")
		if status != fmt.Sprint(want) {
			t.Errorf("%s: %s, want %d", name, status, want)
		}
	}
}

func TestVerify_gatewayNeedsACertificate(t *testing.T) {
	f := serve(t, "", nil)
	got := f.do(t, "GET", need, bearer(f.CallerJWT(apitest.Shop)), "")
	if got.status != 503 || !strings.Contains(f.Log.String(), "a gateway must connect with a client certificate") {
		t.Errorf("status %d; log %s", got.status, f.Log)
	}
}

func TestVerify_unauthorizedGateway(t *testing.T) {
	f := serve(t, apitest.Idle, nil)
	got := f.do(t, "GET", need, bearer(f.Token(nil)), "")
	if got.status != 503 || !strings.Contains(f.Log.String(), `caller \"idle\" asked for`) {
		t.Errorf("status %d; log %s", got.status, f.Log)
	}
}

func TestDenialsAreAudited(t *testing.T) {
	fixture := apitest.New(t)
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	var err error
	if fixture.Audit, err = audit.Open(audit.Config{File: path, Logger: fixture.Logger}); err != nil {
		t.Fatal(err)
	}
	f := serveFixture(t, fixture, "", nil)
	token := f.Token(nil)
	f.do(t, "GET", need, bearer(token), "")
	f.post(t, introspectPath, bearer(token), with("token", token))
	_ = fixture.Audit.Close()
	lines, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, action := range []string{`"action":"/verify"`, `"action":"/oauth2/introspect"`, `"outcome":"unidentified"`} {
		if !strings.Contains(string(lines), action) {
			t.Errorf("no %s in %s", action, lines)
		}
	}
	if strings.Contains(string(lines), token[20:60]) {
		t.Error("a token is in the audit")
	}
}

func TestUnavailableKeysAre503(t *testing.T) {
	f := serveFixture(t, apitest.New(t, func(idp *devidp.Server) { idp.SetDown(true) }), apitest.Gate, nil)
	if got := f.do(t, "GET", need, bearer(f.Token(nil)), ""); got.status != 503 || got.header.Get("Retry-After") == "" {
		t.Errorf("status %d, Retry-After %q", got.status, got.header.Get("Retry-After"))
	}
}

func TestRequirementsInHeaders(t *testing.T) {
	f := serve(t, apitest.Gate, func(c *httpapi.Config) { c.NeedsInHeaders = true })
	for name, tt := range map[string]struct {
		target string
		needs  http.Header
		status int
	}{
		"good":                  {"/verify?id=7&audience=x", http.Header{"X-Verify-Audience": {apitest.Audience}, "X-Verify-Scope": {"read write"}}, 200},
		"a scope is missing":    {"/verify", http.Header{"X-Verify-Audience": {apitest.Audience}, "X-Verify-Scope": {"admin"}}, 403},
		"no audience":           {"/verify?audience=" + apitest.Audience, http.Header{"X-Verify-Scope": {"read"}}, 503},
		"an audience too much":  {"/verify", http.Header{"X-Verify-Audience": {apitest.Audience, apitest.Audience}}, 503},
		"a token in the query":  {"/verify?id=7&access_token=x", http.Header{"X-Verify-Audience": {apitest.Audience}}, 401},
		"the same, escaped":     {"/verify?%61ccess_token=x", http.Header{"X-Verify-Audience": {apitest.Audience}}, 401},
		"a query that is wrong": {"/verify?%zz", http.Header{"X-Verify-Audience": {apitest.Audience}}, 200},
	} {
		tt.needs["Authorization"] = []string{"Bearer " + f.Token(nil)}
		for range 2 { // the second time by what is remembered of the token
			if got := f.do(t, "GET", tt.target, tt.needs, ""); got.status != tt.status {
				t.Errorf("%s: %d, want %d", name, got.status, tt.status)
			}
		}
	}
}

func TestBodiesByAccept(t *testing.T) {
	f := serve(t, apitest.Gate, nil)
	text := f.do(t, "GET", need, http.Header{"Accept": {"text/html,*/*;q=0.8"}}, "")
	if text.body != "An access token is needed\n" || text.header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("text: %q, %q", text.body, text.header.Get("Content-Type"))
	}
	if got := f.do(t, "GET", "/verify?scope=admin", bearer(f.Token(nil)), "").json(t); got["error"] != "insufficient_scope" {
		t.Errorf("JSON: %v", got)
	}
}

func TestOtherPathsAreNotFound(t *testing.T) {
	f := serve(t, apitest.Gate, nil)
	for _, target := range []string{
		"/", "//verify", "/verify2", "/oauth2/token/", "/oauth2//token", "/OAUTH2/token", "/oauth2/../verify", "/debug/pprof/", "/oauth2/token;x", "/verify;/../x",
		// What stands before the broker may have taken these for another path.
		"/%76erify?scope=read", "/%76erify/x?scope=read", "/oauth2%2ftoken", "/oauth2/%74oken", "/oauth2/introspec%74", "/x/%2e%2e/verify?scope=read", "/oauth2/%2e/token",
	} {
		for _, method := range []string{"GET", "POST"} {
			if got := f.do(t, method, target, bearer(f.Token(nil)), ""); got.status != 404 {
				t.Errorf("%s %s: %d", method, target, got.status)
			}
		}
	}
	// The path behind /verify is that of a request, and may be spelled as it likes.
	if got := f.do(t, "GET", "/verify/%2e%2e/caf%c3%a9?scope=read", bearer(f.Token(nil)), ""); got.status != 200 {
		t.Errorf("an odd path behind /verify: %d", got.status)
	}
	for _, path := range []string{tokenPath, introspectPath} {
		for _, method := range []string{"GET", "PUT", "POS", "OST", "post"} {
			if got := f.do(t, method, path, nil, ""); got.status != 405 || got.header.Get("Allow") != "POST" {
				t.Errorf("%s %s: %d, Allow %q", method, path, got.status, got.header.Get("Allow"))
			}
		}
	}
}

func TestOldConnectionsAreClosed(t *testing.T) {
	for age, ends := range map[time.Duration]bool{time.Nanosecond: true, time.Hour: false} {
		fixture := apitest.New(t)
		fixture.Limits.ConnectionAge = age
		f := serveFixture(t, fixture, apitest.Gate, nil)
		request := "GET " + need + " HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer " + f.Token(nil) + "\r\n\r\n"
		if status, closed := f.raw(t, request); status != "200" || closed != ends {
			t.Errorf("after %v: status %s, closed %v", age, status, closed)
		}
	}
}

// raw sends bytes and returns the status line of the answer, and whether the
// connection was closed after it.
func (f *api) raw(t *testing.T, text string) (status string, closed bool) {
	t.Helper()
	conn, err := net.Dial("tcp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%.60q: %v", text, err)
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	return fmt.Sprint(response.StatusCode), response.Close
}

func TestSmugglingClosesTheConnection(t *testing.T) {
	f := serve(t, apitest.Gate, nil)
	const host = " HTTP/1.1\r\nHost: b\r\n"
	for name, tt := range map[string]struct{ text, status string }{
		"two lengths":              {"GET " + need + host + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "400"},
		"a length that is none":    {"GET " + need + host + "Content-Length: +5\r\n\r\nhello", "400"},
		"length and chunks":        {"GET " + need + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "401"},
		"chunks":                   {"GET " + need + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /verify", "401"},
		"a body":                   {"GET " + need + host + "Content-Length: 5\r\n\r\nhello", "401"},
		"another coding":           {"GET " + need + host + "Transfer-Encoding: gzip\r\n\r\n", "501"},
		"a space before the colon": {"GET " + need + host + "Content-Length : 5\r\n\r\nhello", "400"},
		"a folded header":          {"GET " + need + host + " X: y\r\n\r\n", "400"},
		"no host":                  {"GET " + need + " HTTP/1.1\r\n\r\n", "400"},
		"two hosts":                {"GET " + need + host + "Host: c\r\n\r\n", "400"},
		"a large header":           {"GET " + need + host + "X: " + strings.Repeat("x", 48<<10) + "\r\n\r\n", "431"},
		"HTTP/2":                   {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "404"},
	} {
		if status, closed := f.raw(t, tt.text); status != tt.status || !closed {
			t.Errorf("%s: %s, closed %v; want %s, closed", name, status, closed, tt.status)
		}
	}
}

// A request whose length could be read in two ways ends its connection, whatever the
// path: the body is never answered as the next request (RFC 9112 section 6.1).
func TestBodyIsNoNextRequest(t *testing.T) {
	f := serve(t, apitest.Gate, nil)
	token := f.Token(nil)
	smuggled := "GET " + need + " HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer " + token + "\r\n\r\n"
	form := with("token", token).Encode()
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(form), form)
	const (
		coded  = "Transfer-Encoding: chunked\r\n"
		length = "Content-Length: 5\r\n"
		alive  = "Connection: keep-alive\r\n"
	)
	for _, line := range []string{
		"GET " + need, "POST " + need, "HEAD " + need, "GET /verify/x?scope=read", "CONNECT " + need,
		"POST " + tokenPath, "POST " + introspectPath, "GET " + introspectPath, "GET /.well-known/oauth-authorization-server", "POST /.well-known/oauth-authorization-server", "POST /nowhere", "OPTIONS *",
	} {
		for name, sent := range map[string]string{
			"length and coding":           " HTTP/1.1\r\n" + coded + length + "\r\n" + chunked,
			"coding and length":           " HTTP/1.1\r\n" + length + coded + "\r\n" + chunked,
			"length 0 and coding":         " HTTP/1.1\r\nContent-Length: 0\r\n" + coded + "\r\n" + chunked,
			"coding alone":                " HTTP/1.1\r\n" + coded + "\r\n" + chunked,
			"two lengths":                 " HTTP/1.1\r\n" + length + "Content-Length: 6\r\n\r\nhello",
			"a list of lengths":           " HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\nhello",
			"coding twice":                " HTTP/1.1\r\n" + coded + coded + "\r\n" + chunked,
			"coding and identity":         " HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n" + chunked,
			"an empty coding":             " HTTP/1.1\r\nTransfer-Encoding:\r\n" + length + "\r\nhello",
			"a folded coding":             " HTTP/1.1\r\nTransfer-Encoding:\r\n chunked\r\n" + length + "\r\n" + chunked,
			"chunks that are none":        " HTTP/1.1\r\n" + coded + "\r\n5\nhello\n0\n\n",
			"HTTP/1.0, coding":            " HTTP/1.0\r\n" + alive + coded + "\r\n" + chunked,
			"HTTP/1.0, coding and length": " HTTP/1.0\r\n" + alive + coded + length + "\r\nhello",
			"HTTP/1.0, another coding":    " HTTP/1.0\r\n" + alive + "Transfer-Encoding: gzip\r\n\r\n" + chunked,
			"HTTP/1.0, coding twice":      " HTTP/1.0\r\n" + alive + coded + coded + "\r\n",
			"a body that is expected":     " HTTP/1.1\r\n" + coded + "Expect: 100-continue\r\n\r\n",
		} {
			sent = strings.Replace(sent, "\r\n", "\r\nHost: b\r\nContent-Type: application/x-www-form-urlencoded\r\nAuthorization: Bearer "+token+"\r\n", 1)
			if got := f.answers(t, line+sent+smuggled); len(got) != 1 {
				t.Errorf("%s, %s: %d answers: %q", line, name, len(got), got)
			}
		}
	}
	// The same requests, if their length is clear, leave the connection open.
	for _, line := range []string{"GET " + need, "GET /nowhere", "GET /.well-known/oauth-authorization-server"} {
		if got := f.answers(t, line+" HTTP/1.1\r\nHost: b\r\n\r\n"+smuggled); len(got) != 2 {
			t.Errorf("%s: %d answers: %q", line, len(got), got)
		}
	}
	plain := fmt.Sprintf(" HTTP/1.1\r\nHost: b\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", len(form), form)
	for _, line := range []string{"POST " + introspectPath, "POST " + tokenPath, "PUT " + tokenPath, "POST /nowhere"} {
		if got := f.answers(t, line+plain+smuggled); len(got) != 2 {
			t.Errorf("%s: %d answers: %q", line, len(got), got)
		}
	}
}

// answers sends text and returns the status lines of all final answers to it.
func (f *api) answers(t *testing.T, text string) (lines []string) {
	t.Helper()
	_, all := f.exchange(t, text)
	for line := range strings.Lines(all) {
		if strings.HasPrefix(line, "HTTP/1.") && !strings.Contains(line, " 100 ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// Unidentified callers may begin a bounded number of requests. Identified callers are not
// affected.
func TestUnfinishedRequestsAreBounded(t *testing.T) {
	const most = 20 // few, so that all are open at once before the first times out
	fixture := apitest.New(t)
	fixture.Limits.Strangers = most
	f := serveFixture(t, fixture, "", nil)
	jwt := f.CallerJWT(apitest.Shop)
	// A connection whose caller was identified before the others connect.
	form := with("token", f.Token(nil))
	request := "POST " + introspectPath + " HTTP/1.1\r\nHost: b\r\nContent-Type: application/x-www-form-urlencoded\r\nAuthorization: Bearer " + jwt +
		fmt.Sprintf("\r\nContent-Length: %d\r\n\r\n%s", len(form.Encode()), form.Encode())
	connection, err := net.Dial("tcp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = connection.Close() }()
	answers := bufio.NewReader(connection)
	send := func() int {
		t.Helper()
		if _, err := io.WriteString(connection, request); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		return response.StatusCode
	}
	if status := send(); status != 200 {
		t.Fatalf("before: %d", status)
	}
	for range most {
		conn, err := net.Dial("tcp", f.address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if _, err := io.WriteString(conn, "POST "+tokenPath+" HTTP/1.1\r\nHost: b\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 9\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(30 * time.Second)
	refused := f.post(t, tokenPath, nil, form)
	for refused.status != 429 {
		if time.Now().After(deadline) {
			t.Fatalf("%d with %d requests that do not end", refused.status, most)
		}
		refused = f.post(t, tokenPath, nil, form)
	}
	if refused.header.Get("Retry-After") != "1" || refused.json(t)["error"] != "temporarily_unavailable" { // a part of a second, rounded up
		t.Errorf("%v %s", refused.header, refused.body)
	}
	if status := send(); status != 200 {
		t.Errorf("one who is known: %d", status)
	}
}

func TestDisconnectedClientIsNoFailure(t *testing.T) {
	registry := prometheus.NewRegistry()
	f := serve(t, apitest.Shop, func(c *httpapi.Config) { c.Registerer = registry })
	requested := make(chan struct{}, 1)
	f.IdP.SetAnswer(func(_ http.ResponseWriter, r *http.Request) bool {
		requested <- struct{}{}
		<-r.Context().Done()
		return true
	})
	ctx, cancel := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+f.address+"/oauth2/token", strings.NewReader("grant_type=client_credentials&client_id=orders"))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	go func() { <-requested; cancel() }()
	if response, err := f.client.Do(request); err == nil {
		_ = response.Body.Close()
		t.Fatalf("answered with %d", response.StatusCode)
	}
	var status string
	for deadline := time.Now().Add(30 * time.Second); status == "" && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			for _, m := range family.GetMetric() {
				if family.GetName() == "tokenbroker_http_requests_total" && m.GetCounter().GetValue() > 0 {
					status = m.GetLabel()[0].GetValue()
				}
			}
		}
	}
	if status != "499" || strings.Contains(f.Log.String(), "request failed") {
		t.Errorf("it counts as %q, and the log says %s", status, f.Log.String())
	}
}

func TestDrainingClosesConnections(t *testing.T) {
	f := serve(t, apitest.Gate, nil)
	if got := f.do(t, "GET", need, bearer(f.Token(nil)), ""); got.status != 200 || got.closes {
		t.Errorf("before the drain: %d, closes: %v", got.status, got.closes)
	}
	f.server.Drain()
	if got := f.do(t, "GET", need, bearer(f.Token(nil)), ""); got.status != 200 || !got.closes {
		t.Errorf("while it drains: %d, closes: %v", got.status, got.closes)
	}
}
