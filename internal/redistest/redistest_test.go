package redistest_test

import (
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestServer_restart(t *testing.T) {
	s := redistest.Start(t, redistest.Options{AppendOnly: true, Password: "secret", Config: []string{"maxmemory 10mb"}})
	expect(t, "further configuration", s.CLI("config", "get", "maxmemory"), "maxmemory\n10485760")
	expect(t, "the password", ping(t, dial(t, s.Addr(), nil)), "-NOAUTH Authentication required.\r\n")
	s.CLI("set", "key", "value")
	s.Restart()
	expect(t, "after a restart", s.CLI("get", "key"), "value")
	s.RestartEmpty()
	expect(t, "after a restart without data", s.CLI("get", "key"), "")
}

func TestServer_pause(t *testing.T) {
	s := redistest.Start(t, redistest.Options{})
	conn := dial(t, s.Addr(), nil)
	s.Stop()
	expect(t, "while it hangs", ping(t, conn), "")
	s.Cont()
	expect(t, "after it", ping(t, dial(t, s.Addr(), nil)), "+PONG\r\n")
	s.Kill()
	if _, err := net.Dial("tcp", s.Addr()); err == nil {
		t.Error("a server that was killed accepts connections")
	}
}

func TestServer_certificatesAndUsers(t *testing.T) {
	certificates := redistest.NewCertificates(t)
	s := redistest.Start(t, redistest.Options{Certificates: certificates, ACL: []string{"user broker on >secret ~* +get +hello"}})
	expect(t, "without a login", ping(t, dial(t, s.Addr(), s.TLS())), "-NOAUTH Authentication required.\r\n")
	if strings.Contains(ping(t, dial(t, s.Addr(), certificates.Anonymous())), "NOAUTH") {
		t.Error("a client without a certificate was let in")
	}
	expect(t, "the users", s.CLI("acl", "users"), "broker\ndefault\nredistest")
}

func TestClusterFailsOver(t *testing.T) {
	c := redistest.StartCluster(t, redistest.Options{Password: "secret"})
	master := c.Master("key")
	expect(t, "a write", master.CLI("set", "key", "value"), "OK")
	expect(t, "waiting for the replica", master.CLI("wait", "1", "1000"), "1")
	master.Kill()
	testkit.Eventually(t, "another server has the key", func() bool {
		for _, server := range c.Servers {
			if server != master && server.CLI("get", "key") == "value" {
				return true
			}
		}
		return false
	})
	// The others may take the cluster for down a little longer, and then say so.
	testkit.Eventually(t, "the cluster takes writes", func() bool { return c.Master("key").CLI("set", "key", "value2") == "OK" })
}

func TestSentinelsFailOver(t *testing.T) {
	s := redistest.StartSentinel(t, redistest.Options{})
	s.Master.Kill()
	testkit.Eventually(t, "the replica is the master", func() bool { return strings.HasPrefix(s.Replica.CLI("role"), "master") })
	_, port, _ := net.SplitHostPort(s.Replica.Addr())
	testkit.Eventually(t, "the sentinels name it", func() bool {
		return s.Sentinels[0].CLI("sentinel", "get-master-addr-by-name", redistest.MasterName) == "127.0.0.1\n"+port
	})
}

// dial connects as a client that has not logged in.
func dial(t *testing.T, addr string, config *tls.Config) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if config != nil {
		config.ServerName = "127.0.0.1"
		return tls.Client(conn, config)
	}
	return conn
}

// ping returns the answer to a PING, "" if none comes in time.
func ping(t *testing.T, conn net.Conn) string {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 100)
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return ""
	}
	n, _ := conn.Read(answer)
	return string(answer[:n])
}
