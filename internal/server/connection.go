package server

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
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

	stranger *stranger
	// known is the latest recognition. It is valid while the policy and the authorities
	// stay the same.
	known    atomic.Pointer[recognition]
	watches  atomic.Int64
	refusals perSecond // of JWTs
}

// AuthType implements credentials.AuthInfo.
func (*connection) AuthType() string { return "tokenbroker" }

// connectionOf returns the connection of a call, or a connection without an identity if
// there is no such connection.
func connectionOf(ctx context.Context) *connection {
	if from, ok := peer.FromContext(ctx); ok {
		if made, ok := from.AuthInfo.(*connection); ok {
			return made
		}
	}
	return &connection{stranger: &stranger{}}
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
func urisIn(leaf *x509.Certificate) (found []string) {
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
				found = append(found, string(name.Bytes))
			}
		}
	}
	return found
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
		return "the client certificate, which names neither a URI nor a DNS name,"
	case len(names) > maxNamesSaid:
		names = append(names[:maxNamesSaid], fmt.Sprintf("%d more", len(names)-maxNamesSaid))
	}
	return "the client certificate (" + strings.Join(names, ", ") + ")"
}

// recognition is the result of checking a connection against a policy and authorities.
// It is immutable.
type recognition struct {
	policy  *policy.Policy
	trusted *certs.Authorities
	// caller is nil if no configured caller matches.
	caller *policy.Caller
	// until is when the certificate expires; it is zero without a certificate.
	until time.Time
	// why is the reason for a nil caller.
	why flaw
}

// flaw is the reason why a connection alone identifies no caller.
type flaw int

const (
	provedNothing flaw = iota
	notConfigured      // no configured caller has the proved identity
	notTrusted         // the issuer of its certificate is no longer trusted
	ofAuthority        // its certificate belongs to an authority
	ended              // its certificate has expired
)

// lapsed reports whether the certificate was valid when the client connected but no
// longer is: the client must connect again.
func (r *recognition) lapsed() bool { return r.why == ended || r.why == notTrusted }

// proved identifies the caller by the identity from the handshake. It costs almost
// nothing while neither policy nor authorities change.
func (c *callers) proved(conn *connection, now time.Time) *recognition {
	known, trusted := c.broker.Policy(), c.authorities()
	found := conn.known.Load()
	if found == nil || found.policy != known || found.trusted != trusted {
		found = conn.judge(known, trusted, now)
		conn.known.Store(found)
	}
	if !found.until.IsZero() && !now.Before(found.until) {
		return &recognition{until: found.until, why: ended}
	}
	return found
}

func (c *connection) judge(known *policy.Policy, trusted *certs.Authorities, now time.Time) *recognition {
	made := &recognition{policy: known, trusted: trusted, until: c.until}
	if len(c.presented) > 0 && trusted != c.trusted {
		var err error
		if made.until, err = trusted.Verify(c.presented, now); err != nil {
			made.until, made.why = time.Time{}, notTrusted
			return made
		}
	}
	if len(c.presented) == 0 && c.identity.UID == nil {
		return made
	}
	if len(c.presented) > 0 && isAuthority(c.presented[0]) {
		made.why = ofAuthority
		return made
	}
	if made.caller = known.Caller(c.identity); made.caller == nil {
		made.why = notConfigured
	}
	return made
}

// holder returns the client certificate, for tokens that are bound to it. It returns
// nil without a certificate, or if found says that it is not valid now.
func (c *connection) holder(found *recognition) *x509.Certificate {
	if len(c.presented) == 0 || found.why != notConfigured {
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
