//go:build unix

package secretsource_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/secretsource"
)

const canary = "canary-of-exec-51f2"

// script writes a shell script into a directory of its own and returns its path.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "print-secret")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, one := range []string{path, filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
		if err := os.Chmod(one, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func command(t *testing.T, body string, args ...string) *secretsource.Exec {
	t.Helper()
	return &secretsource.Exec{Command: append([]string{script(t, body)}, args...), Timeout: 30 * time.Second, Environment: []string{"PATH"}}
}

func TestExecReadsTheOutput(t *testing.T) {
	t.Setenv("PASSED_ON", "passed")
	t.Setenv("KEPT_BACK", "kept")
	for name, test := range map[string]struct{ body, want string }{
		"with a line end":     {`echo "s3cret"`, "s3cret"},
		"with a CR":           {`printf 's3cret\r\n'`, "s3cret"},
		"two line ends":       {`printf 's3cret\n\n'`, "s3cret\n"},
		"white space":         {`printf ' s3 cret '`, " s3 cret "},
		"arguments, no shell": {`printf '%s|%s' "$1" "$2"`, "$(id)|; a b"},
		"environment":         {`printf '%s,%s' "$PASSED_ON" "$KEPT_BACK"`, "passed,"},
		"standard input":      {`cat; printf closed`, "closed"},
		"slow":                {`printf a; sleep 0.3; printf b`, "ab"},
		"directory":           {`pwd`, "/"},
		"stderr":              {`echo chatter >&2; echo value`, "value"},
		"longest":             {`head -c 16384 /dev/zero | tr '\0' x`, strings.Repeat("x", 16384)},
	} {
		t.Run(name, func(t *testing.T) {
			e := command(t, test.body, "$(id)", "; a b")
			e.Environment = append(e.Environment, "PASSED_ON", "UNSET")
			got, err := e.Read(t.Context())
			if err != nil || got.Secret.Reveal() != test.want || got.Version != "" {
				t.Errorf("%q, %v, want %q", got.Secret.Reveal(), err, test.want)
			}
		})
	}
}

func TestExecReportsFailures(t *testing.T) {
	for name, test := range map[string]struct{ body, want string }{
		"exit code":        {`echo ` + canary + `; echo ` + canary + ` >&2; exit 7`, "it ended with exit code 7 (it wrote 20 bytes to its standard error"},
		"crash":            {`echo ` + canary + `; kill -SEGV $$`, "it ended by a signal: segmentation fault"},
		"empty":            {`true`, "wrote nothing to its standard output"},
		"only a line end":  {`echo`, "wrote nothing to its standard output"},
		"huge":             {`echo ` + canary + `; exec yes`, "it wrote more than 16384 bytes"},
		"huge, no SIGPIPE": {`trap '' PIPE; while :; do echo ` + canary + `; done`, "it wrote more than 16384 bytes"},
		"one byte more":    {`head -c 16385 /dev/zero | tr '\0' x`, "it wrote more than 16384 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := command(t, test.body).Read(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), canary) || !got.Secret.IsZero() {
				t.Errorf("the secret is in %v, %v", err, got)
			}
		})
	}
}

// The processes of a hanging command end with it, also those that it started.
func TestExecKillsTheGroupAtTheTimeout(t *testing.T) {
	for name, test := range map[string]struct{ body, want string }{
		"hanging":                             {`echo $$ > "$1"; while :; do sleep 60; done`, "it did not end in time and was killed"},
		"hanging, ignores TERM":               {`trap '' TERM INT HUP; echo $$ > "$1"; while :; do sleep 60; done`, "did not end in time"},
		"waits for a hanging grandchild":      {`sleep 300 & echo $! > "$1"; wait`, "did not end in time"},
		"grandchild holds stdout":             {`echo ` + canary + `; sleep 300 & echo $! > "$1"`, "kept its output open and was killed"},
		"grandchild holds stdout after crash": {`sleep 300 & echo $! > "$1"; exit 3`, "it ended with exit code 3"},
	} {
		t.Run(name, func(t *testing.T) {
			pids := filepath.Join(t.TempDir(), "pid")
			e := command(t, test.body, pids)
			e.Timeout = 2 * time.Second
			got, err := e.Read(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), canary) || !got.Secret.IsZero() {
				t.Errorf("error %v, want %q", err, test.want)
			}
			text, err := os.ReadFile(pids)
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(20 * time.Second); running(pid); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					_ = syscall.Kill(pid, syscall.SIGKILL)
					t.Fatalf("process %d still runs", pid)
				}
			}
		})
	}
}

