package caller

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// userOf returns the user ID of the process at the other end of a Unix socket at the
// time when it connected (SO_PEERCRED of unix(7)).
func userOf(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var found *syscall.Ucred
	var errAsked error
	err = raw.Control(func(fd uintptr) {
		found, errAsked = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err := errors.Join(err, errAsked); err != nil {
		return 0, fmt.Errorf("reading the peer credentials of the Unix socket: %w", err)
	}
	return found.Uid, nil
}
