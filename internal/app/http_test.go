package app_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// postForm asks a broker over HTTP, over connections that dial makes.
func postForm(t *testing.T, dial func(context.Context) (net.Conn, error), path string, header http.Header, form url.Values) (status int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://broker"+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	request.Header = header.Clone()
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(data)
}

func dialer(network, address string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, network, address) }
}

func TestUnixSocketIdentifiesHTTPCallers(t *testing.T) {
	own, form := fmt.Sprintf("uid: %d", os.Getuid()), url.Values{"grant_type": {"client_credentials"}, "client_id": {"client-0"}}
	for name, tt := range map[string]struct {
		uid, more string
		status    int
		says      string
	}{
		"the user is a caller": {own, "", 200, "access_token"},
		"the user is not":      {"uid: 4711", "", 401, fmt.Sprintf("user %d of this host matches no caller", os.Getuid())},
		"the socket is bound":  {"uid: 4711", ", caller: everybody", 200, "access_token"},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(shortDir(t), "http.sock")
			text := strings.Replace(sampleText(t, 1), "listen: {", "listen: {http_unix: {path: "+socket+tt.more+"}, ", 1)
			text = strings.Replace(text, "callers: [", "callers: [{name: tester, "+tt.uid+", roles: [all]}, ", 1)
			t.Run("served", func(t *testing.T) {
				run(t, parsed(t, text), devIDP(t))
				status, body := postForm(t, dialer("unix", socket), "/oauth2/token", http.Header{}, form)
				if status != tt.status || !strings.Contains(body, tt.says) {
					t.Errorf("%d %s", status, body)
				}
			})
			if left, err := os.ReadDir(filepath.Dir(socket)); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// A broker whose OAuth clients come through a proxy that connects to the socket has no other listener
// of HTTP that could have the URL.
func TestMetadataOnAUnixSocket(t *testing.T) {
	socket := filepath.Join(shortDir(t), "http.sock")
	listener := "http_unix: {path: " + socket + ", url: \"https://broker.example.com\"}"
	run(t, parsed(t, strings.Replace(sampleText(t, 1), "listen: {", "listen: {"+listener+", ", 1)), devIDP(t))
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer("unix", socket)(ctx) }}
	response, err := (&http.Client{Transport: transport}).Get("http://broker/.well-known/oauth-authorization-server")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK || !strings.Contains(string(body), `"issuer":"https://broker.example.com"`) {
		t.Errorf("%s %s, %v", response.Status, body, err)
	}
}

// A client whose certificate is refused makes no request that could be logged.
func TestFailedHTTPHandshakesAreCounted(t *testing.T) {
	pki := newPKI(t)
	r := startListening(t, devIDP(t), `grpc: "127.0.0.1:0", http: "127.0.0.1:0", `+pki.config(), ofCheckout)
	strangers, err := devca.New("strangers")
	if err != nil {
		t.Fatal(err)
	}
	forged, err := strangers.Issue(&x509.Certificate{URIs: []*url.URL{checkoutID()}})
	if err != nil {
		t.Fatal(err)
	}
	counted := func(reason string) bool {
		_, metrics := read(t, "http://"+r.OpsAddr()+"/metrics")
		return strings.Contains(metrics, fmt.Sprintf("tokenbroker_handshake_failures_total{reason=%q} 1\n", reason))
	}
	connect := func(config *tls.Config) (*tls.Conn, error) {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", r.HTTPAddr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		secure := tls.Client(conn, config)
		return secure, secure.HandshakeContext(t.Context())
	}

	trusting := pki.client(nil)
	trusting.ServerName = "localhost"
	withForged := trusting.Clone()
	pair := forged.TLS() // sent although the broker does not ask for one of this authority
	withForged.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	if conn, err := connect(withForged); err == nil { // TLS 1.3 tells later
		_, err = conn.Read(make([]byte, 1))
		if err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("a certificate of an authority that nobody trusts: %v", err)
		}
	}
	testkit.Eventually(t, "unknown_authority is counted", func() bool { return counted("unknown_authority") })
	r.await("a connection was refused\" reason=unknown_authority", 1)
	r.await("/ns/shop/sa/checkout", 1)

	if _, err := connect(&tls.Config{ServerName: "localhost", RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS13}); err == nil {
		t.Error("the client trusts whom it does not know")
	}
	testkit.Eventually(t, "refused_by_client is counted", func() bool { return counted("refused_by_client") })

	if status, _ := postForm(t, dialer("tcp", r.HTTPAddr()), "/oauth2/token", http.Header{}, nil); status != 400 {
		t.Errorf("plaintext: %d", status)
	}
	testkit.Eventually(t, "not_tls is counted", func() bool { return counted("not_tls") })

	// Who gets through counts nowhere.
	secure, err := connect(trusting)
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := postForm(t, func(context.Context) (net.Conn, error) { return secure, nil }, "/oauth2/token", http.Header{}, nil); status != 401 {
		t.Errorf("nobody: %d", status)
	}
	_, metrics := read(t, "http://"+r.OpsAddr()+"/metrics")
	for _, reason := range []string{"closed", "protocol", "timeout"} {
		if !strings.Contains(metrics, fmt.Sprintf("tokenbroker_handshake_failures_total{reason=%q} 0\n", reason)) {
			t.Errorf("%s was counted", reason)
		}
	}
	if strings.Contains(r.log.String(), "TLS handshake error") {
		t.Errorf("it is told twice: %s", r.log)
	}
}

