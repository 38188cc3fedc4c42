package verify

import (
	"crypto/x509"
	"strings"

	"github.com/cezzis/tokenbroker/internal/jose"
)

// Confirmation is the cnf claim (RFC 7800). It binds a token to a key: only a
// presenter that proves possession of that key may use the token. The broker sees
// such a proof in one place only, the client certificate of its own caller. Each API
// therefore handles a bound token in one of three ways:
//
//	reported  VerifyToken, introspection: the receiver must check the binding
//	matched   a caller's JWT, by [Confirmation.MatchesCertificate]
//	refused   gateways: the broker has no connection to the presenter
//
// If cnf is not an object (null included), or its jkt or x5t#S256 is not a string, each
// API rejects the token with [BadClaims].
type Confirmation struct {
	// JKT is the SHA-256 thumbprint of a DPoP key (RFC 9449); may be empty.
	JKT string
	// X5TS256 is the SHA-256 thumbprint of a certificate (RFC 8705); may be
	// empty.
	X5TS256 string
	// Other is set if the other fields do not describe the binding completely: cnf
	// has further members, an empty one or none. A receiver that checks only the
	// other fields must then refuse the token.
	Other bool
}

// MatchesCertificate reports whether the holder of a client certificate may present
// the token (RFC 8705 section 3). A nil Confirmation is that of a bearer token, which
// any holder may present; a nil certificate means that the presenter has none.
func (c *Confirmation) MatchesCertificate(certificate *x509.Certificate) bool {
	switch {
	case c == nil:
		return true
	case c.Other || c.JKT != "" || c.X5TS256 == "" || certificate == nil:
		return false
	default:
		return c.X5TS256 == jose.CertificateThumbprint(certificate)
	}
}

// confirmation reads the cnf claim. The token_type DPoP binds an opaque token even
// without cnf (RFC 9449 section 6.2).
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
	supported := 0
	for _, member := range [...]string{c.JKT, c.X5TS256} {
		if member != "" {
			supported++
		}
	}
	c.Other = supported == 0 || supported != claim.Len() || dpop && c.JKT == ""
	return c
}

// TokenType returns the token_type of an accepted token, Bearer or DPoP (RFC 6749
// section 7.1, RFC 9449 section 6.2). It returns "" if no type is registered for the
// token's binding.
func (f *Facts) TokenType() string {
	c := f.Confirmation
	switch {
	case c != nil && c.JKT != "", f.opaque && strings.EqualFold(f.typ, "DPoP"):
		return "DPoP"
	case c != nil && c.Other:
		return ""
	default: // includes tokens bound to a certificate (RFC 8705)
		return "Bearer"
	}
}
