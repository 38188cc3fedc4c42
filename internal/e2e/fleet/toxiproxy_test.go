package fleet

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// proxy is between a client and a server and disturbs the traffic.
type proxy struct {
	t    *testing.T
	api  string // address of its API
	addr string // address for clients
}

// startProxy starts a proxy in front of the address.
func startProxy(t *testing.T, upstream string) *proxy {
	t.Helper()
	harness.Need(t, "toxiproxy-server")
	control := harness.FreeAddress(t)
	p := &proxy{t: t, api: "http://" + control, addr: harness.FreeAddress(t)}
	host, port, err := net.SplitHostPort(control)
	if err != nil {
		t.Fatal(err)
	}
	server := harness.Start(t, t.TempDir(), nil, "toxiproxy-server", "-host", host, "-port", port)
	server.Await(t, func() error { return p.try(http.MethodGet, "/version", "") })
	p.call("/proxies", fmt.Sprintf(`{"name":"redis","listen":%q,"upstream":%q,"enabled":true}`, p.addr, upstream))
	return p
}

// delay delays each response from now on, on existing connections as well.
func (p *proxy) delay(by time.Duration) {
	p.t.Helper()
	p.call("/proxies/redis/toxics",
		fmt.Sprintf(`{"name":"slow","type":"latency","stream":"downstream","attributes":{"latency":%d}}`, by.Milliseconds()))
}

// silence drops everything that goes in one direction, upstream or downstream. Connections
// stay open.
func (p *proxy) silence(stream string) {
	p.t.Helper()
	p.call("/proxies/redis/toxics", fmt.Sprintf(`{"name":"silent","type":"timeout","stream":%q,"attributes":{"timeout":0}}`, stream))
}

// reset resets each connection when the server responds.
func (p *proxy) reset() {
	p.t.Helper()
	p.call("/proxies/redis/toxics", `{"name":"reset","type":"reset_peer","stream":"downstream","attributes":{"timeout":0}}`)
}

// enable accepts connections, or refuses new ones and ends those that exist.
func (p *proxy) enable(enabled bool) {
	p.t.Helper()
	p.call("/proxies/redis", fmt.Sprintf(`{"enabled":%t}`, enabled))
}

// restore ends every disturbance.
func (p *proxy) restore() {
	p.t.Helper()
	p.call("/reset", "")
}

func (p *proxy) call(path, body string) {
	p.t.Helper()
	if err := p.try(http.MethodPost, path, body); err != nil {
		p.t.Fatal(err)
	}
}

func (p *proxy) try(method, path, body string) error {
	request, err := http.NewRequestWithContext(p.t.Context(), method, p.api+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	client := http.Client{Timeout: harness.Patience, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	answer, err := io.ReadAll(response.Body)
	if err != nil || response.Body.Close() != nil || response.StatusCode/100 != 2 {
		return fmt.Errorf("toxiproxy: %s %s: %s: %s: %w", method, path, response.Status, answer, err)
	}
	return nil
}

func TestProxyDelaysResponses(t *testing.T) {
	t.Parallel()
	p := startProxy(t, redistest.Start(t, redistest.Options{}).Addr())
	ping := func() bool {
		conn, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		_, err = conn.Write([]byte("PING\r\n"))
		answer := make([]byte, len("+PONG\r\n"))
		_, errRead := io.ReadFull(conn, answer)
		return err == nil && errRead == nil && string(answer) == "+PONG\r\n"
	}
	testkit.Eventually(t, "a response", ping)
	p.delay(time.Minute)
	if ping() {
		t.Error("there was a response without a delay")
	}
	p.restore()
	testkit.Eventually(t, "a response again", ping)
}
