//go:build unix

package secretsource

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// Supported reports whether commands can be run on this system.
const Supported = true

// inOwnGroup gives the command a process group of its own, which is killed as a whole when
// the context of the command ends.
func inOwnGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		killGroup(cmd)
		return nil
	}
}

// killGroup kills the command and the processes that it started.
func killGroup(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }

// others are the permissions of the group and of all users to write.
const others = 0o022

// checkFile returns an error if another user could replace the command. It checks the file
// and all directories above it: whoever can write one of these can replace the file.
func checkFile(path string) error {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	info, err := os.Stat(resolved)
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a file", path)
	case info.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("%s is not executable: chmod +x it", path)
	}
	if err := checkOwner(resolved, info, "the file"); err != nil {
		return err
	}
	// A symlink is as safe as its own directory, and its target as safe as the target's.
	for _, file := range []string{filepath.Clean(path), resolved} {
		if err := checkDirectories(file); err != nil {
			return err
		}
	}
	return nil
}

// checkDirectories checks the directory of a file and all those above it.
func checkDirectories(file string) error {
	for dir := filepath.Dir(file); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		// In a sticky directory, such as /tmp, users can replace only their own entries.
		sticky := info.Mode()&os.ModeSticky != 0 && dir != filepath.Dir(file)
		if !sticky {
			if err := checkOwner(dir, info, "the directory"); err != nil {
				return err
			}
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

func checkOwner(path string, info os.FileInfo, kind string) error {
	if info.Mode().Perm()&others != 0 {
		return fmt.Errorf("%s %s may be written by other users, who could replace the command: chmod go-w %s", kind, path, path)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if ok && stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("%s %s belongs to another user (uid %d), who could replace the command: give it to root or to the user of the broker", kind, path, stat.Uid)
	}
	return nil
}
