package server

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/cezzis/tokenbroker/internal/certs"
)

// transport performs the handshake of accepted connections, which authenticates the
// client once: by the process credentials of a Unix socket, or by TLS, if configured,
// on TCP.
type transport struct {
	tls     credentials.TransportCredentials // nil: plaintext
	source  *certs.Source                    // of tls
	callers *callers
	// bound and boundUnix are the callers of connections over TCP, or to the Unix
	// socket, that prove no other identity; they may be empty.
	bound, boundUnix string
	// opaque and opaqueUnix are the issuers of opaque tokens there.
	opaque, opaqueUnix string
	failures           *handshakes

	allowed allowance    // of connections on which no caller was identified
	open    atomic.Int64 // connections, and handshakes under way
	most    int64
}

var errTooManyConnections = errors.New("there are too many connections")

// ServerHandshake implements credentials.TransportCredentials.
func (t *transport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, made, err := t.admit(raw)
	if err != nil {
		t.failures.count(raw, err)
		return nil, nil, err
	}
	return conn, made, nil
}

func (t *transport) admit(raw net.Conn) (net.Conn, *connection, error) {
	if t.open.Add(1) > t.most {
		t.open.Add(-1)
		return nil, nil, errTooManyConnections
	}
	conn, made, err := t.handshake(raw)
	if err != nil {
		t.open.Add(-1)
		return nil, nil, err
	}
	counted := &http2Conn{
		countedConn: countedConn{Conn: conn, open: &t.open}, stranger: made.stranger, allowed: t.allowed,
		exceeded: func() { t.failures.cutOff(conn, made) },
	}
	made.close = counted.Close
	if made.bound != "" || t.callers.proved(made, time.Now()).caller != nil {
		made.stranger.isKnown()
	}
	return counted, made, nil
}

func (t *transport) handshake(raw net.Conn) (net.Conn, *connection, error) {
	made := &connection{stranger: t.callers.strangers.newcomer()}
	switch raw := raw.(type) {
	case *net.UnixConn:
		user, err := userOf(raw)
		if err != nil {
			return nil, nil, err
		}
		made.identity.UID, made.bound, made.opaque = &user, t.boundUnix, t.opaqueUnix
		made.SecurityLevel = credentials.PrivacyAndIntegrity // it does not leave the host
		return raw, made, nil
	default:
		made.bound, made.opaque = t.bound, t.opaque
	}
	if t.tls == nil {
		made.SecurityLevel = credentials.NoSecurity
		return raw, made, nil
	}
	// The authorities may be replaced during the handshake. A certificate that newer
	// ones verified is verified again.
	trusted := t.source.Authorities()
	conn, info, err := t.tls.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	made.SecurityLevel = credentials.PrivacyAndIntegrity
	if state := info.(credentials.TLSInfo).State; len(state.PeerCertificates) > 0 { //nolint:forcetypeassert // it is what TLS returns
		made.present(state.PeerCertificates, trusted.Until(state.VerifiedChains), trusted)
	}
	return conn, made, nil
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

// countedConn counts as open until it is closed.
type countedConn struct {
	net.Conn

	open   *atomic.Int64
	closed atomic.Bool
}

func (c *countedConn) Close() error {
	if !c.closed.Swap(true) {
		c.open.Add(-1)
	}
	return c.Conn.Close()
}
