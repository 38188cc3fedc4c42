package harden

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Memory keeps the process's memory from being dumped or read by others. It is for
// the start of a process, before it reads a secret, and for processes that serve:
// debuggers cannot attach any more, unless they are root's.
//
// Core dumps are ruled out twice: their size is limited to nothing (RLIMIT_CORE,
// both limits, so that nobody raises it again), and the process is marked as one
// that must not be dumped (PR_SET_DUMPABLE), which also holds where a dump goes to a
// program and no limit counts (core(5)). The mark also keeps processes of the same
// user from reading /proc/PID/mem and attaching to it (ptrace(2)).
func Memory() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("core dumps cannot be ruled out: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("the memory cannot be closed to others: %w", err)
	}
	return nil
}
