package fleet

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cezzis/tokenbroker/client"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
)

// noticedAfter is how long a loadBalancer goes on routing connections to a broker that
// is not ready, as kube-proxy does.
const noticedAfter = time.Second

// loadBalancer routes TCP connections to brokers in turn. It tries the next one when a
// connection is refused.
type loadBalancer struct {
	net.Listener

	brokers []*harness.Broker
	out     []atomic.Bool // does not get connections
	next    atomic.Int64
	work    sync.WaitGroup
}

func startLoadBalancer(t *testing.T, brokers []*harness.Broker) *loadBalancer {
	t.Helper()
	var network net.ListenConfig
	l := &loadBalancer{Listener: harness.Must(network.Listen(t.Context(), "tcp", "127.0.0.1:0")), brokers: brokers, out: make([]atomic.Bool, len(brokers))}
	ctx, cancel := context.WithCancel(context.Background())
	for i := range brokers {
		l.work.Go(func() { l.probe(ctx, i) })
	}
	l.work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			l.work.Go(func() { l.route(ctx, conn) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		l.work.Wait()
	})
	return l
}

// probe takes a broker out some time after it says that it is not ready, and in again
// as soon as it is.
func (l *loadBalancer) probe(ctx context.Context, i int) {
	probes := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	ready := time.Now()
	for wait(ctx, 100*time.Millisecond) {
		request := harness.Must(http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.brokers[i].Ops+"/readyz", nil))
		response, err := probes.Do(request)
		if err == nil {
			_ = response.Body.Close()
		}
		if err == nil && response.StatusCode == http.StatusOK {
			ready = time.Now()
		}
		l.out[i].Store(time.Since(ready) > noticedAfter)
	}
}

func (l *loadBalancer) route(ctx context.Context, from net.Conn) {
	defer func() { _ = from.Close() }()
	var network net.Dialer
	for range 2 * len(l.brokers) {
		i := int(l.next.Add(1)) % len(l.brokers)
		if l.out[i].Load() {
			continue
		}
		to, err := network.DialContext(ctx, "tcp", l.brokers[i].Grpc)
		if err != nil {
			continue
		}
		defer func() { _ = to.Close() }()
		defer context.AfterFunc(ctx, func() { _, _ = from.Close(), to.Close() })()
		var forth sync.WaitGroup
		forth.Go(func() {
			_, _ = io.Copy(to, from)
			_ = to.(*net.TCPConn).CloseWrite()
		})
		_, _ = io.Copy(from, to)
		_ = from.(*net.TCPConn).CloseWrite()
		forth.Wait()
		return
	}
}

// callLoad makes calls until it is ended.
type callLoad struct {
	name   string
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu     sync.Mutex
	calls  int
	failed []string
}

func startCalls(name string, call func(ctx context.Context) error) *callLoad {
	return startCallsEvery(name, 5*time.Millisecond, call)
}

func startCallsEvery(name string, pause time.Duration, call func(ctx context.Context) error) *callLoad {
	ctx, cancel := context.WithCancel(context.Background())
	l := &callLoad{name: name, cancel: cancel}
	begun := time.Now()
	for range 4 {
		l.work.Go(func() {
			for wait(ctx, pause) {
				bounded, done := context.WithTimeout(context.Background(), harness.Patience)
				err := call(bounded)
				done()
				l.mu.Lock()
				l.calls++
				if err != nil {
					l.failed = append(l.failed, fmt.Sprintf("after %v: %v", time.Since(begun).Round(time.Millisecond), err))
				}
				l.mu.Unlock()
			}
		})
	}
	return l
}

// end ends the load, of which no call may have failed.
func (l *callLoad) end(t *testing.T) {
	t.Helper()
	l.cancel()
	l.work.Wait()
	t.Logf("%s: %d of %d calls failed", l.name, len(l.failed), l.calls)
	if len(l.failed) > 0 {
		t.Errorf("%s: %s", l.name, strings.Join(l.failed[:min(5, len(l.failed))], "; "))
	}
	if l.calls < 100 {
		t.Errorf("%s: only %d calls were made", l.name, l.calls)
	}
}

// Each replica of three is restarted, one after the other.
func TestRollingRestartFailsNoCall(t *testing.T) {
	for _, delay := range []time.Duration{0, 2 * time.Second, 5 * time.Second} {
		t.Run(delay.String(), func(t *testing.T) {
			if delay > 2*time.Second {
				long(t)
			}
			t.Parallel()
			idp := harness.SimpleIdP(t, time.Hour)
			var brokers []*harness.Broker
			var addresses []string
			for range 3 {
				b := harness.StartBroker(t, fmt.Sprintf("server: {drain_delay: %v}\n", delay)+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}))
				brokers, addresses = append(brokers, b), append(addresses, b.Grpc)
			}
			balancer := startLoadBalancer(t, brokers)

			plain := harness.Must(grpc.NewClient(balancer.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials())))
			defer func() { _ = plain.Close() }()
			one, list := newClient(t, balancer.Addr().String(), client.WithPlaintext()), newClient(t, strings.Join(addresses, ","), client.WithPlaintext())
			token := func(c *client.Client) func(ctx context.Context) error {
				return func(ctx context.Context) error { _, err := c.Token(ctx, "orders"); return err }
			}
			loads := []*callLoad{
				startCalls("Go client, one address", token(one)),
				startCalls("Go client, list of addresses", token(list)),
				startCalls("plain grpc-go", func(ctx context.Context) error {
					_, err := tokenbrokerv1.NewTokenBrokerServiceClient(plain).GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
					return err
				}),
			}
			rest(t, time.Second)
			for _, b := range brokers {
				if code := b.Process.Stop(t, syscall.SIGTERM); code != 0 {
					t.Errorf("a replica ended with exit code %d", code)
				}
				b.Launch(t, "broker")
				b.Await(t)
				rest(t, time.Second)
			}
			for _, load := range loads {
				load.end(t)
			}
		})
	}
}
