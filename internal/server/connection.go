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

// connection is what a client proved when it connected. gRPC keeps it, as an
// AuthInfo, with the connection and shows it to each call. All but the atomics is
// as the handshake left it.
type connection struct {
	credentials.CommonAuthInfo

	// bound is the caller that everybody is who proves nothing else; empty: nobody.
	bound string
	// opaque is the issuer of the opaque tokens that come over the connection without
	// the name of their issuer; empty: the listener does not say.
	opaque string
	// identity is what the client proved; zero: nothing.
	identity policy.Identity
	// presented is its certificate with what it sent along; empty: none.
	presented []*x509.Certificate
	// trusted are the authorities by whom the certificate was good, until until.
	trusted *certs.Authorities
	until   time.Time

	close   func() error
	closing atomic.Bool

	stranger *stranger
	// known is how it was judged last: it holds while it is asked of the same policy
	// and the same authorities.
	known    atomic.Pointer[recognition]
	watches  atomic.Int64
	refusals perSecond // of JWTs
}

// AuthType implements credentials.AuthInfo.
func (*connection) AuthType() string { return "tokenbroker" }

// connectionOf is the connection of a call; one that proved nothing where there is
// none.
func connectionOf(ctx context.Context) *connection {
	if from, ok := peer.FromContext(ctx); ok {
		if made, ok := from.AuthInfo.(*connection); ok {
			return made
		}
	}
	return &connection{stranger: &stranger{}}
}

// present notes a certificate that was verified.
func (c *connection) present(chain []*x509.Certificate, until time.Time, trusted *certs.Authorities) {
	c.presented, c.until, c.trusted, c.identity = chain, until, trusted, identityIn(chain[0])
	if trusted.OfTrustDomains() {
		c.identity.DNSNames = nil // any trust domain could put any name there
	}
}

func identityIn(leaf *x509.Certificate) policy.Identity {
	return policy.Identity{DNSNames: leaf.DNSNames, URIs: urisIn(leaf)}
}

// urisIn are the URIs of a certificate as they are written there. A parsed URI has
// lost an empty fragment and the case of its scheme, which a name that is compared
// byte by byte must keep.
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

// isAuthority reports whether a certificate may sign others. Such a certificate is
// no leaf (X.509-SVID section 4): it does not identify a caller, although whoever
// holds its key could issue one that does.
func isAuthority(leaf *x509.Certificate) bool {
	return leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0
}

// Bounds of what is said of the names in a certificate.
const (
	maxNamesSaid = 4
	maxNameSaid  = 256
)

// namesIn is how an identity reads to people.
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

// recognition is how a connection is judged by a policy and by authorities. It is
// immutable.
type recognition struct {
	policy  *policy.Policy
	trusted *certs.Authorities
	// caller is nil if the connection is none's.
	caller *policy.Caller
	// until is when the certificate ends; zero: there is none.
	until time.Time
	// why says of a caller that is nil what is wrong.
	why flaw
}

// flaw is why a connection is no caller's by itself.
type flaw int

const (
	provedNothing flaw = iota
	notConfigured      // what it proved is none of the callers
	notTrusted         // its certificate is of nobody who is trusted any more
	ofAuthority        // its certificate is that of an authority
	ended              // its certificate has ended
)

// lapsed reports whether the certificate was good when the client connected and is
// not any more: only another connection can help.
func (r *recognition) lapsed() bool { return r.why == ended || r.why == notTrusted }

// proved judges a connection by what it proved at its handshake. It is as good as
// free while neither policy nor authorities change.
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

// holder is the certificate whose key the client holds, for tokens that are bound to
// it; nil if there is none, or if found says that it is not good now.
func (c *connection) holder(found *recognition) *x509.Certificate {
	if len(c.presented) == 0 || found.why != notConfigured {
		return nil
	}
	return c.presented[0]
}

// hangUp ends a connection that is of no use any more, so that its client makes
// another one. What was answered already reaches it before.
func (c *connection) hangUp() {
	if c.close != nil && !c.closing.Swap(true) {
		time.AfterFunc(hangUpDelay, func() { _ = c.close() })
	}
}
