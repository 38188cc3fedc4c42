package caller

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/cezzis/tokenbroker/internal/certs"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// connection is the identity that a client proved when it connected. gRPC stores it as
// the AuthInfo of the connection and passes it to each call. All fields but the atomics
// are constant after the handshake.
type connection struct {
	credentials.CommonAuthInfo

	// bound is the caller of connections that prove no other identity; it may be empty.
	bound string
	// opaque is the issuer of opaque tokens that come over the connection without an
	// issuer name; it may be empty.
	opaque string
	// identity is the identity that the client proved; it may be zero.
	identity policy.Identity
	// presented is the client's certificate chain; it is empty without a certificate.
	presented []*x509.Certificate
	// trusted are the authorities that verified the certificate; until is when it
	// expires.
	trusted *certs.Authorities
	until   time.Time

	close   func() error
	closing atomic.Bool

	// matched is the latest match. It is valid while the policy and the authorities stay
	// the same.
	matched     atomic.Pointer[match]
	watches     atomic.Int64
	invalidJWTs PerSecond

	// identified is set once a call over the connection identified its caller. Before,
	// unidentified bounds the calls; nil: they are not bounded.
	identified   atomic.Bool
	unidentified *unidentifiedLimit
}

// AuthType implements credentials.AuthInfo.
func (*connection) AuthType() string { return "tokenbroker" }

// connectionOf returns the connection of a call, or a connection without an identity if
// there is no such connection.
func connectionOf(ctx context.Context) *connection {
	if from, ok := peer.FromContext(ctx); ok {
		if conn, ok := from.AuthInfo.(*connection); ok {
			return conn
		}
	}
	return &connection{}
}

// OpaqueIssuer returns the issuer that the listener of a gRPC call configures for opaque
// tokens; it may be empty.
func OpaqueIssuer(ctx context.Context) string { return connectionOf(ctx).opaque }

// newConnection returns the identity of a connection that a listener with these
// settings accepted, before its TLS handshake.
func (a *Admission) newConnection(raw net.Conn, bound *Bound) (*connection, error) {
	c := &connection{bound: bound.TCP, opaque: bound.OpaqueTCP, unidentified: a.unidentified}
	if unix, ok := raw.(*net.UnixConn); ok {
		user, err := userOf(unix)
		if err != nil {
			return nil, err
		}
		c.identity.UID, c.bound, c.opaque = &user, bound.Unix, bound.OpaqueUnix
	}
	return c, nil
}

// markIdentified records that a caller was identified: the calls of the connection no longer
// count as unidentified.
func (c *connection) markIdentified() {
	if !c.identified.Load() {
		c.identified.Store(true)
	}
}

// connected exempts the connection from the limit on unidentified calls if it alone
// identifies a caller. Its handshake must be complete.
func (a *Admission) connected(c *connection) {
	if c.bound != "" || a.match(c, a.broker.Policy(), time.Now()).caller != nil {
		c.markIdentified()
	}
}

// present records a verified certificate.
func (c *connection) present(chain []*x509.Certificate, until time.Time, trusted *certs.Authorities) {
	c.presented, c.until, c.trusted, c.identity = chain, until, trusted, identityIn(chain[0])
	if trusted.OfTrustDomains() {
		c.identity.DNSNames = nil // any trust domain could put any name there
	}
}

func identityIn(leaf *x509.Certificate) policy.Identity {
	return policy.Identity{DNSNames: leaf.DNSNames, URIs: urisIn(leaf)}
}

// urisIn returns the URIs of a certificate exactly as encoded. A parsed URI loses an
// empty fragment and the case of its scheme, which a byte-by-byte comparison needs.
func urisIn(leaf *x509.Certificate) (uris []string) {
	const tagURI = 6 // RFC 5280 section 4.2.1.6
	subjectAltName := asn1.ObjectIdentifier{2, 5, 29, 17}
	for _, extension := range leaf.Extensions {
		var names []asn1.RawValue
		if !extension.Id.Equal(subjectAltName) {
			continue
		}
		if _, err := asn1.Unmarshal(extension.Value, &names); err != nil {
			return nil
		}
		for _, name := range names {
			if name.Class == asn1.ClassContextSpecific && name.Tag == tagURI {
				uris = append(uris, string(name.Bytes))
			}
		}
	}
	return uris
}

