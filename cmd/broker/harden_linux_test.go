package main

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// The test runs in a process of its own, because protectMemory cannot be undone.
func TestProtectMemory(t *testing.T) {
	const env = "TOKENBROKER_TEST_HARDEN"
	if os.Getenv(env) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestProtectMemory$")
		cmd.Env = append(os.Environ(), env+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if before, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || before != 1 {
		t.Errorf("the process is not dumpable at its start: %d, %v", before, err)
	}
	if err := protectMemory(); err != nil {
		t.Fatal(err)
	}
	if after, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || after != 0 {
		t.Errorf("it is still dumpable: %d, %v", after, err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil || limit != (unix.Rlimit{}) {
		t.Errorf("core dumps are limited to %+v, %v", limit, err)
	}
}
