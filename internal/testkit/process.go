package testkit

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"
)

// Process is a server that runs while a test runs.
type Process struct {
	Cmd    *exec.Cmd
	Output *Log
	Exited chan struct{}
	name   string
}

// Launch starts a server in dir, with the environment of the test if env is nil. It is
// killed when the test ends, and its output is shown if the test failed.
func Launch(t testing.TB, dir string, env []string, name string, args ...string) *Process {
	t.Helper()
	cmd := exec.CommandContext(context.Background(), name, args...) //nolint:gosec // a server of the test
	p := &Process{Cmd: cmd, Output: &Log{}, Exited: make(chan struct{}), name: name}
	cmd.Dir, cmd.Env = dir, env
	cmd.Stdout, cmd.Stderr = p.Output, p.Output
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // ProcessState says how it ended
		close(p.Exited)
	}()
	t.Cleanup(func() {
		p.Stop(t, os.Kill)
		if t.Failed() {
			t.Logf("%s (pid %d) ended with %v and had printed:\n%s", name, cmd.Process.Pid, cmd.ProcessState, last(p.Output.String(), 16<<10))
		}
	})
	return p
}

// last returns the last bytes of a text.
func last(text string, size int) string {
	if len(text) <= size {
		return text
	}
	return "...\n" + text[len(text)-size:]
}

// Signal sends a signal, unless the process has ended.
func (p *Process) Signal(t testing.TB, signal os.Signal) {
	t.Helper()
	if err := p.Cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("%v to %s: %v", signal, p.name, err)
	}
}

// Stop sends the signal, waits for the end and returns the exit code, -1 if a
// signal ended the process.
func (p *Process) Stop(t testing.TB, signal os.Signal) int {
	t.Helper()
	p.Signal(t, signal)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.Exited:
		return p.Cmd.ProcessState.ExitCode()
	case <-timer.C:
		_ = p.Cmd.Process.Kill()
		t.Errorf("%s did not end within %v of %v", p.name, patience, signal)
		<-p.Exited
		return -1
	}
}

// Ready waits until done reports true, and fails at once if the process ends
// before.
func (p *Process) Ready(t testing.TB, done func() bool) {
	t.Helper()
	p.Await(t, until(done))
}

// Await waits until try returns nil, and fails at once if the process ends before.
func (p *Process) Await(t testing.TB, try func() error) {
	t.Helper()
	Succeeds(t, p.name+" is ready", func() error {
		select {
		case <-p.Exited:
			t.Fatalf("%s ended at its start: %v", p.name, p.Cmd.ProcessState)
		default:
		}
		return try()
	})
}