// isAuthority reports whether a certificate may sign others. Such a certificate is not
// a leaf (X.509-SVID section 4) and does not identify a caller, although the holder of
// its key could issue a certificate that does.
func isAuthority(leaf *x509.Certificate) bool {
	return leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0
}

// Bounds of the description of the names in a certificate.
const (
	maxNamesSaid = 4
	maxNameSaid  = 256
)

// namesIn returns a human-readable description of an identity.
func namesIn(id policy.Identity) string {
	if id.UID != nil {
		return fmt.Sprintf("user %d of this host", *id.UID)
	}
	var names []string
	for kind, all := range [][]string{id.URIs, id.DNSNames} {
		for _, name := range all {
			names = append(names, fmt.Sprintf("%s %.*q", [...]string{"URI", "DNS name"}[kind], maxNameSaid, name))
		}
	}
	switch {
	case len(names) == 0:
		return "the client certificate, which has neither a URI nor a DNS name,"
	case len(names) > maxNamesSaid:
		names = append(names[:maxNamesSaid], fmt.Sprintf("%d more", len(names)-maxNamesSaid))
	}
	return "the client certificate (" + strings.Join(names, ", ") + ")"
}

// match is the result of looking for the caller of a connection in a policy. It is
// immutable.
type match struct {
	policy      *policy.Policy
	authorities *certs.Authorities
	// caller is nil if no configured caller matches.
	caller *policy.Caller
	// until is when the certificate expires; it is zero without a certificate.
	until time.Time
	// mismatch is the reason for a nil caller.
	mismatch mismatch
}

// mismatch is the reason why a connection alone identifies no caller.
type mismatch int

const (
	provedNothing mismatch = iota
	notConfigured          // no configured caller has the proved identity
	notTrusted             // the issuer of its certificate is no longer trusted
	ofAuthority            // its certificate belongs to an authority
	ended                  // its certificate has expired
)

// lapsed reports whether the certificate was valid when the client connected but no
// longer is: the client must connect again.
func (m *match) lapsed() bool { return m.mismatch == ended || m.mismatch == notTrusted }

// match looks for the caller by the identity from the handshake. It costs almost
// nothing while neither the callers nor the authorities change.
func (a *Admission) match(c *connection, callers *policy.Policy, now time.Time) *match {
	authorities, matched := a.authorities(), c.matched.Load()
	if matched == nil || matched.policy != callers || matched.authorities != authorities {
		matched = c.match(callers, authorities, now)
		c.matched.Store(matched)
	}
	if !matched.until.IsZero() && !now.Before(matched.until) {
		return &match{policy: callers, until: matched.until, mismatch: ended}
	}
	return matched
}

func (c *connection) match(callers *policy.Policy, authorities *certs.Authorities, now time.Time) *match {
	m := &match{policy: callers, authorities: authorities, until: c.until}
	if len(c.presented) > 0 && authorities != c.trusted {
		var err error
		if m.until, err = authorities.Verify(c.presented, now); err != nil {
			m.until, m.mismatch = time.Time{}, notTrusted
			return m
		}
	}
	if len(c.presented) == 0 && c.identity.UID == nil {
		return m
	}
	if len(c.presented) > 0 && isAuthority(c.presented[0]) {
		m.mismatch = ofAuthority
		return m
	}
	if m.caller = callers.Caller(c.identity); m.caller == nil {
		m.mismatch = notConfigured
	}
	return m
}

// holder returns the client certificate, for tokens that are bound to it. It returns
// nil without a certificate, or if it is not valid now.
func (c *connection) holder(matched *match) *x509.Certificate {
	if len(c.presented) == 0 || matched.mismatch != notConfigured {
		return nil
	}
	return c.presented[0]
}

// hangUp closes a connection that no longer identifies its caller, so that the client
// connects again. It first leaves time for pending responses.
func (c *connection) hangUp() {
	if c.close != nil && !c.closing.Swap(true) {
		time.AfterFunc(hangUpDelay, func() { _ = c.close() })
	}
}
