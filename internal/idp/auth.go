package idp

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// AuthMethod is how the client proves its identity. The names are those of OAuth
// (RFC 7591 section 2, RFC 8705 section 2) but for FederatedJWT.
type AuthMethod string

// The methods.
const (
	SecretBasic   AuthMethod = "client_secret_basic"         // the secret in the Authorization header (RFC 6749 section 2.3.1)
	SecretPost    AuthMethod = "client_secret_post"          // the secret in the form
	SecretJWT     AuthMethod = "client_secret_jwt"           // an assertion under an HMAC with the secret (RFC 7523 section 2.2)
	PrivateKeyJWT AuthMethod = "private_key_jwt"             // an assertion signed by the key that the secret is
	TLS           AuthMethod = "tls_client_auth"             // a certificate of an authority that the IdP knows (RFC 8705 section 2.1)
	SelfSignedTLS AuthMethod = "self_signed_tls_client_auth" // a certificate that the IdP knows itself (section 2.2)
	FederatedJWT  AuthMethod = "federated_jwt"               // an assertion that somebody else issued and keeps in a file
	SpiffeJWT     AuthMethod = "spiffe_jwt"                  // the same for a JWT-SVID (draft-ietf-oauth-spiffe-client-auth)
	None          AuthMethod = "none"                        // nothing: a public client, or a grant that proves it all
)

// Grants that are more than a name. Any other is sent as it is, with the
// parameters of Config.Params.
const (
	// ClientCredentials is the default.
	ClientCredentials = "client_credentials"
	// JWTBearer is RFC 7523 section 2.1: an assertion that the client signs with the
	// key that its secret is, with the scopes in it.
	JWTBearer = "urn:ietf:params:oauth:grant-type:jwt-bearer"
)

const (
	assertionTypeJWT    = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	assertionTypeSpiffe = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"

	maxFile = 16 << 10
	// expiredFor spares the IdP an assertion that has certainly expired, and lets it
	// judge one that may have, by its own clock.
	expiredFor = time.Minute
)

// AuthMethods returns all methods.
func AuthMethods() []AuthMethod {
	return []AuthMethod{SecretBasic, SecretPost, SecretJWT, PrivateKeyJWT, TLS, SelfSignedTLS, FederatedJWT, SpiffeJWT, None}
}

func (m AuthMethod) known() bool { return slices.Contains(AuthMethods(), m) }

// Mutual reports whether the method is a certificate on the connection.
func (m AuthMethod) Mutual() bool { return m == TLS || m == SelfSignedTLS }

// FromFile reports whether the method is an assertion of somebody else's.
func (m AuthMethod) FromFile() bool { return m == FederatedJWT || m == SpiffeJWT }

// NeedsSecret reports whether a client that authenticates and asks so has a
// secret.
func NeedsSecret(auth AuthMethod, grant string) bool {
	return grant == JWTBearer || auth != None && !auth.Mutual() && !auth.FromFile()
}

// NeedsKey reports whether that secret is a private key.
func NeedsKey(auth AuthMethod, grant string) bool {
	return grant == JWTBearer || auth == PrivateKeyJWT
}

func (c Config) checkAuth() error {
	switch {
	case c.ClientID == "":
		return errors.New("client_id is missing")
	case !c.Auth.known():
		return fmt.Errorf("auth %q is not known", string(c.Auth))
	case c.RawBasic && c.Auth != SecretBasic:
		return fmt.Errorf("raw_basic goes with %s only", SecretBasic)
	case c.RawBasic && strings.Contains(c.ClientID, ":"):
		return errors.New("a client_id with a colon cannot be sent with raw_basic: what follows the colon would be taken for the secret (RFC 7617)")
	case c.Grant == JWTBearer && c.Auth != None:
		return fmt.Errorf("the grant %s proves the client by its own assertion: auth is %s with it", JWTBearer, None)
	case c.Auth.FromFile() && c.AssertionFile == "":
		return fmt.Errorf("auth %s needs assertion.file", c.Auth)
	case c.Auth.Mutual() && (c.Certificate.Cert == "" || c.Certificate.Key == ""):
		return fmt.Errorf("auth %s needs a certificate and its key", c.Auth)
	default:
		return c.checkAssertion()
	}
}

