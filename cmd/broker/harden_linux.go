package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// protectMemory prevents dumps of the process's memory and access by other processes. Call
// it before the process reads a secret. Afterwards only root can attach a debugger.
//
// It disables core dumps in two ways. It sets both limits of RLIMIT_CORE to zero, so
// that they cannot be raised again. It also clears PR_SET_DUMPABLE, which counts where a
// core dump is piped to a program and the limit does not apply (core(5)). A process that
// is not dumpable also denies other processes of the same user /proc/PID/mem and
// ptrace(2).
func protectMemory() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("core dumps cannot be disabled: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("access to the memory by other processes cannot be disabled: %w", err)
	}
	return nil
}
