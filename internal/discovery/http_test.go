package discovery_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/discovery"
)

func TestCheckURL(t *testing.T) {
	for raw, ok := range map[string]bool{
		"https://idp.example":                  true,
		"https://idp.example:8443/t?a=b":       true,
		"HTTPS://idp.example":                  true,
		"http://localhost:8080/token":          true,
		"http://LOCALHOST/token":               true,
		"http://127.0.0.1/token":               true,
		"http://127.9.9.9/token":               true,
		"http://[::1]:80/token":                true,
		"http://[::ffff:127.0.0.1]/token":      true,
		"":                                     false,
		"idp.example/token":                    false,
		"/token":                               false,
		"//idp.example/token":                  false,
		"https:idp.example":                    false,
		"https://":                             false,
		"https://:443/token":                   false,
		"ftp://idp.example":                    false,
		"file:///etc/passwd":                   false,
		"http://idp.example/token":             false,
		"http://localhost.idp.example":         false,
		"http://127.0.0.1.idp.example":         false,
		"http://2130706433/":                   false,
		"http://0.0.0.0/":                      false,
		"https://u@idp.example":                false,
		"https://u:canary@idp.example":         false,
		"https://idp.example/#canary":          false,
		"https://idp.example/#":                false,
		"https://idp.example/\ncanary":         false,
		"https://idp.example/%zzcanary":        false,
		"https://" + strings.Repeat("a", 2048): false,
	} {
		err := discovery.CheckURL(raw, false)
		if (err == nil) != ok {
			t.Errorf("CheckURL(%q) = %v", raw, err)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("the message repeats the URL: %v", err)
		}
	}
	if err := discovery.CheckURL("http://idp.example/token", true); err != nil {
		t.Errorf("http is refused although it is allowed: %v", err)
	}
	if discovery.CheckURL("ftp://idp.example/token", true) == nil {
		t.Error("allowing http allowed ftp")
	}
}

func TestPrintable(t *testing.T) {
	for raw, want := range map[string]string{
		"https://idp.example/token":                          "https://idp.example/token",
		"https://u:canary@idp.example/token?canary=1#canary": "https://idp.example/token",
		"https://idp.example/token?":                         "https://idp.example/token",
		"https://idp.example/%zzcanary":                      "[a URL that cannot be parsed]",
	} {
		if got := discovery.Printable(raw); got != want {
			t.Errorf("Printable(%q) = %q", raw, got)
		}
	}
}

func TestGetAsksForPlainJSON(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.Header.Get("Accept-Encoding") != "identity" || !strings.Contains(r.Header.Get("Accept"), "application/json") {
			t.Errorf("%s %v", r.Method, r.Header)
		}
		w.Header().Set("Cache-Control", "max-age=60")
		_, _ = io.WriteString(w, `{}`)
	}))
	defer server.Close()
	body, header, err := discovery.Get(t.Context(), local(), server.URL, 2)
	if err != nil || string(body) != "{}" || header.Get("Cache-Control") != "max-age=60" {
		t.Errorf("Get = %q, %v, %v", body, header, err)
	}
}

// hijack answers a request with text that need not be HTTP.
func hijack(w http.ResponseWriter, text string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	_, _ = io.WriteString(conn, text)
	_ = conn.Close()
}

func TestGetRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		answer      http.HandlerFunc
		says        string
		unreachable bool
	}{
		"a body beyond the limit": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "canary-") }, "more than 6 bytes", false},
		"an endless body": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write(make([]byte, 4096))
			}
		}, "more than 6 bytes", false},
		"no content":  {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, "HTTP 204", false},
		"not found":   {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "canary", http.StatusNotFound) }, "HTTP 404", false},
		"unavailable": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "canary", http.StatusServiceUnavailable) }, "HTTP 503", true},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/canary" {
				t.Error("the redirect was followed")
			}
			http.Redirect(w, r, "/canary", http.StatusTemporaryRedirect)
		}, "HTTP 307", false},
		"a redirect to no URL": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "%zzcanary")
			w.WriteHeader(http.StatusFound)
		}, "did not answer", true},
		"a body that breaks off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "6")
			_, _ = io.WriteString(w, "can")
		}, "unexpected EOF", true},
		"headers beyond the limit": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Canary", strings.Repeat("canary", 20000))
			_, _ = io.WriteString(w, "{}")
		}, "did not answer", true},
		"what is no HTTP": {func(w http.ResponseWriter, _ *http.Request) {
			hijack(w, "canary canary\r\n\r\n")
		}, "not HTTP", true},
		"a closed connection": {func(w http.ResponseWriter, _ *http.Request) {
			hijack(w, "")
		}, "EOF", true},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(tt.answer)
			defer server.Close()
			body, _, err := discovery.Get(t.Context(), local(), server.URL+"/?q=canary", 6)
			if err == nil {
				t.Fatalf("accepted: %q", body)
			}
			if faultOf(t, err).Unreachable != tt.unreachable || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("unreachable = %v: %v", faultOf(t, err).Unreachable, err)
			}
			if all := fmt.Sprintf("%v %+v %#v %v", err, err, err, errors.Unwrap(err)); strings.Contains(all, "canary") {
				t.Errorf("the error shows what the peer wrote, or the query: %s", all)
			}
		})
	}
}

