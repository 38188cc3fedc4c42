package caller

import (
	"context"
	"errors"
	"net"
	"sync/atomic"

	"google.golang.org/grpc/credentials"
)

// Bound holds the settings of listeners for their connections.
type Bound struct {
	// TCP and Unix are the callers of connections over TCP, or to a Unix socket, that
	// prove no other identity. They may be empty.
	TCP, Unix string
	// OpaqueTCP and OpaqueUnix are the issuers that introspect opaque tokens which come
	// without an issuer name. Empty: the only issuer with introspection.
	OpaqueTCP, OpaqueUnix string
}

// transport performs the handshake of accepted connections of gRPC, which authenticates
// the client once: by the process credentials of a Unix socket, or by TLS, if
// configured, on TCP.
type transport struct {
	admission *Admission
	bound     Bound
	tls       credentials.TransportCredentials // nil: plaintext
}

var errTooManyConnections = errors.New("too many connections are open")

// Transport returns the credentials of gRPC servers, which identify and count
// connections.
func (a *Admission) Transport(bound Bound) credentials.TransportCredentials {
	t := &transport{admission: a, bound: bound}
	if a.tls != nil {
		t.tls = credentials.NewTLS(a.tls.TLS())
	}
	return t
}

// ServerHandshake implements credentials.TransportCredentials.
func (t *transport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, client, err := t.admit(raw)
	if err != nil {
		t.admission.handshakes.count(raw, err)
		return nil, nil, err
	}
	return conn, client, nil
}

func (t *transport) admit(raw net.Conn) (net.Conn, *connection, error) {
	connections := &t.admission.connections
	if err := connections.enter(); err != nil {
		return nil, nil, err
	}
	conn, client, err := t.handshake(raw)
	if err != nil {
		connections.leave()
		return nil, nil, err
	}
	counted := &http2Conn{
		countedConn: countedConn{Conn: conn, limit: connections}, client: client, allowed: unidentifiedAllowance(t.admission.limits.Streams),
		exceeded: func() { t.admission.handshakes.cutOff(conn, client) },
	}
	client.close = counted.Close
	t.admission.connected(client)
	return counted, client, nil
}

func (t *transport) handshake(raw net.Conn) (net.Conn, *connection, error) {
	client, err := t.admission.newConnection(raw, &t.bound)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case client.identity.UID != nil:
		client.SecurityLevel = credentials.PrivacyAndIntegrity // it does not leave the host
		return raw, client, nil
	case t.tls == nil:
		client.SecurityLevel = credentials.NoSecurity
		return raw, client, nil
	}
	// The authorities may be replaced during the handshake. A certificate that newer
	// ones verified is verified again.
	authorities := t.admission.authorities()
	conn, info, err := t.tls.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	client.SecurityLevel = credentials.PrivacyAndIntegrity
	if state := info.(credentials.TLSInfo).State; len(state.PeerCertificates) > 0 { //nolint:forcetypeassert // it is what TLS returns
		client.present(state.PeerCertificates, authorities.Until(state.VerifiedChains), authorities)
	}
	return conn, client, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (t *transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are credentials of a server")
}

// Info implements credentials.TransportCredentials.
func (t *transport) Info() credentials.ProtocolInfo {
	if t.tls == nil {
		return credentials.ProtocolInfo{SecurityProtocol: "insecure"}
	}
	return t.tls.Info()
}

// Clone implements credentials.TransportCredentials. Servers do not call it.
func (t *transport) Clone() credentials.TransportCredentials { return t }

// OverrideServerName implements credentials.TransportCredentials.
func (t *transport) OverrideServerName(string) error {
	return errors.New("these are credentials of a server")
}

// connectionLimit bounds the open connections, including connections whose handshake is in
// progress.
type connectionLimit struct {
	open atomic.Int64
	most int64
}

func (l *connectionLimit) enter() error {
	if l.open.Add(1) > l.most {
		l.leave()
		return errTooManyConnections
	}
	return nil
}

func (l *connectionLimit) leave() { l.open.Add(-1) }

// countedConn counts as open until it is closed.
type countedConn struct {
	net.Conn

	limit  *connectionLimit
	closed atomic.Bool
}

func (c *countedConn) Close() error {
	if !c.closed.Swap(true) {
		c.limit.leave()
	}
	return c.Conn.Close()
}
