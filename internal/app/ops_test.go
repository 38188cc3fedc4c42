package app_test

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// On the listener for operators, too, the body of a request is never answered as the
// next request (RFC 9112 section 6.1).
func TestOpsListenerClosesOnUnclearFraming(t *testing.T) {
	broker, _ := run(t, sample(t, 1), devIDP(t))
	const (
		next    = "GET /livez HTTP/1.1\r\nHost: b\r\n\r\n"
		chunked = "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
	)
	for name, tt := range map[string]struct {
		sent    string
		answers int
	}{
		"length and coding":      {"GET /livez HTTP/1.1\r\nHost: b\r\nContent-Length: 5\r\n" + chunked, 1},
		"coding alone":           {"GET /readyz HTTP/1.1\r\nHost: b\r\n" + chunked, 1},
		"HTTP/1.0 and a coding":  {"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 1},
		"HTTP/1.0, no such path": {"GET /nowhere HTTP/1.0\r\nConnection: keep-alive\r\n" + chunked, 1},
		"HTTP/1.0, metrics":      {"GET /metrics HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: gzip\r\n\r\n", 1},
		"two lengths":            {"GET /livez HTTP/1.1\r\nHost: b\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", 1},
		"another coding":         {"GET /livez HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: gzip\r\n\r\n", 1},
		"a clear length":         {"GET /livez HTTP/1.1\r\nHost: b\r\nContent-Length: 5\r\n\r\nhello", 2},
	} {
		if got := statusLines(t, broker.OpsAddr(), tt.sent+next); len(got) != tt.answers {
			t.Errorf("%s: %d answers: %q, want %d", name, len(got), got, tt.answers)
		}
	}
}

// statusLines sends text and returns the status lines of all answers to it.
func statusLines(t *testing.T, address, text string) (lines []string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(all)) {
		if strings.HasPrefix(line, "HTTP/1.") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}
