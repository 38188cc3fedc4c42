//go:build !unix

package secretsource

import (
	"errors"
	"os/exec"
)

// Supported reports whether commands can be run on this system.
const Supported = false

func inOwnGroup(*exec.Cmd) {}

func killGroup(*exec.Cmd) {}

func checkFile(string) error {
	return errors.New("exec is supported on Linux and macOS only")
}
