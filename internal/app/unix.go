package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"

	"github.com/cezzis/tokenbroker/internal/config"
)

// listenUnix makes the configured Unix socket; it returns nil if no socket is configured.
func listenUnix(name string, config *config.Unix) (net.Listener, error) {
	if config == nil {
		return nil, nil //nolint:nilnil // off
	}
	listener, err := makeUnix(config)
	if err != nil {
		return nil, fmt.Errorf("listen.%s: %w", name, err)
	}
	return listener, nil
}

// makeUnix makes a Unix socket. It replaces only the socket of a process that has ended.
// The socket is not visible before it has its mode.
func makeUnix(config *config.Unix) (net.Listener, error) {
	if runtime.GOOS != "linux" {
		return nil, errors.New("peer credentials on Unix sockets are supported on Linux only: remove this listener")
	}
	if err := mayReplace(config.Path); err != nil {
		return nil, err
	}
	hidden := config.Path + ".new" // in the same directory, so that it can be renamed
	if err := os.Remove(hidden); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var network net.ListenConfig
	opened, err := network.Listen(context.Background(), "unix", hidden)
	if err != nil {
		return nil, fmt.Errorf("%w; does its directory exist, and may the broker write to it?", err)
	}
	if unix, ok := opened.(*net.UnixListener); ok {
		unix.SetUnlinkOnClose(false) // it is renamed below
	}
	mode, _ := config.FileMode() // the configuration was checked
	err = os.Chmod(hidden, mode)
	if err == nil {
		err = os.Rename(hidden, config.Path)
	}
	socket, errLook := os.Lstat(config.Path)
	if err := errors.Join(err, errLook); err != nil {
		return nil, errors.Join(err, opened.Close(), os.Remove(hidden))
	}
	return &unixListener{opened, config.Path, socket}, nil
}

// mayReplace returns an error unless path is absent or a socket without a server.
func mayReplace(path string) error {
	there, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case there.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s exists and is not a socket: remove it, or choose another path", path)
	}
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(context.Background(), "unix", path)
	switch {
	case err == nil:
		_ = conn.Close()
		return fmt.Errorf("another process serves at %s: stop it, or choose another path", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil
	default:
		return fmt.Errorf("%s exists, and whether another process serves there is unknown: %w", path, err)
	}
}

// unixListener removes its socket on Close, unless another socket has replaced it.
type unixListener struct {
	net.Listener

	path   string
	socket os.FileInfo
}

func (l *unixListener) Close() error {
	if there, err := os.Lstat(l.path); err == nil && os.SameFile(there, l.socket) {
		_ = os.Remove(l.path)
	}
	return l.Listener.Close()
}
