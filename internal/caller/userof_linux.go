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
	var credentials *syscall.Ucred
	var errOption error
	err = raw.Control(func(fd uintptr) {
		credentials, errOption = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err := errors.Join(err, errOption); err != nil {
		return 0, fmt.Errorf("reading the peer credentials of the Unix socket: %w", err)
	}
	return credentials.Uid, nil
}
