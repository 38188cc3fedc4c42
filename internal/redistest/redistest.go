// Package redistest runs real Redis servers, in all the topologies that a deployment may
// have, for tests: on loopback ports of their own, in directories of their own, killed
// when the test ends. The output of a server is shown if the test failed.
package redistest

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/testkit"
)

// admin is the user, and the password, for logins of this package, replicas and
// sentinels, whatever the test changes at the default user.
const admin = "redistest"

// Options configures a server. The zero value is a server that keeps nothing on disk and
// needs no password.
type Options struct {
	// Password of the default user. Empty: none is needed, unless ACL is given.
	Password string
	// ACL are lines of an ACL file, such as "user broker on >secret ~tb1:* +get".
	// The default user is then switched off, unless Password is given.
	ACL []string
	// Certificates enables TLS only, with required client certificates.
	Certificates *Certificates
	// AppendOnly persists data, each write on disk before its response.
	AppendOnly bool
	// Config are further lines of the configuration, such as "maxmemory 10mb".
	Config []string
}

// Server is a process of redis-server, or a sentinel.
type Server struct {
	t       testing.TB
	options Options
	port    int
	dir     string // of its data and configuration
	args    []string
	process *testkit.Process
}

// patience is how long redis-cli may take on a slow machine.
const patience = time.Minute

// Need skips the test if a command of Redis is not installed and says how to install
// it. With CI=true a missing command is a failure.
func Need(t testing.TB, command string) {
	t.Helper()
	if _, err := exec.LookPath(command); err == nil {
		return
	}
	message := command + " is not installed. Install it: apt-get install redis-server"
	if os.Getenv("CI") == "true" {
		t.Fatal(message)
	}
	t.Skip(message)
}

// Start starts a server and waits until it responds.
func Start(t testing.TB, options Options) *Server {
	t.Helper()
	return start(t, options, freePort(t, isCluster(options.Config)))
}

func start(t testing.TB, options Options, port int) *Server {
	t.Helper()
	Need(t, "redis-server")
	Need(t, "redis-cli")
	s := &Server{t: t, options: options, port: port, dir: t.TempDir()}
	s.write("users.acl", s.users())
	s.write("redis.conf", append(s.config(), "aclfile users.acl"))
	s.run()
	return s
}

// Addr is the server's host:port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// TLS returns the TLS configuration of a client; nil without TLS.
func (s *Server) TLS() *tls.Config {
	if s.options.Certificates == nil {
		return nil
	}
	return s.options.Certificates.Client(s.t)
}

// Kill ends the process at once, as a crash would, and waits for its end.
func (s *Server) Kill() {
	s.t.Helper()
	s.process.Stop(s.t, os.Kill)
}

// Stop suspends the process: connections are accepted, but get no response.
func (s *Server) Stop() { s.process.Signal(s.t, syscall.SIGSTOP) }

// Cont resumes a process after Stop.
func (s *Server) Cont() { s.process.Signal(s.t, syscall.SIGCONT) }

// Restart kills the process and starts it again on the same port with its data on disk.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	s.run()
}

// RestartEmpty is Restart without the data.
func (s *Server) RestartEmpty() {
	s.t.Helper()
	s.Kill()
	for _, data := range []string{"dump.rdb", "appendonlydir"} {
		if err := os.RemoveAll(filepath.Join(s.dir, data)); err != nil {
			s.t.Fatal(err)
		}
	}
	s.run()
}

// CLI runs redis-cli as a user with all permissions and returns its output, without the
// line end.
func (s *Server) CLI(args ...string) string {
	s.t.Helper()
	out, err := s.cli(args...)
	if err != nil {
		s.t.Fatalf("redis-cli %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

func (s *Server) cli(args ...string) (string, error) {
	login := []string{"-h", "127.0.0.1", "-p", strconv.Itoa(s.port)}
	if !s.isSentinel() {
		login = append(login, "--user", admin)
	}
	if c := s.options.Certificates; c != nil {
		login = append(login, "--tls", "--cacert", c.CA, "--cert", c.ClientCert, "--key", c.ClientKey)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "redis-cli", append(login, args...)...) //nolint:gosec // what a test asks for
	cmd.Env = os.Environ()
	if !s.isSentinel() {
		cmd.Env = append(cmd.Env, "REDISCLI_AUTH="+admin)
	}
	out, err := cmd.CombinedOutput()
	return strings.TrimSuffix(string(out), "\n"), err
}

func (s *Server) isSentinel() bool { return len(s.args) > 0 }

// run starts the process and waits until it has loaded its data.
func (s *Server) run() {
	s.t.Helper()
	s.process = testkit.Launch(s.t, s.dir, nil, "redis-server", append([]string{"redis.conf"}, s.args...)...)
	s.process.Await(s.t, func() error {
		answer, err := s.cli("ping")
		return unless(err == nil && answer == "PONG", answer)
	})
}

func (s *Server) users() []string {
	users := []string{fmt.Sprintf("user %s on >%s ~* &* +@all", admin, admin)}
	switch {
	case s.options.Password != "":
		users = append(users, "user default on >"+s.options.Password+" ~* &* +@all")
	case len(s.options.ACL) > 0:
		users = append(users, "user default on resetpass ~* &* +@all") // nobody can log in as it
	default:
		users = append(users, "user default on nopass ~* &* +@all")
	}
	return append(users, s.options.ACL...)
}

func (s *Server) config() []string {
	lines := []string{
		"bind 127.0.0.1",
		"dir .",
		`save ""`,
		"loglevel warning",
		"masteruser " + admin,
		"masterauth " + admin,
		"repl-diskless-sync-delay 0", // else a replica waits 5 s for others
	}
	if s.options.AppendOnly {
		lines = append(lines, "appendonly yes", "appendfsync always")
	}
	if c := s.options.Certificates; c != nil {
		lines = append(lines, "port 0", fmt.Sprintf("tls-port %d", s.port),
			"tls-cert-file "+c.ServerCert, "tls-key-file "+c.ServerKey, "tls-ca-cert-file "+c.CA,
			"tls-auth-clients yes", "tls-replication yes", "tls-cluster yes")
	} else {
		lines = append(lines, fmt.Sprintf("port %d", s.port))
	}
	return append(lines, s.options.Config...)
}

func (s *Server) write(name string, lines []string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
}
