package sealed_test

import (
	"io"
	"testing"

	"github.com/cezzis/tokenbroker/internal/store/boltstore"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
)

// inBolt opens a file to seal in. The test closes it, unless it did so before.
func inBolt(t testing.TB, path string) *boltstore.Store {
	t.Helper()
	b, err := boltstore.Open(boltstore.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustClose(t, b) })
	return b
}

// inRedis opens a Redis to seal in.
func inRedis(t testing.TB, address string) *redisstore.Store {
	t.Helper()
	r, err := redisstore.New(redisstore.Config{Addresses: []string{address}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustClose(t, r) })
	return r
}

func mustClose(t testing.TB, s io.Closer) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