func TestTrace_httpRequestShowsNoContent(t *testing.T) {
	const traceID, spanID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	received, address := startOTLP(t)
	t.Run("broker", func(t *testing.T) {
		text := strings.Replace(sampleText(t, 1), "listen: {", "listen: {http: {address: \"127.0.0.1:0\", caller: everybody}, ", 1)
		broker, _ := run(t, parsed(t, text+fmt.Sprintf("tracing: {endpoint: \"http://%s\", sample: 1}\n", address)), devIDP(t))
		header := http.Header{"Traceparent": {"00-" + traceID + "-" + spanID + "-01"}, "User-Agent": {"canary"}, "Baggage": {"secret=canary"}}
		if status, body := postForm(t, dialer("tcp", broker.HTTPAddr()), "/oauth2/token", header, url.Values{"grant_type": {"client_credentials"}, "client_id": {"client-0"}}); status != 200 {
			t.Errorf("%d %s", status, body)
		}
		header.Set("Authorization", "Bearer canary")
		for path, want := range map[string]int{"/verify/canary?scope=canary": 401, "/verify?canary=1": 503, "/canary": 404} {
			if status, _ := postForm(t, dialer("tcp", broker.HTTPAddr()), path, header, url.Values{"canary": {"1"}}); status != want {
				t.Errorf("%s: %d", path, status)
			}
		}
	})
	asked, trips, verified := received.named("serve token"), received.named("idp token"), received.named("serve verify")
	if len(asked) != 1 || len(trips) != 1 || len(verified) != 2 {
		t.Fatalf("%d, %d and %d spans", len(asked), len(trips), len(verified))
	}
	if fmt.Sprintf("%x %x", asked[0].GetTraceId(), asked[0].GetParentSpanId()) != traceID+" "+spanID {
		t.Errorf("the request is not in its client's trace: %x", asked[0].GetTraceId())
	}
	if !slices.Equal(trips[0].GetParentSpanId(), asked[0].GetSpanId()) {
		t.Error("the trip to the IdP is not the request's")
	}
	if a := attributes(asked[0]); a["http.response.status_code"] != "int_value:200" || len(a) != 1 {
		t.Errorf("attributes: %v", a)
	}
	failed := 0
	for _, span := range verified {
		if span.GetStatus().GetCode() != 0 {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("%d of 401 and 503 are errors of the broker's, want that of 503", failed)
	}
	if strings.Contains(strings.Join(received.whole, "\n"), "canary") {
		t.Errorf("something of a request is in a span: %v", received.whole)
	}
}
