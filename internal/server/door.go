package server

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/cezzis/tokenbroker/internal/certs"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// Door admits callers of other protocols by the rules of gRPC: the same identification,
// the same limits and the same count of connections. It is safe for concurrent use.
type Door struct {
	callers   *callers
	limits    *limits
	transport *transport
	bound     Bound
	age       time.Duration
}

// Bound holds the settings of listeners for their requests.
type Bound struct {
	// TCP and Unix are the callers of connections over TCP, or to a Unix socket, that
	// prove no other identity. They may be empty.
	TCP, Unix string
	// OpaqueTCP and OpaqueUnix are the issuers of opaque tokens: see
	// [Config.OpaqueIssuer].
	OpaqueTCP, OpaqueUnix string
}

// Listen wraps listener so that it closes connections beyond the limit.
func (d *Door) Listen(listener net.Listener) net.Listener { return &doorListener{listener, d} }

type doorListener struct {
	net.Listener

	door *Door
}

// Accept implements net.Listener.
func (l *doorListener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		admitted, err := l.door.admit(raw)
		if err == nil {
			return admitted, nil
		}
		l.door.transport.failures.count(raw, err)
		_ = raw.Close()
	}
}

// doorConn is a connection that a Door admitted.
type doorConn struct {
	countedConn

	visitor
}

func (d *Door) admit(raw net.Conn) (*doorConn, error) {
	made := &doorConn{countedConn: countedConn{Conn: raw, open: &d.transport.open}}
	made.trusted, made.due = d.callers.authorities(), time.Now().Add(about(d.age))
	made.bound, made.opaque, made.stranger = d.bound.TCP, d.bound.OpaqueTCP, d.callers.strangers.newcomer()
	made.connection.close = made.countedConn.Close
	if raw, ok := raw.(*net.UnixConn); ok {
		user, err := userOf(raw)
		if err != nil {
			return nil, err
		}
		made.identity.UID, made.bound, made.opaque = &user, d.bound.Unix, d.bound.OpaqueUnix
	}
	if d.transport.open.Add(1) > d.transport.most {
		d.transport.open.Add(-1)
		return nil, errTooManyConnections
	}
	if made.bound != "" || made.identity.UID != nil { // else the handshake may bring a certificate
		d.look(&made.connection)
	}
	return made, nil
}

// look exempts the connection from the limit on unidentified calls if it identifies a
// caller. Its handshake must be complete.
func (d *Door) look(conn *connection) {
	if conn.bound != "" || d.callers.proved(conn, time.Now()).caller != nil {
		conn.stranger.isKnown()
	}
}

// about returns age, randomized by a tenth either way, so that clients do not all
// reconnect at once.
func about(age time.Duration) time.Duration {
	return age - age/10 + rand.N(age/5+1)
}

// visitor is the identity of a connection, as far as it is proved.
type visitor struct {
	connection

	handshake sync.Once
	trusted   *certs.Authorities // at the time of connecting; a certificate verified by later ones is verified again
	due       time.Time          // when the client must reconnect
}

type visitorKey struct{}

// doorConnOf returns the doorConn of a connection, also below TLS, or nil if Listen did
// not make it.
func doorConnOf(conn net.Conn) *doorConn {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	found, _ := conn.(*doorConn)
	return found
}

// Connected returns ctx with the identity of a new connection, which its handshake
// completes, and with its peer address as in gRPC. It is meant for ConnContext of
// net/http.
func (d *Door) Connected(ctx context.Context, conn net.Conn) context.Context {
	ctx = peer.NewContext(ctx, &peer.Peer{Addr: conn.RemoteAddr()})
	if found := doorConnOf(conn); found != nil {
		ctx = context.WithValue(ctx, visitorKey{}, &found.visitor)
	}
	return ctx
}

// Closed must be called for each connection that ended. It counts failed handshakes
// together with gRPC handshakes.
func (d *Door) Closed(conn net.Conn) {
	secure, ok := conn.(*tls.Conn)
	if !ok || secure.ConnectionState().HandshakeComplete {
		return
	}
	// This does not repeat the handshake: it returns the error of the first one.
	d.transport.failures.count(conn, secure.HandshakeContext(context.Background()))
}

// Overdue reports whether the connection of ctx has reached its age limit, so that its
// client must reconnect.
func (d *Door) Overdue(ctx context.Context, now time.Time) bool {
	from, ok := ctx.Value(visitorKey{}).(*visitor)
	return ok && now.After(from.due)
}

// OpaqueIssuer returns the issuer that the listener of a request configures for opaque
// tokens; it may be empty.
func (d *Door) OpaqueIssuer(ctx context.Context) string {
	if from, ok := ctx.Value(visitorKey{}).(*visitor); ok {
		return from.opaque
	}
	return ""
}

// Admit reserves room to read a request before its caller can be identified. On success
// leave must be called after the request was read. The error is always a
// *apierror.Error.
func (d *Door) Admit(ctx context.Context, state *tls.ConnectionState) (leave func(), err error) {
	from := d.connectedAt(ctx, state).stranger
	reading, read := context.WithCancel(ctx)
	if !from.enter(reading) {
		read()
		return nil, from.all.tooMany()
	}
	return read, nil
}

// Gateway admits the call of a gateway, which is identified by its connection alone: by
// the verified client certificate in state, or by the caller bound to the listener. The
// ctx comes from Connected; action names the call in the audit log. On success leave
// must be called when the call is over. The error is always a *apierror.Error.
func (d *Door) Gateway(ctx context.Context, state *tls.ConnectionState, action string, now time.Time) (caller *policy.Caller, leave func(), err error) {
	caller, err = d.callers.gateway(ctx, d.connectedAt(ctx, state), action, now)
	return d.enter(ctx, action, caller, err, now)
}

// Caller is like Gateway, but also accepts a JWT in authorization, the values of that
// header.
func (d *Door) Caller(ctx context.Context, state *tls.ConnectionState, authorization []string, action string, now time.Time) (caller *policy.Caller, leave func(), err error) {
	caller, _, err = d.callers.known(ctx, d.connectedAt(ctx, state), authorization, action, now)
	return d.enter(ctx, action, caller, err, now)
}

func (d *Door) enter(ctx context.Context, action string, caller *policy.Caller, unknown error, now time.Time) (*policy.Caller, func(), error) {
	if unknown != nil {
		return nil, nil, unknown
	}
	under, refused := d.limits.enter(caller, now)
	if refused != nil {
		turnedAway(ctx, d.callers.audit, action, caller, refused)
		return nil, nil, refused
	}
	return caller, under.leave, nil
}

// connectedAt returns the connection of a request, or a connection without an identity
// if there is no such connection.
func (d *Door) connectedAt(ctx context.Context, state *tls.ConnectionState) *connection {
	from, ok := ctx.Value(visitorKey{}).(*visitor)
	if !ok {
		return &connection{stranger: &stranger{}}
	}
	from.handshake.Do(func() {
		if state != nil && len(state.PeerCertificates) > 0 && len(state.VerifiedChains) > 0 {
			from.present(state.PeerCertificates, from.trusted.Until(state.VerifiedChains), from.trusted)
			d.look(&from.connection)
		}
	})
	return &from.connection
}
