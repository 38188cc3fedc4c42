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

// AuthMethod is the method by which the client authenticates. The names come from
// OAuth (RFC 7591 section 2, RFC 8705 section 2) except FederatedJWT.
type AuthMethod string

// The methods.
const (
	SecretBasic   AuthMethod = "client_secret_basic"         // the secret in the Authorization header (RFC 6749 section 2.3.1)
	SecretPost    AuthMethod = "client_secret_post"          // the secret in the form (RFC 6749 section 2.3.1)
	SecretJWT     AuthMethod = "client_secret_jwt"           // an assertion with an HMAC under the secret (RFC 7523 section 2.2)
	PrivateKeyJWT AuthMethod = "private_key_jwt"             // an assertion signed with a private key, which is the secret
	TLS           AuthMethod = "tls_client_auth"             // a certificate from an authority that the IdP trusts (RFC 8705 section 2.1)
	SelfSignedTLS AuthMethod = "self_signed_tls_client_auth" // a certificate that is registered at the IdP (RFC 8705 section 2.2)
	FederatedJWT  AuthMethod = "federated_jwt"               // an assertion that another party issues and keeps in a file
	SpiffeJWT     AuthMethod = "spiffe_jwt"                  // a JWT-SVID in a file (draft-ietf-oauth-spiffe-client-auth)
	None          AuthMethod = "none"                        // no authentication: a public client, or a grant that identifies the client
)

// Grant types that the client treats specially. It sends any other one as it is,
// with the parameters of Config.Params.
const (
	// ClientCredentials is the default (RFC 6749 section 4.4).
	ClientCredentials = "client_credentials"
	// JWTBearer exchanges an assertion that contains the scopes and that the client
	// signs with its private key, which is the secret (RFC 7523 section 2.1). With
	// Config.Exchange the assertion is the subject token instead.
	JWTBearer = "urn:ietf:params:oauth:grant-type:jwt-bearer"
)

const (
	assertionTypeJWT    = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	assertionTypeSpiffe = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"

	maxFile = 16 << 10
	// An assertion is sent until it has been expired for this long, because the
	// clocks of the broker and the IdP may differ.
	expiryTolerance = time.Minute
)

// AuthMethods returns all methods.
func AuthMethods() []AuthMethod {
	return []AuthMethod{SecretBasic, SecretPost, SecretJWT, PrivateKeyJWT, TLS, SelfSignedTLS, FederatedJWT, SpiffeJWT, None}
}

func (m AuthMethod) valid() bool { return slices.Contains(AuthMethods(), m) }

// Mutual reports whether the method is mutual TLS.
func (m AuthMethod) Mutual() bool { return m == TLS || m == SelfSignedTLS }

// FromFile reports whether the method uses an assertion from a file.
func (m AuthMethod) FromFile() bool { return m == FederatedJWT || m == SpiffeJWT }

// NeedsSecret reports whether a client with this method and this [SignedGrant] needs a
// secret.
func NeedsSecret(auth AuthMethod, grant string) bool {
	return grant == JWTBearer || auth != None && !auth.Mutual() && !auth.FromFile()
}

// NeedsKey reports whether the secret of a client with this method and this
// [SignedGrant] is a private key.
func NeedsKey(auth AuthMethod, grant string) bool {
	return grant == JWTBearer || auth == PrivateKeyJWT
}

func (c Config) checkAuth() error {
	switch {
	case c.ClientID == "":
		return errors.New("client_id is missing")
	case !c.Auth.valid():
		return fmt.Errorf("auth %q is unknown", string(c.Auth))
	case c.RawBasic && c.Auth != SecretBasic:
		return fmt.Errorf("raw_basic requires auth %s", SecretBasic)
	case c.RawBasic && strings.Contains(c.ClientID, ":"):
		return errors.New("a client_id with a colon cannot be sent with raw_basic: the IdP would read the rest as the secret (RFC 7617 section 2)")
	case c.signedGrant() != "" && c.Auth != None:
		return fmt.Errorf("the grant %s authenticates the client by its own assertion: auth must be %s", JWTBearer, None)
	case c.Auth.FromFile() && c.AssertionFile == "":
		return fmt.Errorf("auth %s needs assertion.file", c.Auth)
	case c.Auth.Mutual() && (c.Certificate.Cert == "" || c.Certificate.Key == ""):
		return fmt.Errorf("auth %s needs a certificate and its key", c.Auth)
	default:
		return c.checkAssertion()
	}
}

