//go:build !linux

package caller

import (
	"errors"
	"net"
)

func userOf(*net.UnixConn) (uint32, error) {
	return 0, errors.New("peer credentials on Unix sockets are supported on Linux only")
}
