package client_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/client/brokertest"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// api is an HTTP API that records its calls.
type api struct {
	*httptest.Server

	rejected atomic.Value // an Authorization to respond 401 to; * for all

	mu    sync.Mutex
	calls []call
}

type call struct{ path, authorization, body string }

func startAPI(t *testing.T, handlers ...http.HandlerFunc) *api {
	t.Helper()
	a := &api{}
	a.rejected.Store("")
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		a.mu.Lock()
		a.calls = append(a.calls, call{r.URL.Path, strings.Join(r.Header.Values("Authorization"), "|"), string(body)})
		a.mu.Unlock()
		if rejected := a.rejected.Load(); rejected == "*" || rejected != "" && r.Header.Get("Authorization") == rejected {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		for _, handle := range handlers {
			handle(w, r)
		}
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *api) all() []call {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]call{}, a.calls...)
}

// body records whether it was closed.
type body struct {
	io.Reader

	closed atomic.Bool
}

func (b *body) Close() error { b.closed.Store(true); return nil }

// do makes a request and returns the status.
func do(t *testing.T, c *http.Client, method, url string, body io.Reader) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// ownTransport returns a transport whose connections end with the test.
func ownTransport(t *testing.T) http.RoundTripper {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

func TestRoundTripper_refusedRequestIsRepeatedOnce(t *testing.T) {
	b := brokertest.New(t)
	source := b.Client().TokenSource(name)
	c := &http.Client{Transport: source.RoundTripper(ownTransport(t))}
	a := startAPI(t)
	old := mustToken(t, source).Authorization()
	a.rejected.Store(old)
	if got := do(t, c, http.MethodPost, a.URL+"/orders", strings.NewReader("an order")); got != http.StatusOK {
		t.Errorf("status %d", got)
	}
	fresh := mustToken(t, source).Authorization()
	calls := a.all()
	if len(calls) != 2 || calls[0] != (call{"/orders", old, "an order"}) || calls[1] != (call{"/orders", fresh, "an order"}) || old == fresh {
		t.Errorf("%d requests, or unexpected bodies or tokens", len(calls))
	}
	if got := do(t, c, http.MethodGet, a.URL, nil); got != http.StatusOK || len(a.all()) != 3 {
		t.Errorf("then: status %d, %d requests", got, len(a.all()))
	}
	if n := b.IdPRequests(); n != 2 {
		t.Errorf("%d tokens fetched", n)
	}
}

func TestRoundTripper_reportsUnrepeatableRequest(t *testing.T) {
	b := brokertest.New(t)
	source := b.Client().TokenSource(name)
	c := &http.Client{Transport: source.RoundTripper(ownTransport(t))}
	a := startAPI(t)
	old := mustToken(t, source)
	a.rejected.Store(old.Authorization())
	sent := &body{Reader: strings.NewReader("an order")}
	if got := do(t, c, http.MethodPost, a.URL, sent); got != http.StatusUnauthorized || len(a.all()) != 1 || !sent.closed.Load() {
		t.Errorf("status %d after %d requests, body closed: %v", got, len(a.all()), sent.closed.Load())
	}
	testkit.Eventually(t, "the token is replaced", func() bool { return mustToken(t, source) != old })
}

func TestRoundTripper_atMostTwoRequests(t *testing.T) {
	b := brokertest.New(t)
	source := b.Client().TokenSource(name)
	c := &http.Client{Transport: source.RoundTripper(ownTransport(t))}
	a := startAPI(t)
	a.rejected.Store("*")
	for range 3 { // the second token is not reported before 30 s have passed
		if got := do(t, c, http.MethodGet, a.URL, nil); got != http.StatusUnauthorized {
			t.Errorf("status %d", got)
		}
	}
	if n := b.IdPRequests(); n != 2 || len(a.all()) != 4 {
		t.Errorf("%d tokens fetched for %d requests", n, len(a.all()))
	}
}

// A redirect to another origin does not get the token.
func TestRoundTripper_redirectGetsNoToken(t *testing.T) {
	source := brokertest.New(t).Client().TokenSource(name)
	c := &http.Client{Transport: source.RoundTripper(ownTransport(t))}
	token := mustToken(t, source).Authorization()
	var origin *api
	other := startAPI(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/and-back" {
			http.Redirect(w, r, origin.URL+"/stolen-call", http.StatusTemporaryRedirect)
		}
	})
	origin = startAPI(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/here":
			http.Redirect(w, r, "/there", http.StatusTemporaryRedirect)
		case "/away":
			http.Redirect(w, r, other.URL+"/", http.StatusTemporaryRedirect)
		case "/away-and-back":
			http.Redirect(w, r, other.URL+"/and-back", http.StatusTemporaryRedirect)
		case "/other-name":
			http.Redirect(w, r, strings.Replace(origin.URL, "127.0.0.1", "localhost", 1)+"/", http.StatusTemporaryRedirect)
		}
	})
	for _, path := range []string{"/here", "/away", "/away-and-back", "/other-name"} {
		if got := do(t, c, http.MethodGet, origin.URL+path, nil); got != http.StatusOK {
			t.Errorf("%s: status %d", path, got)
		}
	}
	for _, call := range other.all() {
		if call.authorization != "" {
			t.Errorf("another host was presented with the token at %s", call.path)
		}
	}
	want := map[string]bool{"/here": true, "/there": true, "/away": true, "/away-and-back": true, "/other-name": true, "/stolen-call": false, "/": false}
	for _, call := range origin.all() {
		if (call.authorization == token) != want[call.path] {
			t.Errorf("%s was presented with %d characters", call.path, len(call.authorization))
		}
	}
	if len(other.all()) != 2 || len(origin.all()) != 7 {
		t.Errorf("%d and %d requests", len(origin.all()), len(other.all()))
	}
}

