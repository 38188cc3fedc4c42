package audit_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cezzis/tokenbroker/internal/audit"
)

// disk is a directory on a file system of that size, of its own.
func disk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("a small file system cannot be mounted here (it takes root): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// The disk is full in the middle of a line, and then has room again: every line
// that was accepted is there, whole and once, and how many were not.
func TestFullDisk_acceptedLinesSurvive(t *testing.T) {
	dir := disk(t, "64k")
	for _, refuse := range []bool{true, false} {
		name := "drop"
		if refuse {
			name = "refuse"
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ballast, path := filepath.Join(dir, "ballast"), filepath.Join(dir, name+".jsonl")
				if err := os.WriteFile(ballast, make([]byte, 40<<10), 0o600); err != nil {
					t.Fatal(err)
				}
				b := open(t, audit.Config{File: path, Refuse: refuse}.WithBuffer(8<<10))
				e := &audit.Event{Event: audit.Token, Outcome: audit.OK, Detail: strings.Repeat("x", 200)}
				given, refused := 0, 0
				for range 400 {
					if b.Permit(e) == nil {
						given++
					} else {
						refused++
					}
					time.Sleep(time.Millisecond)
				}
				if err := b.Flush(t.Context()); !errors.Is(err, audit.ErrUnwritten) {
					t.Fatalf("the disk is not full: %v", err)
				}
				if content, err := os.ReadFile(path); err != nil || content[len(content)-1] == '\n' {
					t.Errorf("the disk is not full in the middle of a line: %v", err)
				}
				if refuse == (refused == 0) {
					t.Errorf("%d were refused", refused)
				}

				if err := os.Remove(ballast); err != nil {
					t.Fatal(err)
				}
				time.Sleep(audit.RetryInterval)
				synctest.Wait()
				if err := b.Permit(e); err != nil {
					t.Errorf("with room again: %v", err)
				}
				given++
				tokens, lost := 0, 0
				for _, one := range b.lines(t) {
					switch one.Event {
					case "token":
						tokens++
					case "lost":
						lost += int(one.Count)
					}
				}
				if tokens+lost != given || refuse && lost > 0 || !refuse && lost == 0 {
					t.Errorf("%d given, of which %d have lines and %d are told to be lost; %d refused", given, tokens, lost, refused)
				}
				if got := b.metric(t, "tokenbroker_audit_lost_total"); int(got) != lost {
					t.Errorf("%v lost lines were counted", got)
				}
				if log := b.log.String(); strings.Count(log, "cannot be written") != 1 || strings.Count(log, "written again") != 1 {
					t.Errorf("log: %s", log)
				}
				t.Logf("%d given, %d refused, %d lines lost and told so", given, refused, lost)
				if err := errors.Join(b.Close(), os.Remove(path)); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}
