// Package address compares the addresses of listeners.
package address

import (
	"net"
	"net/netip"
	"strings"
)

// hostOf returns the normalized host of HOST:PORT; for every interface it returns "".
func hostOf(address string) string {
	host, _, _ := net.SplitHostPort(address)
	if strings.EqualFold(host, "localhost") {
		return "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return strings.ToLower(host)
	case ip.Unmap().IsUnspecified():
		return ""
	default:
		return ip.Unmap().String()
	}
}

// OnLoopback reports whether a HOST:PORT is a loopback address.
func OnLoopback(address string) bool {
	ip, err := netip.ParseAddr(hostOf(address))
	return err == nil && ip.IsLoopback()
}

// Collide reports whether two addresses cannot both be listened on.
func Collide(a, b string) bool {
	_, portA, errA := net.SplitHostPort(a)
	_, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	hostA, hostB := hostOf(a), hostOf(b)
	return hostA == hostB || hostA == "" || hostB == ""
}