// transportFunc is a function as a transport.
type transportFunc func(*http.Request) (*http.Response, error)

func (f transportFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestRoundTripper_plainHTTP(t *testing.T) {
	b := brokertest.New(t)
	source := b.Client().TokenSource(name)
	var presented []string
	base := transportFunc(func(r *http.Request) (*http.Response, error) {
		presented = append(presented, r.URL.String())
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
	})
	for url, ok := range map[string]bool{
		"https://api.example.com/": true, "http://127.0.0.1:1/": true, "http://localhost/": true, "http://[::1]:1/": true,
		"http://api.example.com/": false, "http://localhost.example.com/": false, "http://10.0.0.1/": false,
	} {
		sent := &body{Reader: strings.NewReader("x")}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, sent)
		if err != nil {
			t.Fatal(err)
		}
		presented = nil
		resp, err := source.RoundTripper(base).RoundTrip(req)
		if (err == nil) != ok || (len(presented) > 0) != ok {
			t.Errorf("%s: %v", url, err)
		}
		if err == nil {
			_ = resp.Body.Close()
		} else if !sent.closed.Load() {
			t.Errorf("%s: the body is open", url)
		}
		if req.Header.Get("Authorization") != "" {
			t.Error("the caller's request was changed")
		}
		resp, err = source.RoundTripper(base, client.AllowPlaintext()).RoundTrip(req)
		if err != nil {
			t.Errorf("%s with AllowPlaintext: %v", url, err)
			continue
		}
		_ = resp.Body.Close()
	}
}

func TestRoundTripper_noTokenNoRequest(t *testing.T) {
	b := brokertest.New(t)
	b.SetIdPDown(true)
	source := b.Client().TokenSource(name)
	sent := &body{Reader: strings.NewReader("x")}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.example.com/", sent)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := source.RoundTripper(transportFunc(func(*http.Request) (*http.Response, error) {
		t.Error("a request was made")
		return nil, io.EOF
	})).RoundTrip(req)
	if err == nil {
		_ = resp.Body.Close()
	}
	if status.Code(err) != codes.Unavailable || !sent.closed.Load() {
		t.Errorf("error %v, body closed: %v", err, sent.closed.Load())
	}
}

func TestHTTPClient(t *testing.T) {
	source := brokertest.New(t).Client().TokenSource(name)
	a := startAPI(t)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	if got := do(t, source.HTTPClient(), http.MethodGet, a.URL, nil); got != http.StatusOK || a.all()[0].authorization != mustToken(t, source).Authorization() {
		t.Errorf("status %d", got)
	}
}

