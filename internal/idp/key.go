package idp

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// CheckSecret returns an error if value cannot be the secret of this client, without
// a request to the IdP. The error is a sentence about the value ("it ...") and
// contains no part of it.
func (c *Client) CheckSecret(value redact.String) error {
	switch {
	case !NeedsSecret(c.cfg.Auth, c.cfg.signedGrant()):
		return nil
	case value.IsZero():
		return errors.New("it is empty")
	case NeedsKey(c.cfg.Auth, c.cfg.signedGrant()):
		_, err := c.key(value)
		return err
	case jose.LooksLikeKey(value):
		return fmt.Errorf("it is a private key, which auth %s would not keep private: set auth to %s, or configure the client secret instead", c.cfg.Auth, PrivateKeyJWT)
	case c.cfg.Auth == SecretJWT:
		return jose.CheckHMACSecret(value)
	default:
		return nil
	}
}

// SecretWarning is [secret.Warning] for the secret of this client. It returns ""
// for a private key, which is parsed.
func (c *Client) SecretWarning(value redact.String) string {
	if !NeedsSecret(c.cfg.Auth, c.cfg.signedGrant()) || NeedsKey(c.cfg.Auth, c.cfg.signedGrant()) {
		return ""
	}
	return secret.Warning(value)
}

// key is a private key with the header parameters of its assertions.
type key struct {
	private                    *jose.SigningKey
	algorithm, id, certificate string // alg, kid, x5t#S256
}

// key parses the private key. The result is not cached: fetches are rare, and the
// key stays in memory only as the secret.
func (c *Client) key(value redact.String) (key, error) {
	account, err := serviceAccountOf(value)
	if err != nil {
		return key{}, err
	}
	if account != nil {
		if err := account.check(c.cfg.ClientID); err != nil {
			return key{}, err
		}
		value = redact.New(account.PrivateKey)
	}
	private, err := jose.ParseSigningKey(value)
	if err != nil {
		return key{}, err
	}
	k := key{private: private, algorithm: c.cfg.Assertion.Algorithm, id: c.cfg.Assertion.KeyID}
	if k.algorithm == "" {
		k.algorithm = private.Algorithm()
	}
	if !private.Permits(k.algorithm) {
		return key{}, fmt.Errorf("it is a key that does not sign with assertion.algorithm %s", k.algorithm)
	}
	if k.certificate, err = c.certificateOf(private); err != nil {
		return key{}, err
	}
	switch {
	case k.id != "":
	case account != nil:
		k.id = account.PrivateKeyID
	case private.ID() != "":
		k.id = private.ID()
	case k.certificate == "":
		k.id = private.Thumbprint()
	}
	return k, nil
}

// certificateOf returns the thumbprint of the key's certificate, or "" if neither the
// secret nor the configuration has certificates.
func (c *Client) certificateOf(private *jose.SigningKey) (string, error) {
	certificates, path := private.Certificates(), c.cfg.Assertion.CertificateFile
	if path != "" {
		read, err := readCertificates(path)
		if err != nil {
			return "", fmt.Errorf("it cannot be used, because assertion.certificate %s %w", path, err)
		}
		certificates = append(slices.Clone(certificates), read...)
	}
	for _, certificate := range certificates {
		if private.Certifies(certificate) {
			return jose.CertificateThumbprint(certificate), nil
		}
	}
	if len(certificates) > 0 || path != "" {
		return "", errors.New("it is a key that matches none of the certificates beside it and in assertion.certificate")
	}
	return "", nil
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	var certificates []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			return nil, errors.New("contains a PEM block that is not a certificate")
		}
		certificates = append(certificates, certificate)
	}
	return certificates, nil
}

// serviceAccount is the JSON file with the key of a Google service account.
type serviceAccount struct {
	PrivateKey   string `json:"private_key"`
	PrivateKeyID string `json:"private_key_id"`
	ClientEmail  string `json:"client_email"`
	ClientID     string `json:"client_id"`
}

// serviceAccountOf returns nil if value is not the file of a service account.
func serviceAccountOf(value redact.String) (*serviceAccount, error) {
	text := strings.TrimSpace(value.Reveal())
	if !strings.HasPrefix(text, "{") || !strings.Contains(text, `"private_key"`) {
		return nil, nil //nolint:nilnil // not a service account, which is not an error
	}
	account := new(serviceAccount)
	if err := json.Unmarshal([]byte(text), account); err != nil {
		return nil, errors.New("it is a service account's file that cannot be parsed")
	}
	return account, nil
}

// check returns an error if the file belongs to a service account other than
// clientID.
func (a *serviceAccount) check(clientID string) error {
	switch {
	case a.PrivateKey == "":
		return errors.New("it is a service account's file without a private_key")
	case a.ClientEmail != "" && clientID != a.ClientEmail && clientID != a.ClientID:
		return errors.New("it is the file of another service account: client_id must be the account's email address")
	default:
		return nil
	}
}
