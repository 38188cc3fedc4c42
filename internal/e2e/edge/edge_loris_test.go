package edge

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// resident is the memory that a process has, in MiB, and had at most.
func residentOf(t *testing.T, p *testkit.Process) (now, most int) {
	t.Helper()
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", p.Cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	values := map[string]int{}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 {
			values[fields[0]], _ = strconv.Atoi(fields[1])
		}
	}
	return values["VmRSS:"] >> 10, values["VmHWM:"] >> 10
}

// dial opens a TCP connection that nothing is said on yet.
func (e *edge) dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", e.Grpc)
}

// encrypted opens a connection with TLS and proves nothing.
func (e *edge) encrypted(ctx context.Context) (net.Conn, error) {
	config := e.as(nil, "")
	config.NextProtos = []string{"h2"}
	return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", e.Grpc)
}

// halfOpen opens a connection half, in one of some ways.
func (e *edge) halfOpen(ctx context.Context, way int) (conn net.Conn, err error) {
	said := ""
	switch way % 4 {
	case 0:
		conn, err = e.dial(ctx)
	case 1:
		conn, err = e.dial(ctx)
		said = "\x16\x03\x01\x02\x00\x01\x00" // a record that is announced and does not come
	case 2:
		conn, err = e.encrypted(ctx)
	default:
		conn, err = e.encrypted(ctx)
		said = "PRI * HTTP/2.0\r\n" // half of what HTTP/2 begins with
	}
	if err == nil {
		_, err = io.WriteString(conn, said)
	}
	return conn, err
}

// isCutOff reports whether the broker closed the connection.
func isCutOff(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// A thousand connections are opened half and held, calls are begun whose questions
// never come, and messages and headers come that are too large: a caller is served
// throughout, memory is bounded, and whoever does not go on is cut off.
func TestHalfOpenConnectionsFailNoCall(t *testing.T) {
	t.Parallel()
	const connections, timeout, mostMiB = 1000, 5 * time.Second, 200
	e := startEdge(t, fmt.Sprintf("limits: {handshake_timeout: %v}\n", timeout), "checkout")
	api, hangUp := e.connect(e.as(e.ca, "checkout"))
	defer hangUp()
	if err := getOrders(t.Context(), api); err != nil {
		t.Fatal(err)
	}
	before, _ := residentOf(t, e.Process)

	ctx, stop := context.WithCancel(t.Context())
	var served tally
	var slowest atomic.Int64
	var caller sync.WaitGroup
	caller.Go(func() {
		for ctx.Err() == nil {
			begun := time.Now()
			served.count(getOrders(t.Context(), api))
			slowest.Store(max(slowest.Load(), int64(time.Since(begun))))
		}
	})
	var open sync.WaitGroup
	var cutOff atomic.Int64
	for i := range connections {
		open.Go(func() {
			conn, err := e.halfOpen(t.Context(), i)
			if isCutOff(err) { // on a busy machine it was not opened in time
				cutOff.Add(1)
				return
			}
			if err != nil {
				t.Errorf("opening a connection: %v", err)
				return
			}
			defer func() { _ = conn.Close() }()
			_ = conn.SetReadDeadline(time.Now().Add(harness.Patience))
			if _, err := io.Copy(io.Discard, conn); !isTimeout(err) {
				cutOff.Add(1)
			}
		})
	}
	open.Go(func() { e.beginAndSayNothing(t, 4, 250) })
	open.Go(func() { e.sendTooMuch(t) })
	open.Wait()
	if n := cutOff.Load(); n != connections {
		t.Errorf("%d of %d connections were cut off", n, connections)
	}
	newcomer, hangUpNewcomer := e.connect(e.as(e.ca, "checkout"))
	defer hangUpNewcomer()
	if err := getOrders(t.Context(), newcomer); err != nil {
		t.Errorf("over a new connection: %v", err)
	}
	stop()
	caller.Wait()
	_, most := residentOf(t, e.Process)
	t.Logf("%d calls meanwhile, the slowest took %v; resident: %d MiB before, %d MiB at most", served.calls.Load(), time.Duration(slowest.Load()), before, most)
	if failed := served.failed.Load(); failed > 0 || served.calls.Load() < 100 {
		t.Errorf("%d of %d calls of a caller failed, one with: %v", failed, served.calls.Load(), served.failure.Load())
	}
	if most > mostMiB {
		t.Errorf("%d MiB were resident", most)
	}
	if n := e.Metric(t, `tokenbroker_handshake_failures_total{reason="timeout"}`); n < connections/4 {
		t.Errorf("%v handshakes are counted that took too long", n)
	}
}

func isTimeout(err error) bool {
	failed, ok := errors.AsType[net.Error](err)
	return ok && failed.Timeout()
}

// beginAndSayNothing begins calls and leaves them open for a while without saying
// what they ask.
func (e *edge) beginAndSayNothing(t *testing.T, connections, calls int) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	for range connections {
		conn := harness.Must(grpc.NewClient(e.Grpc, grpc.WithTransportCredentials(credentials.NewTLS(e.as(nil, "")))))
		defer func() { _ = conn.Close() }()
		for range calls {
			_, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, tokenbrokerv1.TokenBrokerService_GetToken_FullMethodName)
			if err != nil {
				t.Errorf("beginning a call: %v", err)
				return
			}
		}
	}
	<-ctx.Done()
}

// sendTooMuch sends messages and headers that are larger than what is read.
func (e *edge) sendTooMuch(t *testing.T) {
	for _, name := range []string{"", "checkout"} {
		api, hangUp := e.connect(e.as(e.ca, name))
		defer hangUp()
		for range 50 {
			large := &tokenbrokerv1.GetTokenRequest{ClientName: strings.Repeat("x", 1<<20)}
			if _, err := api.GetToken(t.Context(), large); status.Code(err) != codes.ResourceExhausted {
				t.Errorf("a message of 1 MiB: %v", err)
			}
			ctx := metadata.AppendToOutgoingContext(t.Context(), "x-much", strings.Repeat("x", 20<<10))
			if _, err := api.GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: "orders"}); err == nil {
				t.Error("headers of 20 KiB were read")
			}
		}
	}
}