// authenticate adds the parameters that authenticate the client to form, or returns
// the Authorization header. Each attempt calls it, because an assertion can be used
// once only.
func (c *Client) authenticate(ctx context.Context, credential secret.Version, form url.Values) (header string, fault *Error) {
	switch c.cfg.Auth {
	case SecretBasic:
		if err := c.CheckSecret(credential.Value); err != nil {
			return "", unusableSecret(err)
		}
		return c.basic(credential), nil
	case SecretPost:
		if err := c.CheckSecret(credential.Value); err != nil {
			return "", unusableSecret(err)
		}
		form.Set("client_secret", credential.Value.Reveal())
	case SecretJWT, PrivateKeyJWT:
		fault = c.addSignedAssertion(ctx, credential, form)
	case FederatedJWT, SpiffeJWT:
		fault = c.addFileAssertion(form)
	case TLS, SelfSignedTLS:
	case None:
		if c.cfg.signedGrant() != "" {
			return "", nil // the assertion contains the client id
		}
	}
	form.Set("client_id", c.cfg.ClientID)
	return "", fault
}

// basic form-encodes id and secret before it joins them (RFC 6749 section 2.3.1),
// unlike [http.Request.SetBasicAuth].
func (c *Client) basic(credential secret.Version) string {
	id, value := c.cfg.ClientID, credential.Value.Reveal()
	if !c.cfg.RawBasic {
		id, value = url.QueryEscape(id), url.QueryEscape(value)
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+value))
}

// addFileAssertion adds the assertion from the assertion file to form.
func (c *Client) addFileAssertion(form url.Values) *Error {
	assertion, err := readAssertion(c.cfg.AssertionFile, time.Now())
	if err != nil {
		return &Error{Class: Misconfigured, text: fmt.Sprintf("received no request: assertion.file %s %v", c.cfg.AssertionFile, err), cause: err}
	}
	form.Set("client_assertion", assertion.Reveal())
	form.Set("client_assertion_type", assertionTypeJWT)
	if c.cfg.Auth == SpiffeJWT {
		form.Set("client_assertion_type", assertionTypeSpiffe)
	}
	return nil
}

// ReadAssertion returns the JWT in a file. The error is the predicate of a sentence about
// the file.
func ReadAssertion(path string) (redact.String, error) { return readAssertion(path, time.Now()) }

// readAssertion reads a JWT. It detects a file with other content and a JWT that is
// no longer renewed. All other checks are the IdP's.
func readAssertion(path string, now time.Time) (redact.String, error) {
	data, err := readFile(path)
	defer clear(data)
	if err != nil {
		return redact.String{}, err
	}
	text := strings.TrimSpace(string(data))
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_." // base64url and dots
	foreign := func(r rune) bool { return !strings.ContainsRune(alphabet, r) }
	switch {
	case text == "":
		return redact.String{}, errors.New("is empty: check the process that writes it")
	case strings.Count(text, ".") != 2 || strings.ContainsFunc(text, foreign):
		return redact.String{}, errors.New("does not contain a JWT: check the process that writes it")
	}
	if exp, ok := claimsOf(text).number("exp"); ok {
		if late := seconds(float64(now.Unix()) - exp); late > expiryTolerance {
			return redact.String{}, fmt.Errorf("contains an assertion that expired %v ago or earlier: check the process that renews it, and the clock", late.Round(time.Second))
		}
	}
	return redact.New(text), nil
}

// readFile reads a file of at most maxFile bytes. The caller clears the result if it
// is secret. The error is the predicate of a sentence about the file and does not
// repeat its name.
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
	if pathErr, ok := errors.AsType[*os.PathError](err); ok {
		return pathErr.Err
	}
	return err
}

// authAdvice lists other settings to check if the IdP refuses the credential.
func (c *Client) authAdvice() string {
	switch {
	case c.cfg.signedGrant() != "":
		return "; check that the IdP has the public part of the key, and check assertion.audience, assertion.subject, assertion.typ, assertion.kid and the clocks on both sides"
	case c.cfg.Auth == PrivateKeyJWT:
		return "; check that the IdP has the public part of the key, and check assertion.audience, assertion.typ, assertion.kid and the clocks on both sides"
	case c.cfg.Auth == SecretJWT:
		return "; check assertion.audience, assertion.typ and the clocks on both sides"
	case c.cfg.Auth.FromFile():
		return "; check issuer, subject and audience of the assertion in " + c.cfg.AssertionFile
	case c.cfg.Auth.Mutual():
		return "; check the certificate and its registration at the IdP"
	default:
		return ""
	}
}