// running reports whether a process runs: a zombie that nobody has waited for does not.
func running(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !os.IsNotExist(err) || !hasProc()
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

func hasProc() bool {
	_, err := os.Stat("/proc/self/stat")
	return err == nil
}

func TestExecEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	if _, err := command(t, `sleep 300`).Read(ctx); err == nil || !strings.Contains(err.Error(), "context canceled") {
		t.Errorf("error %v", err)
	}
}

// A command that another user could replace is not run.
func TestExecRefusesFilesOfOthers(t *testing.T) {
	chmod := func(path string, mode os.FileMode) {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		change func(path string) string // returns the path to run
		want   string
	}{
		"file of the group":      {func(path string) string { chmod(path, 0o775); return path }, "may be written by other users"},
		"file of all":            {func(path string) string { chmod(path, 0o757); return path }, "may be written by other users"},
		"directory of the group": {func(path string) string { chmod(filepath.Dir(path), 0o775); return path }, "may be written by other users"},
		"sticky directory":       {func(path string) string { chmod(filepath.Dir(path), 0o777|os.ModeSticky); return path }, "may be written by other users"},
		"directory above": {func(path string) string {
			chmod(filepath.Dir(filepath.Dir(path)), 0o777)
			return path
		}, "may be written by other users"},
		"target of a symlink": {func(path string) string {
			chmod(path, 0o777)
			link := filepath.Join(filepath.Dir(path), "link")
			if err := os.Symlink(path, link); err != nil {
				t.Fatal(err)
			}
			return link
		}, "may be written by other users"},
		"directory of a symlink": {func(path string) string {
			open := filepath.Join(filepath.Dir(path), "open")
			if err := os.Mkdir(open, 0o700); err != nil {
				t.Fatal(err)
			}
			chmod(open, 0o777)
			link := filepath.Join(open, "link")
			if err := os.Symlink(path, link); err != nil {
				t.Fatal(err)
			}
			return link
		}, "may be written by other users"},
		"not executable": {func(path string) string { chmod(path, 0o644); return path }, "is not executable"},
		"a directory":    {filepath.Dir, "is not a file"},
		"absent":         {func(path string) string { return path + "-x" }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			e := &secretsource.Exec{Command: []string{test.change(script(t, `echo `+canary))}, Timeout: 30 * time.Second}
			if _, err := e.Read(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

func TestExecRefusesFilesOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("only root can give a file to another user: the check is not tried here")
		return
	}
	path := script(t, `echo `+canary)
	if err := os.Chown(path, 12345, -1); err != nil {
		t.Fatal(err)
	}
	e := &secretsource.Exec{Command: []string{path}, Timeout: 30 * time.Second}
	if _, err := e.Read(t.Context()); err == nil || !strings.Contains(err.Error(), "belongs to another user (uid 12345)") {
		t.Errorf("error %v", err)
	}
}

func TestExecReportsAFileThatIsNoProgram(t *testing.T) {
	path := script(t, `echo value`)
	if err := os.WriteFile(path, []byte("not a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	e := &secretsource.Exec{Command: []string{path}, Timeout: 30 * time.Second}
	if _, err := e.Read(t.Context()); err == nil || !strings.Contains(err.Error(), "it could not be run: exec format error") {
		t.Errorf("error %v", err)
	}
}
