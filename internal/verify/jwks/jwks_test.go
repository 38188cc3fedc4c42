package jwks_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/testkit"
	"github.com/cezzis/tokenbroker/internal/verify/jwks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newSource(t *testing.T, cfg jwks.Config) *jwks.Source {
	t.Helper()
	gauge, counter := prometheus.NewGauge(prometheus.GaugeOpts{}), prometheus.NewCounter(prometheus.CounterOpts{})
	metrics := jwks.Metrics{Keys: gauge, Skipped: gauge, LastSuccess: gauge, Success: counter, Failure: counter}
	return jwks.New("https://a.example", cfg.WithDefaults(), slog.New(slog.DiscardHandler), metrics)
}

// find returns the error of Find for a key.
func find(t *testing.T, source *jwks.Source, key *josetest.Signer) error {
	t.Helper()
	_, err := source.Find(t.Context(), key.KeyID, key.Algorithm)
	return err
}

// run runs a source until the test ends.
func run(t *testing.T, source *jwks.Source) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); source.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
}

// K12, over real connections.
func TestFetch_failuresLeakNothing(t *testing.T) {
	var connections atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write(bytes.Repeat([]byte("x"), 100_000))
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	source := newSource(t, jwks.Config{URL: server.URL, HTTP: discovery.NewHTTPClient(transport)})
	for range 1000 {
		if err := source.Refresh(t.Context()); err == nil {
			t.Fatal("no error")
		}
	}
	// On a busy machine net/http closes a connection if its own goroutine does not report
	// within 50 ms that the request was written.
	if n := connections.Load(); n > 100 {
		t.Errorf("%d connections for 1,000 fetches in a row", n)
	}
}

// K14.
func TestKeysFromAFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, fresh := josetest.New(t, "EdDSA", "old"), josetest.New(t, "EdDSA", "fresh")
		path := filepath.Join(t.TempDir(), "jwks.json")
		source := newSource(t, jwks.Config{File: path})
		if err := source.Refresh(t.Context()); err == nil {
			t.Error("a file that is not there is no error")
		}
		write := func(data []byte) {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(josetest.Set(old.JWK()))
		run(t, source)
		synctest.Wait()
		if err := find(t, source, old); err != nil {
			t.Error(err)
		}
		write(josetest.Set(fresh.JWK()))
		time.Sleep(5 * time.Minute)
		if err := find(t, source, fresh); err != nil {
			t.Errorf("after the file has changed: %v", err)
		}
		write(bytes.Repeat([]byte(" "), 1<<20))
		if err := source.Refresh(t.Context()); err == nil {
			t.Error("a file that is too large is no error")
		}
	})
}

func TestKeysFromAFileInAnotherForm(t *testing.T) {
	key := josetest.New(t, "EdDSA", "k")
	set := josetest.Set(key.JWK())
	path := filepath.Join(t.TempDir(), "jwks.json")
	marked := append([]byte("\ufeff"), set...)
	for name, tt := range map[string]struct {
		data []byte
		says string
	}{
		"a byte order mark":               {marked, ""},
		"gzip":                            {testkit.Gzip(set), ""},
		"gzip of a byte order mark":       {testkit.Gzip(marked), ""},
		"UTF-16":                          {[]byte("\xff\xfe{\x00"), "UTF-16"},
		"UTF-16, big-endian":              {[]byte("\xfe\xff\x00{"), "UTF-16"},
		"gzip that breaks off":            {testkit.Gzip(set)[:40], "decompressed"},
		"gzip twice":                      {testkit.Gzip(testkit.Gzip(set)), "not a JSON object"},
		"gzip of more than may be read":   {testkit.Gzip(bytes.Repeat([]byte(" "), 100<<20)), "longer than 524288 bytes"},
		"a byte order mark in the middle": {append([]byte(" "), marked...), "not a JSON object"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			source := newSource(t, jwks.Config{File: path})
			err := source.Refresh(t.Context())
			switch {
			case tt.says != "":
				if err == nil || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("want an error about %q: %v", tt.says, err)
				}
			case err != nil || find(t, source, key) != nil:
				t.Errorf("not read: %v", err)
			}
		})
	}
}
