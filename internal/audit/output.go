package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// followInterval is the time between checks whether the file was renamed.
const followInterval = time.Second

// output is a file that may be renamed by log rotation, or the standard output. Only the
// writing goroutine uses it, except checkRequested.
type output struct {
	path string
	// checkRequested requests a check, because the file was rotated.
	checkRequested atomic.Bool

	file      *os.File
	info      fs.FileInfo
	checkedAt time.Time // time of the last check
	// part of the next line was written already, because the disk was full in the middle
	// of it.
	part int
}

func (o *output) open() error {
	if o.path == Stdout {
		return o.openStdout()
	}
	if info, err := os.Stat(o.path); err == nil && info.Mode()&(fs.ModeNamedPipe|fs.ModeDir|fs.ModeSocket) != 0 {
		return fmt.Errorf("%s is no regular file", o.path)
	}
	file, err := os.OpenFile(o.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: its directory must exist", err)
	}
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return err
	}
	o.close()
	o.file, o.info, o.checkedAt, o.part = file, info, time.Now(), 0
	return o.endLine()
}

// openStdout duplicates the descriptor of the standard output, because a broken pipe at
// the original one would end the process.
func (o *output) openStdout() error {
	number, err := syscall.Dup(int(os.Stdout.Fd()))
	if err != nil {
		return fmt.Errorf("the standard output: %w", err)
	}
	syscall.CloseOnExec(number)
	o.file = os.NewFile(uintptr(number), Stdout)
	return nil
}

// endLine ends a line that a previous process did not finish.
func (o *output) endLine() error {
	if !o.info.Mode().IsRegular() || o.info.Size() == 0 {
		return nil
	}
	var last [1]byte
	if _, err := o.file.ReadAt(last[:], o.info.Size()-1); err != nil || last[0] == '\n' {
		return err
	}
	_, err := o.file.WriteString("\n")
	return err
}

// warning returns a warning about the file's mode, or an empty string.
func (o *output) warning() string {
	if o.info == nil || !o.info.Mode().IsRegular() || o.info.Mode().Perm()&0o077 == 0 {
		return ""
	}
	return fmt.Sprintf("the audit file %s is open to others (mode %v): make it 0600", o.path, o.info.Mode().Perm())
}

// follow opens the path again if the open file does not have that name any more.
func (o *output) follow() error {
	if o.path == Stdout {
		return nil
	}
	if !o.checkRequested.Swap(false) && time.Since(o.checkedAt) < followInterval {
		return nil
	}
	if info, err := os.Stat(o.path); err == nil && os.SameFile(info, o.info) {
		o.checkedAt = time.Now()
		return nil
	}
	o.checkedAt = time.Time{} // check each time until the file is open
	return o.open()
}

// write writes lines and returns the length of the complete ones. The next call must begin
// with the rest.
func (o *output) write(lines []byte) (whole int, err error) {
	n, err := o.file.Write(lines[o.part:])
	n += o.part
	whole = 1 + bytes.LastIndexByte(lines[:n], '\n')
	o.part = n - whole
	return whole, err
}

func (o *output) close() {
	if o.file != nil {
		_ = o.file.Sync() // fails for pipes
		_ = o.file.Close()
	}
}
