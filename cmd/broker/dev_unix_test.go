//go:build unix

package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestDevRemovesItsFilesWhenTheTerminalCloses(t *testing.T) {
	isolate(t)
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	out, ended := startDev(t, t.Context())
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	for _, dir := range []string{temp, filepath.Join(os.Getenv("XDG_STATE_HOME"), "tokenbroker", "dev")} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}
