package redistest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/testkit"
)

// patience is how long a test waits for an event, on a slow machine.
const patience = 60 * time.Second

// Need skips the test if a command is not installed and says how to install it. With
// CI=true a missing command is a failure.
func Need(t testing.TB, command string) {
	t.Helper()
	if _, err := find(command); err == nil {
		return
	}
	install := "apt-get install redis-server"
	if command == toxiproxy {
		install = "make bin/tools/" + toxiproxy
	}
	message := command + " is not installed. Install it: " + install
	if os.Getenv("CI") == "true" {
		t.Fatal(message)
	}
	t.Skip(message)
}

// find looks for a command in the PATH, then among the tools that the Makefile builds.
func find(command string) (path string, err error) {
	if path, err = exec.LookPath(command); err == nil {
		return path, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; filepath.Dir(dir) != dir; dir = filepath.Dir(dir) {
		if path, err = exec.LookPath(filepath.Join(dir, "bin", "tools", command)); err == nil {
			return path, nil
		}
	}
	return "", err
}

// process is a server that runs while a test runs.
type process struct {
	name   string
	cmd    *exec.Cmd
	output *testkit.Log
	exited chan struct{}
}

func launch(t testing.TB, dir, command string, args ...string) *process {
	t.Helper()
	path, err := find(command)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), path, args...) //nolint:gosec // one of the servers of this package
	p := &process{name: command, cmd: cmd, output: &testkit.Log{}, exited: make(chan struct{})}
	p.cmd.Dir = dir
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.WaitDelay = 5 * time.Second
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // ProcessState says how it ended
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.kill(t)
		if t.Failed() {
			t.Logf("%s (pid %d) ended with %v and had printed:\n%s", p.name, p.cmd.Process.Pid, p.cmd.ProcessState, p.output)
		}
	})
	return p
}

func (p *process) kill(t testing.TB) {
	t.Helper()
	p.signal(t, syscall.SIGKILL)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.exited:
	case <-timer.C:
		t.Errorf("%s did not end", p.name)
	}
}

func (p *process) signal(t testing.TB, signal os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("%v to %s: %v", signal, p.name, err)
	}
}

// await waits until the process is ready, and fails at once if it ends before.
func (p *process) await(t testing.TB, probe func() (answer string, ready bool)) {
	t.Helper()
	testkit.Succeeds(t, p.name+" is ready", func() error {
		select {
		case <-p.exited:
			t.Fatalf("%s ended at its start: %v", p.name, p.cmd.ProcessState)
		default:
		}
		seen, ready := probe()
		return unless(ready, seen)
	})
}

// unless returns nil if done, else an error with the text of seen.
func unless(done bool, seen string) error {
	if done {
		return nil
	}
	return errors.New(seen)
}
