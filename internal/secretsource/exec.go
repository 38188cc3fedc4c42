package secretsource

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// MaxOutput bounds the output of a command, in bytes.
const MaxOutput = secret.MaxSize

// outputGrace is how long a process that the command has started may keep its output open
// after the command has ended.
const outputGrace = time.Second

// Exec reads a secret from the output of a command.
type Exec struct {
	// Command is the absolute path of the file and its arguments. No shell reads them.
	Command []string
	// Timeout bounds a run.
	Timeout time.Duration
	// Environment has the names of the variables that the command gets from the broker's
	// environment. It gets no others.
	Environment []string
}

var (
	errTooLong = fmt.Errorf("it wrote more than %d bytes: is it a secret?", MaxOutput)
	errTimeout = errors.New("it did not end in time and was killed")
)

// Read runs the command.
func (e *Exec) Read(ctx context.Context) (Value, error) {
	path := e.Command[0]
	if err := checkFile(path); err != nil {
		return Value{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, e.Timeout, errTimeout)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	out, stderr := &output{full: func() { stop(errTooLong) }}, new(counter)
	defer out.clear()
	cmd := exec.CommandContext(ctx, path, e.Command[1:]...) //nolint:gosec // the operator configures it
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = "/", e.environment(), out, stderr, outputGrace
	inOwnGroup(cmd)
	if err := cmd.Run(); err != nil {
		if cmd.Process != nil {
			killGroup(cmd) // processes that it started may still run
		}
		return Value{}, fmt.Errorf("%s: %w%s", path, failure(ctx, err), stderr.hint())
	}
	value := secret.TrimLineEnd(out.data)
	if len(value) == 0 {
		return Value{}, fmt.Errorf("%s: it ended well and wrote nothing to its standard output%s", path, stderr.hint())
	}
	return Value{Secret: redact.New(string(value))}, nil
}

// environment returns the variables for the command.
func (e *Exec) environment() []string {
	all := []string{} // not nil, which would pass on the broker's own environment
	for _, name := range e.Environment {
		if value, ok := os.LookupEnv(name); ok {
			all = append(all, name+"="+value)
		}
	}
	return all
}

// failure returns the reason why a command failed.
func failure(ctx context.Context, err error) error {
	exit, exited := errors.AsType[*exec.ExitError](err)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, exec.ErrWaitDelay):
		return errors.New("it ended, and a process that it started kept its output open and was killed")
	case exited && exit.ExitCode() >= 0:
		return fmt.Errorf("it ended with exit code %d", exit.ExitCode())
	case exited:
		return fmt.Errorf("it ended by a %s", exit.ProcessState)
	default:
		if start, ok := errors.AsType[*os.PathError](err); ok {
			err = start.Err // the error before repeats the path
		}
		return fmt.Errorf("it could not be run: %w", err)
	}
}

// output keeps the output of a command up to MaxOutput, and reports when there is more.
type output struct {
	data []byte
	full func()
}

func (o *output) Write(p []byte) (int, error) {
	if o.data == nil {
		o.data = make([]byte, 0, MaxOutput) // it never grows, which would leave copies
	}
	if len(o.data)+len(p) > MaxOutput {
		o.full()
		return 0, errTooLong
	}
	o.data = append(o.data, p...)
	return len(p), nil
}

func (o *output) clear() { clear(o.data[:cap(o.data)]) }

// counter counts the bytes that a command writes to its standard error, which may contain
// the secret.
type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

func (c *counter) hint() string {
	if c.n == 0 {
		return ""
	}
	return fmt.Sprintf(" (it wrote %d bytes to its standard error, which the broker does not read: run it by hand to see them)", c.n)
}
