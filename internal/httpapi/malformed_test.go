package httpapi_test

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/httpapi"
)

// what requests at /verify and at the OAuth endpoints may be answered with when
// nothing about them is right.
var (
	verifyStatuses = []int{401, 503}
	oauthStatuses  = []int{400, 401, 405}
)

// shapes are values that requests are put together from.
var shapes = struct{ schemes, tokens, headers, queries, types, params []string }{
	schemes: []string{"Bearer ", "bearer", "Basic ", "Bearer  ", "Bearer\t", "DPoP ", "Digest ", "", " ", "Bearer,", "Bearer Bearer "},
	tokens: []string{
		"", ".", "..", "a.b.c", "eyJhbGciOiJub25lIn0.e30.", "eyJhbGciOiJIUzI1NiJ9.e30.AAAA", strings.Repeat("A", 9000), "%00", "a b", "a,b", `"`, "é",
		"eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ.eyJpc3MiOiJodHRwczovL2lkcC5leGFtcGxlLmNvbSJ9.AAAA", "null", "[]", "e30=.e30=.e30=", "eyJ\x80.e30.e30",
	},
	headers: []string{"X-Auth-Subject: root", "X-Forwarded-Uri: /admin", "X-Verify-Audience: *", "Accept: \xff", "Cookie: access_token=x", "Expect: x", "X-Original-URL: /", "Accept-Encoding: x"},
	queries: []string{"", "?", "?scope=read", "?scope=read&scope=x", "?access_token=a.b.c", "?scope=read&access_token=x", "?%zz", "?a=b;c=d", "?audience=", "?scope=%22", "?scope=%00", "?%61ccess_token=1"},
	types:   []string{"", "application/x-www-form-urlencoded", "application/x-www-form-urlencoded; charset=x", "application/json", "multipart/form-data; boundary=x", "text/plain", "%%", "application/x-www-form-urlencoded, text/plain"},
	params: []string{
		"grant_type=client_credentials", "grant_type=password", "client_id=orders", "client_id=", "client_id=%00", "token=x", "token=x&token=y", "access_token=x", "client_secret=x",
		"client_assertion=x", "client_assertion_type=" + url.QueryEscape(jwtBearer), "scope=%22", "=", "&&&", "%", "%zz=1", "a;b", "resource=&resource=", "\x00\xff", strings.Repeat("x", 70<<10),
	},
}

func pick(r *rand.Rand, from []string) string { return from[r.IntN(len(from))] }

// malformed makes a request of which nothing is right: none of its tokens is good.
func malformed(r *rand.Rand) (text string, allowed []int) {
	path, allowed := "/verify", verifyStatuses
	if r.IntN(2) == 0 {
		path, allowed = pick(r, []string{tokenPath, introspectPath}), oauthStatuses
	}
	method := pick(r, []string{"GET", "POST", "POST", "POST", "HEAD", "PUT"})
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s%s HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n", method, path, pick(r, shapes.queries))
	for range r.IntN(4) {
		fmt.Fprintf(&b, "Authorization: %s%s\r\n", pick(r, shapes.schemes), pick(r, shapes.tokens))
	}
	for range r.IntN(3) {
		b.WriteString(pick(r, shapes.headers) + "\r\n")
	}
	if kind := pick(r, shapes.types); kind != "" {
		b.WriteString("Content-Type: " + kind + "\r\n")
	}
	var params []string
	for range r.IntN(5) {
		params = append(params, pick(r, shapes.params))
	}
	body := strings.Join(params, "&")
	switch r.IntN(8) {
	case 0:
		b.WriteString("Transfer-Encoding: chunked\r\n\r\nzz\r\n")
	case 1:
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", len(body)+7, body) // it does not arrive whole
	default:
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", len(body), body)
	}
	return b.String(), allowed
}

