package redistest

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

const toxiproxy = "toxiproxy-server"

// Proxy is between a client and a server and disturbs the traffic.
type Proxy struct {
	t    testing.TB
	api  string // address of its API
	addr string
}

// Toxiproxy starts a proxy in front of the address.
func Toxiproxy(t testing.TB, upstream string) *Proxy {
	t.Helper()
	Need(t, toxiproxy)
	control, listen := strconv.Itoa(freePort(t, false)), strconv.Itoa(freePort(t, false))
	p := &Proxy{t: t, api: "http://127.0.0.1:" + control, addr: net.JoinHostPort("127.0.0.1", listen)}
	server := launch(t, t.TempDir(), toxiproxy, "-host", "127.0.0.1", "-port", control)
	server.await(t, func() (answer string, ready bool) {
		err := p.try(http.MethodGet, "/version", "")
		return fmt.Sprint(err), err == nil
	})
	p.call("/proxies", fmt.Sprintf(`{"name":"redis","listen":%q,"upstream":%q,"enabled":true}`, p.addr, upstream))
	return p
}

// Addr is the address for clients.
func (p *Proxy) Addr() string { return p.addr }

// Latency delays each response from now on, on existing connections as well.
func (p *Proxy) Latency(delay time.Duration) {
	p.t.Helper()
	p.call("/proxies/redis/toxics",
		fmt.Sprintf(`{"name":"slow","type":"latency","stream":"downstream","attributes":{"latency":%d}}`, delay.Milliseconds()))
}

// Down closes all connections and refuses new ones.
func (p *Proxy) Down() {
	p.t.Helper()
	p.call("/proxies/redis", `{"enabled":false}`)
}

// Up ends every disturbance.
func (p *Proxy) Up() {
	p.t.Helper()
	p.call("/reset", "")
}

func (p *Proxy) call(path, body string) {
	p.t.Helper()
	if err := p.try(http.MethodPost, path, body); err != nil {
		p.t.Fatal(err)
	}
}

func (p *Proxy) try(method, path, body string) error {
	request, err := http.NewRequestWithContext(p.t.Context(), method, p.api+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
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
