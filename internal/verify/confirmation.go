package verify

import (
	"crypto/x509"
	"strings"

	"github.com/cezzis/tokenbroker/internal/jose"
)

// Confirmation is the cnf claim (RFC 7800): it binds a token to a key, and the
// token is good only for a presenter who proves possession of that key. The
// broker sees such a proof in one place, the client certificate of its own
// caller. Each API therefore does one of three things with a bound token:
//
//	reported  VerifyToken, introspection: the receiver must check the binding
//	matched   a caller's JWT, by [Confirmation.HeldWith]
//	refused   gateways: the broker has no connection to the presenter
//
// A cnf claim that is not an object, null included, or whose jkt or x5t#S256 is not a
// string makes the token's claims unsound ([BadClaims]), in each of them.
type Confirmation struct {
	// JKT is the SHA-256 thumbprint of a DPoP key (RFC 9449); may be empty.
	JKT string
	// X5TS256 is the SHA-256 thumbprint of a certificate (RFC 8705); may be
	// empty.
	X5TS256 string
	// Other is set if the token is bound in a way that the other fields do not
	// describe completely: cnf has other members, an empty one or none at all.
	// Nobody who knows only the other fields may accept the token.
	Other bool
}

// HeldWith reports whether the holder of a client certificate may present the
// token (RFC 8705 section 3). A nil Confirmation is that of a bearer token,
// which anybody may present; a nil certificate means that there is none.
func (c *Confirmation) HeldWith(certificate *x509.Certificate) bool {
	switch {
	case c == nil:
		return true
	case c.Other || c.JKT != "" || c.X5TS256 == "" || certificate == nil:
		return false
	default:
		return c.X5TS256 == jose.CertificateThumbprint(certificate)
	}
}

// confirmation reads the cnf claim. The issuer of an opaque token can also
// bind it by the token type DPoP (RFC 9449 section 6.2).
func (r *reader) confirmation(tokenType string) *Confirmation {
	claim, present, err := r.claims.Object("cnf")
	if err != nil {
		r.fail(err)
	}
	dpop := strings.EqualFold(tokenType, "DPoP")
	if !present && !dpop {
		return nil
	}
	inner := reader{claims: claim}
	c := &Confirmation{JKT: inner.text("jkt"), X5TS256: inner.text("x5t#S256")}
	if inner.err != nil {
		r.fail(inner.err)
	}
	known := 0
	for _, member := range [...]string{c.JKT, c.X5TS256} {
		if member != "" {
			known++
		}
	}
	c.Other = known == 0 || known != claim.Len() || dpop && c.JKT == ""
	return c
}

// TokenType is the type of an accepted token (RFC 6749 section 7.1, RFC 9449
// section 6.2). It is empty if the token is bound in a way for which no type is
// registered.
func (f *Facts) TokenType() string {
	c := f.Confirmation
	switch {
	case c != nil && c.JKT != "", f.opaque && strings.EqualFold(f.typ, "DPoP"):
		return "DPoP"
	case c != nil && c.Other:
		return ""
	default: // also of a token that is bound to a certificate
		return "Bearer"
	}
}