// A wrapper calls the source again within a minute, and so does not miss a purge.
func TestOAuth2Source(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t)
		source := b.Client().TokenSource(name)
		wrapped := oauth2.ReuseTokenSource(nil, source.OAuth2())
		first, err := wrapped.Token()
		if err != nil || first.AccessToken != mustToken(t, source).AccessToken() || first.Type() != "Bearer" || !first.Valid() {
			t.Fatalf("%v", err)
		}
		time.Sleep(10 * time.Second)
		b.Purge(name)
		time.Sleep(time.Minute)
		if second, err := wrapped.Token(); err != nil || second.AccessToken == first.AccessToken {
			t.Errorf("a purged token is still returned: %v", err)
		}
		b.SetLifetime(30 * time.Second)
		b.Purge(name)
		time.Sleep(time.Second)
		if short, err := source.OAuth2().Token(); err != nil || time.Until(short.Expiry) > 30*time.Second {
			t.Errorf("the expiry of a token that lives 30 s: %v", err)
		}
	})
}

// Calls share an oauth2.Token for ten seconds, and never beyond a refresh.
func TestOAuth2Source_sharedToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		life := time.Hour
		broker, fetched := &stub{}, 0
		broker.get = func(context.Context, *tokenbrokerv1.GetTokenRequest) (*tokenbrokerv1.GetTokenResponse, error) {
			fetched++
			token := newTokenResponse(fmt.Sprintf("token-%d", fetched), life)
			token.Extras = map[string]string{"instance_url": fmt.Sprintf("https://%d.example", fetched)}
			return token, nil
		}
		source := broker.serve(t).TokenSource(name)
		expect := func(n int, expiry time.Duration) *oauth2.Token {
			t.Helper()
			token, err := source.OAuth2().Token()
			if err != nil {
				t.Fatal(err)
			}
			text, url := fmt.Sprintf("token-%d", n), fmt.Sprintf("https://%d.example", n)
			if token.AccessToken != text || token.Extra("instance_url") != url || token.Extra("other") != nil || token.Type() != "Bearer" {
				t.Errorf("token %s of %v, want %s of %s", token.AccessToken, token.Extra("instance_url"), text, url)
			}
			if got := time.Until(token.Expiry); got != expiry {
				t.Errorf("%s expires in %v, want %v", text, got, expiry)
			}
			return token
		}
		expect(1, 70*time.Second) // a miss
		first := expect(1, 70*time.Second)
		time.Sleep(9 * time.Second)
		if again := expect(1, 61*time.Second); again != first {
			t.Error("after 9 s another oauth2.Token is returned")
		}
		time.Sleep(time.Second)
		expect(1, 70*time.Second)

		life = 40 * time.Second
		if _, err := source.Rejected(t.Context(), mustToken(t, source)); err != nil {
			t.Fatal(err)
		}
		expect(2, 40*time.Second)
		time.Sleep(15 * time.Second)
		expect(2, 25*time.Second)
		if first.AccessToken != "token-1" || first.Extra("instance_url") != "https://1.example" {
			t.Errorf("a returned token was changed: %s", first.AccessToken)
		}
	})
}

// startGRPC starts a gRPC API with the messages of a broker. It records the presented
// tokens, and refuses the token in rejected, or all for *.
func startGRPC(t *testing.T, rejected *atomic.Value, opts ...grpc.ServerOption) (addr string, presented func() []string) {
	t.Helper()
	var mu sync.Mutex
	var tokens []string
	record := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		token := strings.Join(metadata.ValueFromIncomingContext(ctx, "authorization"), "|")
		mu.Lock()
		tokens = append(tokens, token)
		mu.Unlock()
		if rejectedToken := rejected.Load(); rejectedToken == "*" || rejectedToken == token {
			return nil, status.Error(codes.Unauthenticated, "the token is refused")
		}
		return handler(ctx, req)
	}
	o := startRecordingServer(t, "tcp", "127.0.0.1:0", append(opts, grpc.ChainUnaryInterceptor(record))...)
	return o.addr, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string{}, tokens...)
	}
}