// exchange sends a request, and no more after it, and returns the status of the
// answer and all of its bytes.
func (f *api) exchange(t *testing.T, text string) (status int, all string) {
	t.Helper()
	conn, err := net.Dial("tcp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	go func() {
		_, _ = io.WriteString(conn, text) // the answer may come before all is sent
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	data, err := io.ReadAll(conn)
	if len(data) == 0 {
		t.Fatalf("no answer (%v) to %.300q", err, text)
	}
	response, err := http.ReadResponse(bufio.NewReader(strings.NewReader(string(data))), &http.Request{Method: strings.Fields(text)[0]})
	if err != nil {
		t.Fatalf("%v: %.100q", err, data)
	}
	return response.StatusCode, string(data)
}

func TestMalformedRequests(t *testing.T) {
	f := serve(t, apitest.Gate, nil)
	// Keys are fetched before, and a caller is known.
	if got := f.do(t, "GET", need, bearer(f.Token(nil)), ""); got.status != 200 {
		t.Fatal(got.status)
	}
	before := runtime.NumGoroutine()
	r := rand.New(rand.NewPCG(1, 2))
	counts := map[int]int{}
	for range 10_000 {
		text, allowed := malformed(r)
		status, answered := f.exchange(t, text)
		counts[status]++
		// What is not HTTP at all net/http answers, before there is a path: 400, and what
		// is expected that nobody can meet: 417.
		early := strings.Contains(text, "Expect: x") && status == 417 || status == 400 && strings.Contains(text, "\xff")
		bound := status == 200 && answered[strings.Index(answered, "\r\n\r\n")+4:] == `{"active":false}`+"\n" || status == 403 // a caller may ask, of a bad token
		if !slices.Contains(allowed, status) && !early && !bound {
			t.Errorf("%d to %.300q", status, text)
		}
		for _, canary := range []string{apitest.SecretCanary, "goroutine ", "panic"} {
			if strings.Contains(answered, canary) {
				t.Errorf("%q is in the answer to %.300q", canary, text)
			}
		}
		if strings.Contains(answered, "X-Auth-Subject") {
			t.Errorf("an identity is in the answer to %.300q", text)
		}
	}
	t.Logf("answers by status: %v", counts)
	if log := f.Log.String(); strings.Contains(log, "crashed") || strings.Contains(log, "panic") || strings.Contains(log, "eyJhbGciOi") {
		t.Errorf("the log: %.2000s", log)
	}
	deadline := time.Now().Add(30 * time.Second)
	for runtime.NumGoroutine() > before+20 {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
		runtime.Gosched()
	}
	if got := f.do(t, "GET", need, bearer(f.Token(nil)), ""); got.status != 200 {
		t.Errorf("a good request after them: %d", got.status)
	}
}

// FuzzRequests has no request, whatever it is made of, crash a handler or be
// answered otherwise than is documented.
func FuzzRequests(f *testing.F) {
	f.Add("GET", "/verify", "scope=read", "Bearer a.b.c", "", "", "")
	f.Add("GET", "/verify", "scope=read&access_token=x", "", "Bearer x", "", "")
	f.Add("HEAD", "/verify/x", "%zz", "Basic Og==", "Basic Og==", "", "")
	f.Add("POST", tokenPath, "", "Basic b3JkZXJzOg==", "", "application/x-www-form-urlencoded", "grant_type=client_credentials")
	f.Add("POST", tokenPath, "", "", "", "application/x-www-form-urlencoded", "grant_type=client_credentials&client_id=orders&client_assertion=x&client_assertion_type="+jwtBearer)
	f.Add("POST", tokenPath, "grant_type=client_credentials", "Bearer x", "Bearer y", "application/json", "{}")
	f.Add("POST", introspectPath, "", "", "", "application/x-www-form-urlencoded;charset=UTF-8", "token=eyJhbGciOiJub25lIn0.e30.")
	f.Add("POST", introspectPath, "", "Bearer x", "", "application/x-www-form-urlencoded", "token=a&token=b")
	fixture := apitest.New(f)
	api := httpapi.New(httpapi.Config{
		Broker: fixture.Broker, Callers: fixture.Server(f, "").Callers().HTTP(caller.Bound{TCP: apitest.Gate}), Judge: gateway.New(gateway.Config{Broker: fixture.Broker}), Logger: fixture.Logger,
	})
	f.Fuzz(func(t *testing.T, method, path, query, first, second, kind, body string) {
		request := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
		request.Method, request.URL = method, &url.URL{Path: path, RawQuery: query}
		request.Header = http.Header{"Content-Type": {kind}}
		for _, value := range []string{first, second} {
			if value != "" {
				request.Header["Authorization"] = append(request.Header["Authorization"], value)
			}
		}
		answered := httptest.NewRecorder()
		api.ServeHTTP(answered, request)
		allowed := []int{404}
		switch {
		case path == "/verify" || strings.HasPrefix(path, "/verify/"):
			allowed = []int{401, 503}
		case path == tokenPath || path == introspectPath:
			allowed = []int{400, 401, 405, 403}
		}
		if !slices.Contains(allowed, answered.Code) {
			t.Errorf("%d", answered.Code)
		}
		if strings.Contains(fixture.Log.String(), "crashed") {
			t.Error("a handler crashed")
		}
	})
}
