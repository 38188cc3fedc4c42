package caller

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/cezzis/tokenbroker/internal/certs"
)

// HTTP identifies the callers of an HTTP server and enforces their limits by the rules
// of gRPC: the same identification, the same limits and the same count of connections.
// It is safe for concurrent use.
type HTTP struct {
	admission *Admission
	bound     Bound
}

// HTTP returns an HTTP for listeners with these settings.
func (a *Admission) HTTP(bound Bound) *HTTP { return &HTTP{a, bound} }

// Listen wraps listener so that it closes connections beyond the limit.
func (h *HTTP) Listen(listener net.Listener) net.Listener { return &httpListener{listener, h} }

type httpListener struct {
	net.Listener

	http *HTTP
}

// Accept implements net.Listener.
func (l *httpListener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		conn, err := l.http.admit(raw)
		if err == nil {
			return conn, nil
		}
		l.http.admission.handshakes.count(raw, err)
		_ = raw.Close()
	}
}

// httpConn is a connection that Listen admitted.
type httpConn struct {
	countedConn

	client httpClient
}

// httpClient is the identity of a connection, which its handshake completes.
type httpClient struct {
	*connection

	handshake   sync.Once
	authorities *certs.Authorities // at the time of connecting; a certificate verified by later ones is verified again
	due         time.Time          // when the client must reconnect
}

func (h *HTTP) admit(raw net.Conn) (*httpConn, error) {
	client, err := h.admission.newConnection(raw, &h.bound)
	if err != nil {
		return nil, err
	}
	if err := h.admission.connections.enter(); err != nil {
		return nil, err
	}
	conn := &httpConn{countedConn: countedConn{Conn: raw, limit: &h.admission.connections}}
	conn.client.connection, conn.client.authorities, conn.client.due = client, h.admission.authorities(), time.Now().Add(about(h.admission.limits.ConnectionAge))
	client.close = conn.Close
	if client.bound != "" || client.identity.UID != nil { // else the handshake may bring a certificate
		h.admission.connected(client)
	}
	return conn, nil
}

// about returns age, randomized by a tenth either way, so that clients do not all
// reconnect at once.
func about(age time.Duration) time.Duration {
	return age - age/10 + rand.N(age/5+1)
}

type httpClientKey struct{}

// httpConnOf returns the httpConn of a connection, also below TLS, or nil if Listen did
// not make it.
func httpConnOf(conn net.Conn) *httpConn {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	admitted, _ := conn.(*httpConn)
	return admitted
}

// Connected returns ctx with the identity of a new connection, which its handshake
// completes, and with its peer address as in gRPC. It is meant for ConnContext of
// net/http.
func (h *HTTP) Connected(ctx context.Context, conn net.Conn) context.Context {
	ctx = peer.NewContext(ctx, &peer.Peer{Addr: conn.RemoteAddr()})
	if admitted := httpConnOf(conn); admitted != nil {
		ctx = context.WithValue(ctx, httpClientKey{}, &admitted.client)
	}
	return ctx
}

// Closed must be called for each connection that ended. It counts failed handshakes
// together with gRPC handshakes.
func (h *HTTP) Closed(conn net.Conn) {
	secure, ok := conn.(*tls.Conn)
	if !ok || secure.ConnectionState().HandshakeComplete {
		return
	}
	// This does not repeat the handshake: it returns the error of the first one.
	h.admission.handshakes.count(conn, secure.HandshakeContext(context.Background()))
}

// Overdue reports whether the connection of ctx has reached its age limit, so that its
// client must reconnect.
func (h *HTTP) Overdue(ctx context.Context, now time.Time) bool {
	client, ok := ctx.Value(httpClientKey{}).(*httpClient)
	return ok && now.After(client.due)
}

// OpaqueIssuer returns the issuer that the listener of a request configures for opaque
// tokens; it may be empty.
func (h *HTTP) OpaqueIssuer(ctx context.Context) string {
	if client, ok := ctx.Value(httpClientKey{}).(*httpClient); ok {
		return client.opaque
	}
	return ""
}

// Begin reserves room to read a request before its caller can be identified. On success
// end must be called after the request was read. The error is always a *apierror.Error.
func (h *HTTP) Begin(ctx context.Context, state *tls.ConnectionState) (end func(), err error) {
	client := h.connectionOf(ctx, state)
	reading, end := context.WithCancel(ctx)
	if !client.beginCall(reading) {
		end()
		return nil, client.unidentified.tooMany()
	}
	return end, nil
}

// Gateway admits the call of a gateway, which is identified by its connection alone: by
// the verified client certificate in state, or by the caller bound to the listener. The
// ctx comes from Connected; action names the call in the audit log. On success Leave
// must be called when the call is over. The error is always a *apierror.Error.
func (h *HTTP) Gateway(ctx context.Context, state *tls.ConnectionState, action string, now time.Time) (Call, error) {
	return h.admission.enter(ctx, action, proof{conn: h.connectionOf(ctx, state), gateway: true}, now)
}

// Caller is like Gateway, but also accepts a JWT in authorization, the values of that
// header.
func (h *HTTP) Caller(ctx context.Context, state *tls.ConnectionState, authorization []string, action string, now time.Time) (Call, error) {
	return h.admission.enter(ctx, action, proof{conn: h.connectionOf(ctx, state), authorization: authorization}, now)
}

// connectionOf returns the connection of a request, or a connection without an identity
// if there is no such connection.
func (h *HTTP) connectionOf(ctx context.Context, state *tls.ConnectionState) *connection {
	client, ok := ctx.Value(httpClientKey{}).(*httpClient)
	if !ok {
		return &connection{}
	}
	client.handshake.Do(func() {
		if state != nil && len(state.PeerCertificates) > 0 && len(state.VerifiedChains) > 0 {
			client.present(state.PeerCertificates, client.authorities.Until(state.VerifiedChains), client.authorities)
			h.admission.connected(client.connection)
		}
	})
	return client.connection
}