func dial(t *testing.T, addr string, opts ...grpc.DialOption) tokenbrokerv1.TokenBrokerServiceClient {
	t.Helper()
	conn, err := grpc.NewClient(addr, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return tokenbrokerv1.NewTokenBrokerServiceClient(conn)
}

func TestPerRPCCredentialsRequireTLS(t *testing.T) {
	b := brokertest.New(t)
	source := b.Client().TokenSource(name)
	held := mustToken(t, source)
	var rejected atomic.Value
	rejected.Store("")
	certs := redistest.NewCertificates(t)
	plain, atPlain := startGRPC(t, &rejected)
	secure, atSecure := startGRPC(t, &rejected, serverTLS(t, certs))
	request := &tokenbrokerv1.GetTokenRequest{ClientName: "x"}

	if _, err := grpc.NewClient(plain, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(source.PerRPCCredentials())); err == nil {
		t.Error("a connection in plaintext was not refused")
	}
	api := dial(t, plain, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if _, err := api.GetToken(t.Context(), request, grpc.PerRPCCredentials(source.PerRPCCredentials())); status.Code(err) != codes.Unauthenticated {
		t.Errorf("for one call in plaintext: %v", err)
	}
	intercepted := dial(t, plain, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(source.UnaryClientInterceptor()))
	if _, err := intercepted.GetToken(t.Context(), request); status.Code(err) != codes.Unauthenticated {
		t.Errorf("by the interceptor, in plaintext: %v", err)
	}
	if len(atPlain()) > 0 {
		t.Error("a token was presented")
	}
	if mustToken(t, source) != held || b.Calls().GetToken > 0 {
		t.Error("an error without a presented token was taken for a rejection")
	}

	tls := grpc.WithTransportCredentials(credentials.NewTLS(certs.Anonymous()))
	for _, option := range []grpc.DialOption{
		grpc.WithPerRPCCredentials(source.PerRPCCredentials()), grpc.WithUnaryInterceptor(source.UnaryClientInterceptor()),
	} {
		if _, err := dial(t, secure, tls, option).GetToken(t.Context(), request); err != nil {
			t.Errorf("over TLS: %v", err)
		}
	}
	for _, option := range []grpc.DialOption{
		grpc.WithPerRPCCredentials(source.PerRPCCredentials(client.AllowPlaintext())), grpc.WithUnaryInterceptor(source.UnaryClientInterceptor(client.AllowPlaintext())),
	} {
		if _, err := dial(t, plain, grpc.WithTransportCredentials(insecure.NewCredentials()), option).GetToken(t.Context(), request); err != nil {
			t.Errorf("with AllowPlaintext: %v", err)
		}
	}
	for _, tokens := range [][]string{atPlain(), atSecure()} {
		if len(tokens) != 2 || tokens[0] != held.Authorization() || tokens[1] != held.Authorization() {
			t.Errorf("%d calls, or another token", len(tokens))
		}
	}
}

func TestInterceptor_refusedCallIsRepeatedOnce(t *testing.T) {
	b := brokertest.New(t)
	source := b.Client().TokenSource(name)
	var rejected atomic.Value
	old := mustToken(t, source)
	rejected.Store(old.Authorization())
	addr, presented := startGRPC(t, &rejected)
	api := dial(t, addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(source.UnaryClientInterceptor(client.AllowPlaintext())))
	request := &tokenbrokerv1.GetTokenRequest{ClientName: "x"}
	if _, err := api.GetToken(t.Context(), request); err != nil {
		t.Error(err)
	}
	if tokens := presented(); len(tokens) != 2 || tokens[0] == tokens[1] || tokens[1] != mustToken(t, source).Authorization() {
		t.Errorf("%d calls, or unexpected tokens", len(tokens))
	}
	rejected.Store("*")
	for range 3 {
		if _, err := api.GetToken(t.Context(), request); status.Code(err) != codes.Unauthenticated {
			t.Errorf("refused: %v", err)
		}
	}
	if n := b.IdPRequests(); n != 2 || len(presented()) != 5 {
		t.Errorf("%d tokens fetched, %d calls", n, len(presented()))
	}
}
