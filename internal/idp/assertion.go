package idp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// What an assertion's audience may be, beside a literal.
const (
	// AudienceIssuer is the issuer's identifier, as draft-ietf-oauth-rfc7523bis
	// section 4 wants it.
	AudienceIssuer = "issuer"
	// AudienceTokenEndpoint is the URL of the token endpoint, as many IdPs want it,
	// whichever endpoint the assertion is for.
	AudienceTokenEndpoint = "token_endpoint"
)

// What an assertion may say that it is.
const (
	// TypeClientAuthentication is what draft-ietf-oauth-rfc7523bis asks clients for.
	TypeClientAuthentication = "client-authentication+jwt"
	// TypeJWT is for IdPs that know no other.
	TypeJWT = "JWT"
)

// AssertionTypes returns the types of assertions.
func AssertionTypes() []string { return []string{TypeClientAuthentication, TypeJWT} }

const (
	// An assertion was issued a moment ago, for IdPs whose clock is behind, and
	// lives no longer than one request takes.
	backdated    = 5 * time.Second
	assertedLife = time.Minute
)

// Assertion says how assertions are made: those of client_secret_jwt,
// private_key_jwt and the jwt-bearer grant. It means nothing otherwise.
type Assertion struct {
	// Audience is AudienceIssuer, AudienceTokenEndpoint or the audience itself.
	// Empty: the issuer, or the token endpoint if that is configured by its URL.
	Audience string
	// Algorithm is what is signed with. Empty: the key's own, else RS256, the ES* of
	// the curve, or EdDSA; and HS256 with client_secret_jwt, always.
	Algorithm string
	// KeyID is the kid in the header. Empty: that of the JWK or of the service
	// account's file; else, unless a certificate is named, the key's thumbprint (RFC
	// 7638).
	KeyID string
	// Type is the typ in the header. Empty: TypeClientAuthentication, and TypeJWT for
	// the jwt-bearer grant.
	Type string
	// CertificateFile holds certificates in PEM, of which the one that belongs to the
	// key is named in the header (x5t#S256). It is read for each assertion. Empty:
	// only one that is found beside the key in the secret is.
	CertificateFile string
	// Subject is the sub claim with the jwt-bearer grant. Empty: none is sent, as
	// Google has it; RFC 7523 section 3 wants one.
	Subject string
}

type claims struct {
	Issuer    string `json:"iss"`
	Subject   string `json:"sub,omitzero"`
	Audience  string `json:"aud"`
	IssuedAt  int64  `json:"iat"`
	NotBefore int64  `json:"nbf,omitzero"`
	Expires   int64  `json:"exp"`
	ID        string `json:"jti"`
	Scope     string `json:"scope,omitzero"`
}

func (c Config) checkAssertion() error {
	switch algorithm := c.Assertion.Algorithm; {
	case c.Assertion.Audience == AudienceIssuer && c.Issuer == nil:
		return errors.New("assertion.audience: issuer needs an issuer: configure it in place of token_url, or write the audience itself")
	case c.Auth == SecretJWT && algorithm != "" && algorithm != jose.HS256:
		return fmt.Errorf("assertion.algorithm is %s with %s", jose.HS256, SecretJWT)
	case NeedsKey(c.Auth, c.Grant) && algorithm != "" && !slices.Contains(jose.Algorithms(), algorithm):
		return fmt.Errorf("assertion.algorithm is one of %s with a private key", strings.Join(jose.Algorithms(), ", "))
	default:
		return nil
	}
}

// assert authenticates by an assertion of the client about itself (RFC 7523
// section 2.2).
func (c *Client) assert(ctx context.Context, with secret.Version, form url.Values) *Error {
	audience, fault := c.audience(ctx)
	if fault != nil {
		return fault
	}
	now := time.Now().Add(-backdated).Unix()
	signed, err := c.sign(with.Value, c.typ(TypeClientAuthentication), claims{
		Issuer: c.cfg.ClientID, Subject: c.cfg.ClientID, Audience: audience,
		IssuedAt: now, NotBefore: now, Expires: expiry(), ID: rand.Text(),
	})
	if err != nil {
		return unusable(err)
	}
	form.Set("client_assertion_type", assertionTypeJWT)
	form.Set("client_assertion", signed.Reveal())
	return nil
}

// grantAssertion is what is exchanged for a token (RFC 7523 section 2.1).
func (c *Client) grantAssertion(ctx context.Context, with secret.Version, scope string) (redact.String, *Error) {
	audience, fault := c.audience(ctx)
	if fault != nil {
		return redact.String{}, fault
	}
	signed, err := c.sign(with.Value, c.typ(TypeJWT), claims{
		Issuer: c.cfg.ClientID, Subject: c.cfg.Assertion.Subject, Audience: audience,
		IssuedAt: time.Now().Add(-backdated).Unix(), Expires: expiry(), ID: rand.Text(), Scope: scope,
	})
	if err != nil {
		return redact.String{}, unusable(err)
	}
	return signed, nil
}

func expiry() int64 { return time.Now().Add(assertedLife).Unix() }

func (c *Client) typ(usual string) string {
	if c.cfg.Assertion.Type != "" {
		return c.cfg.Assertion.Type
	}
	return usual
}

func (c *Client) audience(ctx context.Context) (string, *Error) {
	switch c.cfg.Assertion.Audience {
	case AudienceIssuer: // which the metadata repeats, or it is not believed
		return c.cfg.Issuer.URL(), nil
	case AudienceTokenEndpoint:
		endpoint, fault := c.endpoint(ctx)
		if fault != nil { // where it is another endpoint that is asked
			fault.text = "was not asked, because " + fault.text
		}
		return endpoint, fault
	default:
		return c.cfg.Assertion.Audience, nil
	}
}

func (c *Client) sign(value redact.String, typ string, claims claims) (redact.String, error) {
	header := jose.SigningHeader{Type: typ, KeyID: c.cfg.Assertion.KeyID}
	if c.cfg.Auth == SecretJWT {
		if err := c.CheckSecret(value); err != nil {
			return redact.String{}, err
		}
		return jose.SignHS256(value, header, claims)
	}
	key, err := c.key(value)
	if err != nil {
		return redact.String{}, err
	}
	header.Algorithm, header.KeyID, header.CertificateThumbprint = key.algorithm, key.id, key.certificate
	return jose.Sign(key.private, header, claims)
}
