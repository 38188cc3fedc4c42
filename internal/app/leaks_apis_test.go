package app_test

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/prototext"

	"github.com/cezzis/tokenbroker/internal/redact/redacttest"
)

// gateID is what the gateway's certificate says.
var gateID = &url.URL{Scheme: "spiffe", Host: "example.com", Path: "/gate"}

// leaksAPIs are who asks over HTTP, and in ext_authz.
type leaksAPIs struct {
	gate, anybody *http.Client
	envoy         *grpc.ClientConn
}

func (l *leaks) connectAPIs(p *pki) {
	l.t.Helper()
	client := func(config *tls.Config) *http.Client {
		transport := &http.Transport{TLSClientConfig: config}
		l.t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport, Timeout: time.Minute}
	}
	l.apis.gate, l.apis.anybody = client(p.client(gateID)), client(p.client(nil))
	l.apis.envoy = l.connect(credentials.NewTLS(p.client(gateID)))
}

// askHTTP sends a request and keeps what it is answered with, but for a token that
// was asked for.
func (l *leaks) askHTTP(by *http.Client, method, target string, header http.Header, body string) (status int, answer string) {
	l.t.Helper()
	request, err := http.NewRequestWithContext(l.t.Context(), method, "https://"+l.HTTPAddr()+target, strings.NewReader(body))
	if err != nil {
		l.t.Fatal(err)
	}
	request.Header = header
	response, err := by.Do(request)
	if err != nil {
		l.t.Fatalf("%s: %v", strings.SplitN(target, "?", 2)[0], err)
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	fmt.Fprintln(&l.answers, response.Status, response.Header)
	if target != "/oauth2/token" || response.StatusCode != http.StatusOK {
		fmt.Fprintf(&l.answers, "%s\n", data)
	}
	return response.StatusCode, string(data)
}

func bearerOf(tokens ...string) http.Header {
	header := http.Header{}
	for _, token := range tokens {
		header.Add("Authorization", "Bearer "+token)
	}
	return header
}

// junk looks like a JWT.
func (l *leaks) junk() string {
	part := func() string { return redacttest.Canary("junk") }
	return l.token("token that was presented", part()+"."+part()+"."+part())
}

// askVerify asks as a gateway does, with secrets wherever a request has room for them.
func (l *leaks) askVerify(good string) {
	l.t.Helper()
	canary := func(what string) string { return l.secret("canary in " + what) }
	verify := func(target string, header http.Header, want int) {
		l.t.Helper()
		header.Set("Cookie", "session="+canary("a cookie"))
		header.Set("X-Forwarded-Uri", "/?token="+canary("a header"))
		header.Set("User-Agent", canary("a user agent"))
		header.Set("Baggage", "jwt="+canary("baggage"))
		if got, _ := l.askHTTP(l.apis.gate, http.MethodGet, target, header, ""); got != want {
			l.t.Errorf("/verify: %d, want %d", got, want)
		}
	}
	const need = "/verify?audience=" + leaksGood
	verify(need, bearerOf(good), 200)
	verify("/verify/"+canary("a path")+"?audience="+leaksGood, bearerOf(good), 200)
	verify(need+"&scope=none", bearerOf(good), 403)
	verify(need, bearerOf(l.token("token that was presented", good[:len(good)-8]+"AAAAAAAA")), 401)
	verify(need, bearerOf(l.junk()), 401)
	verify(need, bearerOf(l.token("token that was presented", "opaque-"+redacttest.Canary("unknown"))), 401)
	verify(need, bearerOf(l.token("token that was presented", "token-that-panics-"+redacttest.Canary("opaque"))), 503)
	verify(need, bearerOf(l.junk(), l.junk()), 401)
	verify(need, bearerOf(l.junk()+" "+l.junk()), 401)
	verify(need, http.Header{"Authorization": {canary("another scheme") + " x"}}, 401)
	verify(need, http.Header{"Authorization": {"Basic " + canary("Basic")}}, 401)
	verify(need+"&access_token="+canary("a query"), bearerOf(good), 401)
	verify(need+"&"+canary("a parameter")+"="+canary("a query"), bearerOf(good), 503)
	verify("/verify?audience=another", bearerOf(good), 401) // the audit tells which
	if got, _ := l.askHTTP(l.apis.anybody, http.MethodPost, need, bearerOf(l.jwt("robot", nil)), canary("a body")); got != 503 {
		l.t.Errorf("a gateway that nobody knows: %d", got)
	}
}

// askOAuth asks as OAuth clients do.
func (l *leaks) askOAuth(good string) {
	l.t.Helper()
	canary := func(what string) string { return l.secret("canary in " + what) }
	post := func(path string, header http.Header, want int, pairs ...string) {
		l.t.Helper()
		form := url.Values{}
		for pair := range slices.Chunk(pairs, 2) {
			form.Add(pair[0], pair[1])
		}
		if header == nil {
			header = http.Header{}
		}
		header.Set("Content-Type", "application/x-www-form-urlencoded")
		got, text := l.askHTTP(l.apis.anybody, http.MethodPost, path, header, form.Encode())
		if want != 0 && got != want || want == 0 && got < 400 {
			l.t.Errorf("%.20s: %d, want %d", path, got, want)
		}
		var answer struct {
			Token string `json:"access_token"`
		}
		if json.Unmarshal([]byte(text), &answer) == nil && answer.Token != "" {
			l.token("token that was given", answer.Token)
		}
	}
	basic := func(id, secret string) http.Header {
		return http.Header{"Authorization": {"Basic " + l.secretly("credentials of Basic", base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(id)+":"+url.QueryEscape(secret))))}}
	}
	const token, introspect, assertion = "/oauth2/token", "/oauth2/introspect", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	grant := func(name string, more ...string) []string {
		return append([]string{"grant_type", "client_credentials", "client_id", name}, more...)
	}
	robot := func() string { return l.jwt("robot", nil) }
	post(token, bearerOf(robot()), 200, grant(leaksGood)...)
	post(token, basic(leaksGood, robot()), 200, "grant_type", "client_credentials")
	post(token, nil, 200, grant(leaksOpaque, "client_secret", robot())...)
	post(token, nil, 200, grant(leaksGood, "client_assertion_type", assertion, "client_assertion", robot())...)
	for _, name := range []string{leaksJSON, leaksDescription, leaksHTML, leaksHeader, leaksBroken, leaksRedirect, leaksHangUp, leaksRefused, leaksPlain, leaksPanic} {
		post(token, bearerOf(robot()), 0, grant(name)...)
	}
	post(token, basic(leaksGood, canary("a client secret")), 401, "grant_type", "client_credentials")
	post(token, nil, 401, grant(leaksGood, "client_assertion_type", assertion, "client_assertion", l.token("JWT of a caller", robot()[:40]+redacttest.Canary("assertion")))...)
	post(token, nil, 401, grant(leaksGood, "client_secret", l.jwt("stranger", nil))...)
	post(token, bearerOf(robot()), 400, grant(leaksGood, "client_secret", robot())...)
	post(token, bearerOf(robot(), robot()), 400, grant(leaksGood)...)
	post(token, bearerOf(robot()), 400, grant(leaksGood, "scope", canary("a scope"), "scope", canary("a scope"))...)
	post(token, bearerOf(robot()), 400, grant(good)...)
	post(token, bearerOf(robot()), 400, grant(leaksGood, "access_token", robot())...)
	post(token+"?client_secret="+canary("a query"), bearerOf(robot()), 400, grant(leaksGood)...)
	post(token, bearerOf(robot()), 400, "grant_type", canary("a grant type"), "client_id", leaksGood)
	post(introspect, bearerOf(robot()), 200, "token", good)
	post(introspect, basic("resource-server", robot()), 200, "token", l.token("token that was presented", "opaque-"+redacttest.Canary("unknown")))
	post(introspect, bearerOf(robot()), 0, "token", l.secrets["opaque token that is echoed"][0])
	post(introspect, bearerOf(l.jwt("guest", nil)), 403, "token", good)
	post(introspect, nil, 401, "token", good)
	post(introspect+"?token="+canary("a query"), bearerOf(robot()), 400, "token", good)
	post("/"+canary("a path"), bearerOf(robot()), 404)
	if got, _ := l.askHTTP(l.apis.anybody, canary("a method"), token, bearerOf(robot()), ""); got != 405 {
		l.t.Errorf("an odd method: %d", got)
	}
	// What is no HTTP, and no TLS.
	conn, err := (&tls.Dialer{Config: l.apis.anybody.Transport.(*http.Transport).TLSClientConfig}).DialContext(l.t.Context(), "tcp", l.HTTPAddr())
	l.sends(conn, err, "POST /oauth2/token HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer "+canary("a broken header")+"\r\n\r\n")
	conn, err = new(net.Dialer).DialContext(l.t.Context(), "tcp", l.HTTPAddr())
	l.sends(conn, err, "GET /verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+canary("plaintext")+"\r\n\r\n")
}

