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

// addressList returns the addresses in a comma-separated target.
func addressList(target string) []string {
	if isUnixSocket(target) {
		return []string{target}
	}
	var addresses []string
	for address := range strings.SplitSeq(target, ",") {
		if address = strings.TrimSpace(address); address != "" {
			addresses = append(addresses, address)
		}
	}
	return addresses
}

// isLocal reports whether traffic to target stays on this host.
func isLocal(target string) bool {
	if isUnixSocket(target) {
		return true
	}
	addresses := addressList(target)
	for _, address := range addresses {
		if !isLoopback(address) {
			return false
		}
	}
	return len(addresses) > 0
}

func isLoopback(address string) bool {
	for _, scheme := range []string{"dns:///", "passthrough:///"} {
		address = strings.TrimPrefix(address, scheme)
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// listBuilder builds a resolver with a fixed list of addresses.
type listBuilder []string

// Build implements resolver.Builder.
func (l listBuilder) Build(_ resolver.Target, conn resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	var state resolver.State
	for _, address := range l {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: address, ServerName: host}}})
	}
	return staticResolver{}, conn.UpdateState(state)
}

// Scheme implements resolver.Builder.
func (listBuilder) Scheme() string { return listScheme }

// staticResolver is a resolver whose result never changes.
type staticResolver struct{}

// ResolveNow implements resolver.Resolver.
func (staticResolver) ResolveNow(resolver.ResolveNowOptions) {}

// Close implements resolver.Resolver.
func (staticResolver) Close() {}