func TestCauseOfAFailedConnection(t *testing.T) {
	client := local()
	quiet := log.New(io.Discard, "", 0)
	get := func(ctx context.Context, url string) error {
		t.Helper()
		_, _, err := discovery.Get(ctx, client, url, 100)
		if err == nil || !faultOf(t, err).Unreachable || strings.Contains(err.Error(), "canary") {
			t.Fatalf("Get = %v", err)
		}
		return err
	}

	server := httptest.NewServer(http.NotFoundHandler())
	closed := server.URL + "/?canary"
	server.Close()
	if err := get(t.Context(), closed); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a closed port: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := get(ctx, closed); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled context: %v", err)
	}

	untrusted := httptest.NewUnstartedServer(http.NotFoundHandler())
	untrusted.Config.ErrorLog = quiet
	untrusted.StartTLS()
	defer untrusted.Close()
	if err := get(t.Context(), untrusted.URL+"/?canary"); !strings.Contains(err.Error(), "certificate does not verify") {
		t.Errorf("an unknown authority: %v", err)
	}

	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	if err := get(t.Context(), strings.Replace(plain.URL, "http", "https", 1)+"/?canary"); !errors.Is(err, http.ErrSchemeMismatch) {
		t.Errorf("plain http behind https: %v", err)
	}

	old := httptest.NewUnstartedServer(http.NotFoundHandler())
	old.Config.ErrorLog = quiet
	old.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	old.StartTLS()
	defer old.Close()
	if err := get(t.Context(), old.URL+"/?canary"); !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("TLS 1.1: %v", err)
	}
}

func TestConnectionsToAHostAreBounded(t *testing.T) {
	const bound = 32
	arrived, release := make(chan struct{}, 2*bound), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		arrived <- struct{}{}
		<-release
		_, _ = io.WriteString(w, "{}")
	}))
	defer server.Close()
	client := local()
	var all sync.WaitGroup
	for range bound {
		all.Go(func() {
			if _, _, err := discovery.Get(t.Context(), client, server.URL, 10); err != nil {
				t.Error(err)
			}
		})
	}
	for range bound {
		<-arrived
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, _, err := discovery.Get(ctx, client, server.URL, 10)
	if !errors.Is(err, context.DeadlineExceeded) || len(arrived) != 0 {
		t.Errorf("one more than %d requests reached the host: %v", bound, err)
	}
	close(release)
	all.Wait()
}

// 32 concurrent requests need 32 handshakes, and no more for later requests, because
// connections are reused.
func TestConnectionsToAHostAreKept(t *testing.T) {
	const bound, rounds = 32, 10
	var handshakes atomic.Int64
	var together atomic.Pointer[sync.WaitGroup]
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		round := together.Load()
		round.Done()
		round.Wait() // all requests of a round are open at once
		_, _ = io.WriteString(w, "{}")
	}))
	server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		handshakes.Add(1)
		return nil, nil //nolint:nilnil // it means that nothing is changed
	}}
	server.StartTLS()
	defer server.Close()
	network := discovery.NewNetwork(nil)
	for name, client := range map[string]*http.Client{
		"without a certificate": network.ClientFor(server.URL, false),
		"with a certificate":    network.ClientWith(server.URL, false, selfSigned(t, "a")),
	} {
		discovery.Trust(client, server.Certificate())
		handshakes.Store(0)
		for range rounds {
			round := &sync.WaitGroup{}
			round.Add(bound)
			together.Store(round)
			var all sync.WaitGroup
			for range bound {
				all.Go(func() {
					if _, _, err := discovery.Get(t.Context(), client, server.URL, 10); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
		}
		if got := handshakes.Load(); got != bound {
			t.Errorf("%s: %d handshakes for %d requests, %d at a time", name, got, rounds*bound, bound)
		}
	}
}