// sends sends text and waits until the connection ends.
func (l *leaks) sends(conn net.Conn, err error, text string) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, text); err != nil {
		l.t.Fatal(err)
	}
	answer, _ := io.ReadAll(conn)
	if !strings.Contains(string(answer), " 400 ") {
		l.t.Errorf("what is no HTTP is answered with %.40q", answer)
	}
	fmt.Fprintf(&l.answers, "%s\n", answer)
}

// askExtAuthz asks as Envoy does.
func (l *leaks) askExtAuthz(good string) {
	l.t.Helper()
	canary := func(what string) string { return l.secret("canary in " + what) }
	client := authv3.NewAuthorizationClient(l.apis.envoy)
	check := func(token, path string, extensions map[string]string, want codes.Code, denied int) {
		l.t.Helper()
		answer, err := client.Check(l.t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			ContextExtensions: extensions,
			Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
				Method: "GET", Host: canary("a host"), Path: path, Body: canary("a body"),
				Headers:   map[string]string{":path": path, "authorization": "Bearer " + token, "cookie": canary("a cookie")},
				HeaderMap: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: "x-api-key", RawValue: []byte(canary("a header"))}}},
			}},
		}})
		l.expect("Check", err, want)
		if got := int(answer.GetDeniedResponse().GetStatus().GetCode()); got != denied {
			l.t.Errorf("Check: denied with %d, want %d", got, denied)
		}
		fmt.Fprintln(&l.answers, prototext.Format(answer))
	}
	audience := map[string]string{"audience": leaksGood}
	check(good, "/", audience, codes.OK, 0)
	check(good, "/?access_token="+canary("a query"), audience, codes.OK, 401)
	check(good[:len(good)-8]+"AAAAAAAA", "/"+canary("a path"), audience, codes.OK, 401)
	check(l.junk(), "/", audience, codes.OK, 401)
	check(good, "/", map[string]string{"audience": leaksGood, "scope": "none"}, codes.OK, 403)
	check(good, "/", map[string]string{"scope": `"` + canary("a scope")}, codes.InvalidArgument, 0)
	check(l.token("token that was presented", "token-that-panics-"+redacttest.Canary("opaque")), "/", audience, codes.Unavailable, 0)
	if _, err := client.Check(l.t.Context(), &authv3.CheckRequest{}); err == nil {
		l.t.Error("nothing is asked, and it is answered")
	}
	if _, err := authv3.NewAuthorizationClient(l.conn).Check(l.as(l.jwt("robot", nil)), &authv3.CheckRequest{}); err == nil {
		l.t.Error("a gateway that nobody knows is answered")
	}
}
