package client

import (
	"net"
	"strings"

	"google.golang.org/grpc/resolver"
)

const (
	unixScheme = "unix:"
	listScheme = "tokenbroker-list"
)

func isUnixSocket(target string) bool {
	return strings.HasPrefix(target, unixScheme) || strings.HasPrefix(target, "unix-abstract:")
}

// addressList returns the addresses of a list, or the target itself if it is
// not a list.
func addressList(target string) []string {
	if isUnixSocket(target) {
		return []string{target}
	}
	var found []string
	for address := range strings.SplitSeq(target, ",") {
		if address = strings.TrimSpace(address); address != "" {
			found = append(found, address)
		}
	}
	return found
}

// staysOnHost reports whether traffic to target stays on this host.
func staysOnHost(target string) bool {
	if isUnixSocket(target) {
		return true
	}
	addresses := addressList(target)
	for _, address := range addresses {
		if !onLoopback(address) {
			return false
		}
	}
	return len(addresses) > 0
}

func onLoopback(address string) bool {
	for _, scheme := range []string{"dns:///", "passthrough:///"} {
		address = strings.TrimPrefix(address, scheme)
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// listResolver resolves to a fixed list of addresses.
type listResolver []string

// Build implements resolver.Builder.
func (l listResolver) Build(_ resolver.Target, conn resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	var state resolver.State
	for _, address := range l {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: address, ServerName: host}}})
	}
	return unchanging{}, conn.UpdateState(state)
}

// Scheme implements resolver.Builder.
func (listResolver) Scheme() string { return listScheme }

// unchanging is a resolver with a final result.
type unchanging struct{}

// ResolveNow implements resolver.Resolver.
func (unchanging) ResolveNow(resolver.ResolveNowOptions) {}

// Close implements resolver.Resolver.
func (unchanging) Close() {}
