package server

import (
	"context"
	"crypto/tls"
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
	bound     string
}

// Door returns the door of another listener. Bound is the caller that everybody is
// who connects there and proves nothing else; empty: nobody.
func (s *Server) Door(bound string) *Door {
	return &Door{callers: s.callers, limits: s.limits, transport: s.transport, bound: bound}
}

// Listen returns listener without the connections that are too many.
func (d *Door) Listen(listener net.Listener) net.Listener {
	return &doorListener{listener, d.transport}
}

type doorListener struct {
	net.Listener

	transport *transport
}

// Accept implements net.Listener.
func (l *doorListener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.transport.open.Add(1) <= l.transport.most {
			return &countedConn{Conn: raw, open: &l.transport.open}, nil
		}
		l.transport.open.Add(-1)
		l.transport.failures.count(raw, errTooManyConnections)
		_ = raw.Close()
	}
}

// visitor is a connection through a door.
type visitor struct {
	connection

	handshake sync.Once
	trusted   *certs.Authorities // when it came: who verifies its certificate, or they were replaced meanwhile
}

type visitorKey struct{}

// Connected returns ctx with what there will be to know of a connection that was
// just accepted, and with where it is from, as gRPC has it: it is meant for ConnContext of net/http.
func (d *Door) Connected(ctx context.Context, conn net.Conn) context.Context {
	made := &visitor{trusted: d.callers.authorities()}
	made.bound, made.stranger, made.close = d.bound, &stranger{}, conn.Close
	return context.WithValue(peer.NewContext(ctx, &peer.Peer{Addr: conn.RemoteAddr()}), visitorKey{}, made)
}

// Gateway lets in the call of a gateway, which is known by its connection alone:
// by the client certificate in state, which was verified, or because the listener
// is bound to a caller. The ctx is one of Connected; action is what the audit calls
// the call. Without an error leave must be
// called when the call is over. The error is always a *broker.Error.
func (d *Door) Gateway(ctx context.Context, state *tls.ConnectionState, action string, now time.Time) (caller *policy.Caller, leave func(), err error) {
	caller, err = d.callers.gateway(ctx, connectedAt(ctx, state), action, now)
	return d.enter(ctx, action, caller, err, now)
}

// Caller is like Gateway, for callers who may also prove themselves by a JWT in
// authorization, which are the values of that header.
func (d *Door) Caller(ctx context.Context, state *tls.ConnectionState, authorization []string, action string, now time.Time) (caller *policy.Caller, leave func(), err error) {
	caller, _, err = d.callers.known(ctx, connectedAt(ctx, state), authorization, action, now)
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
func connectedAt(ctx context.Context, state *tls.ConnectionState) *connection {
	from, ok := ctx.Value(visitorKey{}).(*visitor)
	if !ok {
		return &connection{stranger: &stranger{}}
	}
	from.handshake.Do(func() {
		if state != nil && len(state.PeerCertificates) > 0 && len(state.VerifiedChains) > 0 {
			from.present(state.PeerCertificates, certs.Until(state.VerifiedChains), from.trusted)
		}
	})
	return &from.connection
}
