//go:build unix

package main

import (
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
)

func TestDevRemovesItsFilesWhenTheTerminalCloses(t *testing.T) {
	isolate(t)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP) // nohup makes the tests ignore it
	defer signal.Stop(hangups)
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
