package redistest

import (
	"context"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
)

// FreePort returns an unused loopback port that no other test gets, also of another
// process, until this one ends.
//
// It is below the range from which Linux takes the ports of outgoing connections, so
// that no such connection takes it while a process that owns it restarts.
func FreePort(t testing.TB) int {
	t.Helper()
	return freePort(t, false)
}

// busOffset is how far above its port a node of a cluster listens for the others.
const busOffset = 10000

// freePort is FreePort. The nodes of a cluster use a range in which the port of their
// bus is below that range of Linux as well.
func freePort(t testing.TB, ofCluster bool) int {
	t.Helper()
	for range 1000 {
		if port := 20000 + rand.IntN(2700); ofCluster && isFree(port) && isFree(port+busOffset) && reserve(t, port) {
			return port
		}
		if port := 23000 + rand.IntN(7000); !ofCluster && isFree(port) && reserve(t, port) {
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

func isFree(port int) bool {
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:"+strconv.Itoa(port))
	return err == nil && listener.Close() == nil
}

// reserve locks a port for this test until it ends; other tests skip it. The system
// drops the lock of a process that died.
func reserve(t testing.TB, port int) bool {
	t.Helper()
	dir := filepath.Join(os.TempDir(), "tokenbroker-test-ports-"+strconv.Itoa(os.Getuid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(port)), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		_ = lock.Close()
		return false
	}
	t.Cleanup(func() { _ = lock.Close() })
	return true
}

// isCluster reports whether the lines of a configuration make a node of a cluster.
func isCluster(config []string) bool { return slices.Contains(config, "cluster-enabled yes") }
