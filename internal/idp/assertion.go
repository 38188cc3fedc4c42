package idp

import (
	"cmp"
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

// Values of Assertion.Audience with a special meaning.
const (
	// AudienceIssuer stands for the issuer identifier, which
	// draft-ietf-oauth-rfc7523bis section 4 requires.
	AudienceIssuer = "issuer"
	// AudienceTokenEndpoint stands for the URL of the token endpoint, which many IdPs
	// require, also in requests to other endpoints.
	AudienceTokenEndpoint = "token_endpoint"
)

// Values of Assertion.Type.
const (
	// TypeClientAuthentication is defined by draft-ietf-oauth-rfc7523bis.
	TypeClientAuthentication = "client-authentication+jwt"
	// TypeJWT is for IdPs that accept no other type.
	TypeJWT = "JWT"
)

// AssertionTypes returns the values of Assertion.Type.
func AssertionTypes() []string { return []string{TypeClientAuthentication, TypeJWT} }

const (
	// Assertions are backdated, because the IdP's clock may be behind.
	assertionBackdate = 5 * time.Second
	// An assertion is used in one request only.
	assertionLifetime = time.Minute
)

// Assertion configures the assertions that the client signs with SecretJWT,
// PrivateKeyJWT and the grant JWTBearer.
type Assertion struct {
	// Audience is AudienceIssuer, AudienceTokenEndpoint or a literal audience. It
	// defaults to AudienceTokenEndpoint if Config.TokenURL is set, else to
	// AudienceIssuer.
	Audience string
	// Algorithm signs the assertion. It defaults to the algorithm that the key names,
	// or else to RS256, the ES* of the curve or EdDSA. With SecretJWT it is always
	// HS256.
	Algorithm string
	// KeyID is the kid in the header. It defaults to that of the JWK or of the service
	// account's file. Without these and without a certificate, it is the thumbprint of
	// the key (RFC 7638).
	KeyID string
	// Type is the typ in the header. It defaults to TypeClientAuthentication, and to
	// TypeJWT with the grant JWTBearer.
	Type string
	// CertificateFile contains certificates in PEM. The header names the certificate of
	// the client's key (x5t#S256). The client reads the file for each assertion. A
	// certificate beside the key in the secret counts as well.
	CertificateFile string
	// Subject is the sub claim with the grant JWTBearer. If it is empty, the assertion
	// has no sub: RFC 7523 section 3 requires one, and Google uses it for delegation
	// only.
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
		return fmt.Errorf("assertion.algorithm must be %s with %s", jose.HS256, SecretJWT)
	case NeedsKey(c.Auth, c.signedGrant()) && algorithm != "" && !slices.Contains(jose.Algorithms(), algorithm):
		return fmt.Errorf("assertion.algorithm must be one of %s with a private key", strings.Join(jose.Algorithms(), ", "))
	default:
		return nil
	}
}

// addSignedAssertion adds an assertion that authenticates the client to form (RFC
// 7523 section 2.2).
func (c *Client) addSignedAssertion(ctx context.Context, credential secret.Version, form url.Values) *Error {
	audience, fault := c.audience(ctx)
	if fault != nil {
		return fault
	}
	now := time.Now().Add(-assertionBackdate).Unix()
	signed, err := c.sign(credential.Value, c.typ(TypeClientAuthentication), claims{
		Issuer: c.cfg.ClientID, Subject: c.cfg.ClientID, Audience: audience,
		IssuedAt: now, NotBefore: now, Expires: expiry(), ID: rand.Text(),
	})
	if err != nil {
		return unusableSecret(err)
	}
	form.Set("client_assertion_type", assertionTypeJWT)
	form.Set("client_assertion", signed.Reveal())
	return nil
}

// grantAssertion returns an assertion that the IdP exchanges for a token (RFC 7523
// section 2.1).
func (c *Client) grantAssertion(ctx context.Context, credential secret.Version, scope string) (redact.String, *Error) {
	audience, fault := c.audience(ctx)
	if fault != nil {
		return redact.String{}, fault
	}
	signed, err := c.sign(credential.Value, c.typ(TypeJWT), claims{
		Issuer: c.cfg.ClientID, Subject: c.cfg.Assertion.Subject, Audience: audience,
		IssuedAt: time.Now().Add(-assertionBackdate).Unix(), Expires: expiry(), ID: rand.Text(), Scope: scope,
	})
	if err != nil {
		return redact.String{}, unusableSecret(err)
	}
	return signed, nil
}

func expiry() int64 { return time.Now().Add(assertionLifetime).Unix() }

func (c *Client) typ(defaultType string) string {
	return cmp.Or(c.cfg.Assertion.Type, defaultType)
}

func (c *Client) audience(ctx context.Context) (string, *Error) {
	switch c.cfg.Assertion.Audience {
	case AudienceIssuer:
		return c.cfg.Issuer.URL(), nil
	case AudienceTokenEndpoint:
		endpoint, fault := c.tokenEndpoint(ctx)
		if fault != nil { // atEndpoint adds the subject, which may be another endpoint
			fault.text = "received no request, because " + fault.text
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
