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

// Door lets in who speaks another protocol than gRPC, by the rules by which gRPC's
// callers are let in: recognised by the same proofs, held to the same limits,
// counted among the same connections. It is safe for concurrent use.
type Door struct {
	callers   *callers
	limits    *limits
	transport *transport
	bound     Bound
	age       time.Duration
}

// Bound is what listeners say of the requests that come to them.
type Bound struct {
	// TCP and Unix are the callers that everybody is who connects over TCP, or to a
	// Unix socket, and proves nothing else. Empty: nobody.
	TCP, Unix string
	// OpaqueTCP and OpaqueUnix are the issuers of opaque tokens: see
	// [Config.OpaqueIssuer].
	OpaqueTCP, OpaqueUnix string
}

// Listen returns listener without the connections that are too many.
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

// doorConn is a connection through a door.
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
	if made.bound != "" || made.identity.UID != nil { // else a certificate may come yet
		d.look(&made.connection)
	}
	return made, nil
}

// look notes whether somebody is known by the connection alone, which has proved all
// that it will.
func (d *Door) look(conn *connection) {
	if conn.bound != "" || d.callers.proved(conn, time.Now()).caller != nil {
		conn.stranger.isKnown()
	}
}

// about is age, give or take a tenth, so that not all come anew at once.
func about(age time.Duration) time.Duration {
	return age - age/10 + rand.N(age/5+1)
}

// visitor is who made a connection, as far as that is known.
type visitor struct {
	connection

	handshake sync.Once
	trusted   *certs.Authorities // when it came: who verifies its certificate, or they were replaced meanwhile
	due       time.Time          // to connect anew
}

type visitorKey struct{}

// doorConnOf is the connection of a listener of Listen, or of one that speaks TLS over
// it; nil: it is another.
func doorConnOf(conn net.Conn) *doorConn {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	found, _ := conn.(*doorConn)
	return found
}

// Connected returns ctx with what there will be to know of a connection that was
// just accepted, and with where it is from, as gRPC has it: it is meant for
// ConnContext of net/http.
func (d *Door) Connected(ctx context.Context, conn net.Conn) context.Context {
	ctx = peer.NewContext(ctx, &peer.Peer{Addr: conn.RemoteAddr()})
	if found := doorConnOf(conn); found != nil {
		ctx = context.WithValue(ctx, visitorKey{}, &found.visitor)
	}
	return ctx
}

// Closed is told of each connection that ended. Those whose handshake failed are
// counted with gRPC's.
func (d *Door) Closed(conn net.Conn) {
	secure, ok := conn.(*tls.Conn)
	if !ok || secure.ConnectionState().HandshakeComplete {
		return
	}
	// It is tried no second time: what the first one failed with comes back.
	d.transport.failures.count(conn, secure.HandshakeContext(context.Background()))
}

// Overdue reports whether the connection that ctx is of is so old that its client is
// to connect anew.
func (d *Door) Overdue(ctx context.Context, now time.Time) bool {
	from, ok := ctx.Value(visitorKey{}).(*visitor)
	return ok && now.After(from.due)
}

// OpaqueIssuer returns the issuer that the listener of a request names for opaque
// tokens; empty: none.
func (d *Door) OpaqueIssuer(ctx context.Context) string {
	if from, ok := ctx.Value(visitorKey{}).(*visitor); ok {
		return from.opaque
	}
	return ""
}

// Admit makes room for a request that is to be read before it can be known who makes
// it. Without an error leave must be called when it was read. The error is always a
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

// Gateway lets in the call of a gateway, which is known by its connection alone:
// by the client certificate in state, which was verified, or because the listener
// is bound to a caller. The ctx is one of Connected; action is what the audit calls
// the call. Without an error leave must be called when the call is over. The error is
// always a *apierror.Error.
func (d *Door) Gateway(ctx context.Context, state *tls.ConnectionState, action string, now time.Time) (caller *policy.Caller, leave func(), err error) {
	caller, err = d.callers.gateway(ctx, d.connectedAt(ctx, state), action, now)
	return d.enter(ctx, action, caller, err, now)
}

// Caller is like Gateway, for callers who may also prove themselves by a JWT in
// authorization, which are the values of that header.
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

// connectedAt is the connection of a request; one that proved nothing where there
// is none.
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
