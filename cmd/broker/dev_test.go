package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/testkit"
)

// startDev runs "broker dev" in this process until its context ends or a signal arrives.
func startDev(t *testing.T, ctx context.Context, args ...string) (out *testkit.Log, code <-chan int) { //nolint:revive // t comes first
	t.Helper()
	out = &testkit.Log{}
	ended := make(chan int, 1)
	go func() { ended <- runTo(ctx, append([]string{"dev"}, args...), strings.NewReader(""), out, out) }()
	testkit.Eventually(t, "broker dev serves", func() bool { return out.Contains("Serving until Ctrl-C") })
	return out, ended
}

func TestDevTakesFreePorts(t *testing.T) {
	isolate(t)
	ctx, stop := context.WithCancel(t.Context())
	first, firstEnded := startDev(t, ctx)
	second, secondEnded := startDev(t, ctx)
	addresses := map[string]bool{}
	for _, out := range []*testkit.Log{first, second} {
		all := regexp.MustCompile(`(?m)^(?:broker, gRPC|broker, HTTP) +(127\S+)$|^metrics, status page +http://(127[^/]+)/metrics`).FindAllStringSubmatch(out.String(), -1)
		if len(all) != 3 {
			t.Fatalf("%d addresses in\n%s", len(all), out)
		}
		for _, one := range all {
			addresses[one[1]+one[2]] = true
		}
		for path, want := range map[string]string{"/metrics": "go_goroutines", "/": "<html"} {
			resp, err := http.Get("http://" + all[2][2] + path)
			if err != nil {
				t.Fatal(err)
			}
			var body bytes.Buffer
			_, _ = body.ReadFrom(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK || !strings.Contains(body.String(), want) {
				t.Errorf("%s: %s", path, resp.Status)
			}
		}
	}
	if len(addresses) != 6 {
		t.Errorf("the addresses are not distinct: %v", addresses)
	}
	stop()
	if a, b := <-firstEnded, <-secondEnded; a != 0 || b != 0 {
		t.Errorf("exit codes %d, %d", a, b)
	}
}

func TestDevKeepsANamedAddress(t *testing.T) {
	isolate(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	if _, stderr, code := runCommand(t.Context(), "dev", "--addr", taken.Addr().String()); code != exitNegative || !strings.Contains(stderr, "address already in use") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestDevCertificatesAreDescribed(t *testing.T) {
	out, stderr, code := runCommand(t.Context(), "dev", "--certificates", t.TempDir(), "--host", "broker.internal")
	if code != 0 || !strings.Contains(out, "a broker at localhost, broker.internal, 127.0.0.1, ::1\n") || !strings.Contains(out, "spiffe_id: spiffe://example.com/demo\n") {
		t.Errorf("%d: %s%s", code, out, stderr)
	}
}
