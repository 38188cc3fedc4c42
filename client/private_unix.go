//go:build unix

package client

import (
	"os"
	"syscall"
)

// onlyMine reports whether a file is the user's own and closed to others.
func onlyMine(path string) (bool, error) {
	info, err := os.Stat(path) //nolint:gosec // the user's own environment says where it is
	if err != nil {
		return false, err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	const others = 0o077
	return ok && int(owner.Uid) == os.Geteuid() && info.Mode().IsRegular() && info.Mode().Perm()&others == 0, nil
}
