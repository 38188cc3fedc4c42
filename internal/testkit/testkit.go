// Package testkit has helpers for the tests of all packages. It imports only the
// standard library, so that the tests of the lowest packages can use it.
package testkit

import (
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long Eventually waits. It only has to be longer than the slowest
// step on a busy machine.
const patience = time.Minute

// Log collects what is written to it. It is safe for concurrent use. The zero value
// is empty.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements [io.Writer].
func (l *Log) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(text)
}

// String returns all text that was written.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Contains reports whether the text contains part.
func (l *Log) Contains(part string) bool { return strings.Contains(l.String(), part) }

// Eventually calls done until it returns true, and ends the test if that takes longer
// than a minute. The message is what.
func Eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	Succeeds(t, what, until(done))
}

func until(done func() bool) (try func() error) {
	return func() error {
		if done() {
			return nil
		}
		return errNotYet
	}
}

var errNotYet = errors.New("not yet")

// Succeeds calls try until it returns nil, and ends the test with the last error if
// that takes longer than a minute.
func Succeeds(t testing.TB, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := try()
		switch {
		case err == nil:
			return
		case time.Now().After(deadline):
			t.Fatalf("%s: not within %v: %v", what, patience, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// WriteFile writes a file that only its owner can read.
func WriteFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// SecretFile writes a secret to a file of its own, which ends with the test, and
// returns its path.
func SecretFile(t testing.TB, secret string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	WriteFile(t, path, secret)
	return path
}

// Gzip compresses data.
func Gzip(data []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(data) // a buffer does not fail
	_ = w.Close()
	return out.Bytes()
}
