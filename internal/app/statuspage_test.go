package app_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/app"

	"github.com/cezzis/tokenbroker/internal/testkit"
)

// request sends a request to the ops listener through loopback.
func request(t *testing.T, broker *app.App, method, path, host string) (response *http.Response, body string) {
	t.Helper()
	_, port, err := net.SplitHostPort(broker.OpsAddr())
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://127.0.0.1:"+port+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	response, err = (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(data)
}

func TestStatusPageIsServedOnLoopback(t *testing.T) {
	broker, _ := run(t, sample(t, 2), devIDP(t))
	for _, path := range []string{"/", "/status"} {
		response, body := request(t, broker, http.MethodGet, path, "")
		if response.StatusCode != http.StatusOK || !strings.Contains(body, "Everything works.") || !strings.Contains(body, "client-1") {
			t.Errorf("GET %s: %s %s", path, response.Status, body)
		}
		if csp := response.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; style-src 'sha256-") {
			t.Errorf("GET %s: Content-Security-Policy %q", path, csp)
		}
		head, none := request(t, broker, http.MethodHead, path, "")
		if head.StatusCode != http.StatusOK || none != "" || head.ContentLength < 1000 || head.Header.Get("Content-Type") != "text/html; charset=utf-8" {
			t.Errorf("HEAD %s: %s, %d bytes of %d", path, head.Status, len(none), head.ContentLength)
		}
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodTrace} {
			other, _ := request(t, broker, method, path, "")
			if other.StatusCode != http.StatusMethodNotAllowed || other.Header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %s, Allow %q", method, path, other.Status, other.Header.Get("Allow"))
			}
		}
	}
	if response, _ := request(t, broker, http.MethodGet, "/nowhere", ""); response.StatusCode != http.StatusNotFound {
		t.Errorf("another path: %s", response.Status)
	}
}

// A website that has its own name point at loopback does not get the page.
func TestStatusPageIsNotServedToOtherNames(t *testing.T) {
	broker, _ := run(t, sample(t, 1), devIDP(t))
	for host, want := range map[string]int{
		"localhost:9090": http.StatusOK, "LOCALHOST": http.StatusOK, "127.0.0.1": http.StatusOK, "[::1]:9090": http.StatusOK, "[::1]": http.StatusOK,
		"attacker.example": http.StatusForbidden, "attacker.example:9090": http.StatusForbidden, "127.0.0.1.attacker.example": http.StatusForbidden, "localhost.attacker.example": http.StatusForbidden,
	} {
		response, body := request(t, broker, http.MethodGet, "/", host)
		if response.StatusCode != want || strings.Contains(body, "client-0") != (want == http.StatusOK) {
			t.Errorf("%s: %s", host, response.Status)
		}
		ready, checks := request(t, broker, http.MethodGet, "/readyz?verbose", host)
		if ready.StatusCode != http.StatusOK || strings.Contains(checks, "replicas") != (want == http.StatusOK) {
			t.Errorf("%s: readyz: %s %s", host, ready.Status, checks)
		}
	}
}

func TestStatusPageIsOffUnlessConfigured(t *testing.T) {
	const loopback, beyond = `ops: "127.0.0.1:0"`, `ops: {address: ":0", plaintext: true}`
	for name, tt := range map[string]struct {
		ops, more string
		says      string // empty: the page
	}{
		"beyond loopback":             {beyond, "", "server: {status_page: always}"},
		"beyond loopback, configured": {beyond, "server: {status_page: always}\n", ""},
		"off":                         {loopback, "server: {status_page: off}\n", "server: {status_page: always}"},
	} {
		t.Run(name, func(t *testing.T) {
			broker, _ := run(t, parsed(t, strings.Replace(sampleText(t, 1), loopback, tt.ops, 1)+tt.more), devIDP(t))
			for path, status := range map[string]int{"/": http.StatusForbidden, "/status": http.StatusForbidden, "/readyz?verbose": http.StatusOK} {
				if tt.says == "" {
					status = http.StatusOK
				}
				response, body := request(t, broker, http.MethodGet, path, "broker.example.com")
				if response.StatusCode != status || !strings.Contains(body, tt.says) {
					t.Errorf("%s: %s %s", path, response.Status, body)
				}
				if strings.Contains(body, "client-0") != (tt.says == "" && path != "/readyz?verbose") {
					t.Errorf("%s: %s", path, body)
				}
			}
			if response, body := request(t, broker, http.MethodGet, "/readyz", "broker.example.com"); response.StatusCode != http.StatusOK || body != "ok\n" {
				t.Errorf("/readyz: %s %q", response.Status, body)
			}
		})
	}
}

func TestReadyzVerboseListsChecks(t *testing.T) {
	broker, c := run(t, parsed(t, strings.Replace(sampleText(t, 1), "client_id: abc", "client_id: opaque", 1)), devIDP(t))
	if _, err := c.Token(t.Context(), "client-0"); err == nil {
		t.Fatal("the IdP accepts the wrong secret")
	}
	testkit.Succeeds(t, "the page shows the refusal and other checks", func() error { // the status is cached for a second
		response, body := request(t, broker, http.MethodGet, "/readyz?verbose", "")
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("a failed check makes the replica unready: %s", response.Status)
		}
		for _, line := range []string{"ok\n\nserving        ok\n", "\nstore          ok\n", "\nclients        failed: The IdP refuses the credentials of client client-0. (critical, "} {
			if !strings.Contains(body, line) {
				return fmt.Errorf("%q is missing in %s", line, body)
			}
		}
		return nil
	})
	for path, want := range map[string]string{"/livez": "ok\n", "/readyz": "ok\n", "/readyz?other": "ok\n"} {
		if _, body := request(t, broker, http.MethodGet, path, ""); body != want {
			t.Errorf("%s: %q", path, body)
		}
	}
}
