package redistest

import (
	"crypto/tls"
	"io"
	"net"
	"strings"

	"github.com/cezzis/tokenbroker/internal/testkit"
)

// Dir is the directory of the server's configuration and data.
func (s *Server) Dir() string { return s.dir }

// TryCLI is CLI for a server that may be away.
func (s *Server) TryCLI(args ...string) (string, error) { return s.cli(args...) }

// Monitor records from now on, until the test ends, every command that the
// server runs, those within scripts included.
func (s *Server) Monitor() (seen func() string) {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.Addr()) //nolint:noctx // it ends with the test
	if err != nil {
		s.t.Fatal(err)
	}
	if config := s.TLS(); config != nil {
		config.ServerName = "localhost"
		conn = tls.Client(conn, config)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	commands := &testkit.Log{}
	go func() { _, _ = io.Copy(commands, conn) }()
	if _, err := conn.Write([]byte("AUTH " + admin + " " + admin + "\r\nMONITOR\r\n")); err != nil {
		s.t.Fatal(err)
	}
	testkit.Succeeds(s.t, "MONITOR", func() error {
		seen := commands.String()
		return unless(strings.HasPrefix(seen, "+OK\r\n+OK\r\n"), seen)
	})
	return commands.String
}