// authenticate adds to a form what proves the client, or returns the
// Authorization header that does. It is called for each attempt anew: an
// assertion may be used once.
func (c *Client) authenticate(ctx context.Context, with secret.Version, form url.Values) (header string, fault *Error) {
	switch c.cfg.Auth {
	case SecretBasic:
		if err := c.CheckSecret(with.Value); err != nil {
			return "", unusable(err)
		}
		return c.basic(with), nil
	case SecretPost:
		if err := c.CheckSecret(with.Value); err != nil {
			return "", unusable(err)
		}
		form.Set("client_secret", with.Value.Reveal())
	case SecretJWT, PrivateKeyJWT:
		fault = c.assert(ctx, with, form)
	case FederatedJWT, SpiffeJWT:
		fault = c.present(form)
	case TLS, SelfSignedTLS:
	case None:
		if c.cfg.Grant == JWTBearer {
			return "", nil // the assertion says who it is
		}
	}
	form.Set("client_id", c.cfg.ClientID)
	return "", fault
}

// basic form-encodes id and secret before it joins them (RFC 6749 section
// 2.3.1), which is not what HTTP's own Basic authentication does.
func (c *Client) basic(with secret.Version) string {
	id, value := c.cfg.ClientID, with.Value.Reveal()
	if !c.cfg.RawBasic {
		id, value = url.QueryEscape(id), url.QueryEscape(value)
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+value))
}

// present reads the assertion that somebody else keeps fresh.
func (c *Client) present(form url.Values) *Error {
	assertion, err := readAssertion(c.cfg.AssertionFile, time.Now())
	if err != nil {
		return &Error{Class: Misconfigured, text: fmt.Sprintf("was not asked: assertion.file %s %v", c.cfg.AssertionFile, err), cause: err}
	}
	form.Set("client_assertion", assertion.Reveal())
	form.Set("client_assertion_type", assertionTypeJWT)
	if c.cfg.Auth == SpiffeJWT {
		form.Set("client_assertion_type", assertionTypeSpiffe)
	}
	return nil
}

// readAssertion reads a JWT. It looks no closer than it takes to tell a JWT from
// what was put into the file by mistake, and a fresh one from one that nobody
// renews.
func readAssertion(path string, now time.Time) (redact.String, error) {
	data, err := readFile(path)
	defer clear(data)
	if err != nil {
		return redact.String{}, err
	}
	text := strings.TrimSpace(string(data))
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_." // base64url, and dots between
	strange := func(r rune) bool { return !strings.ContainsRune(alphabet, r) }
	switch {
	case text == "":
		return redact.String{}, errors.New("is empty: see to whoever writes it")
	case strings.Count(text, ".") != 2 || strings.ContainsFunc(text, strange):
		return redact.String{}, errors.New("holds no JWT: see to whoever writes it")
	}
	if exp, ok := claimsOf(text).number("exp"); ok {
		if late := seconds(float64(now.Unix()) - exp); late > expiredFor {
			return redact.String{}, fmt.Errorf("holds an assertion that expired %v ago or earlier: see to whoever renews it, and to the clock", late.Round(time.Second))
		}
	}
	return redact.New(text), nil
}

// readFile reads a file of at most 16 KiB, which who called clears where it holds a
// secret. The error is a predicate of the file,
// and does not repeat its name.
func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", withoutPath(err))
	}
	defer func() { _ = file.Close() }()
	data, err := redact.ReadAll(file, maxFile+1)
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot be read: %w", withoutPath(err))
	case len(data) > maxFile:
		return nil, fmt.Errorf("is larger than %d bytes", maxFile)
	}
	return data, nil
}

func withoutPath(err error) error {
	if failed, ok := errors.AsType[*os.PathError](err); ok {
		return failed.Err
	}
	return err
}

// hint says what else may be wrong where the IdP refuses the client.
func (c *Client) hint() string {
	switch {
	case c.cfg.Grant == JWTBearer, c.cfg.Auth == PrivateKeyJWT:
		return "; check that the IdP has the public part of the key, assertion.audience, assertion.typ, assertion.kid, and the clocks on both sides"
	case c.cfg.Auth == SecretJWT:
		return "; check assertion.audience, assertion.typ, and the clocks on both sides"
	case c.cfg.Auth.FromFile():
		return "; check issuer, subject and audience of the assertion in " + c.cfg.AssertionFile
	case c.cfg.Auth.Mutual():
		return "; check the certificate, and what the IdP knows of it"
	default:
		return ""
	}
}
