//go:build unix

package client

import (
	"os"
	"syscall"
)

// isPrivateFile reports whether a file belongs to the user and is inaccessible to
// others.
func isPrivateFile(path string) (bool, error) {
	info, err := os.Stat(path) //nolint:gosec // the user's own environment says where it is
	if err != nil {
		return false, err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	const others = 0o077
	return ok && int(owner.Uid) == os.Geteuid() && info.Mode().IsRegular() && info.Mode().Perm()&others == 0, nil
}
