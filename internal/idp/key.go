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

// CheckSecret says why a value cannot be this client's secret, before it is tried
// at the IdP; nil: it may be. The error is a sentence about the value ("it ...")
// and quotes nothing of it.
func (c *Client) CheckSecret(value redact.String) error {
	switch {
	case !NeedsSecret(c.cfg.Auth, c.cfg.Grant):
		return nil
	case value.IsZero():
		return errors.New("it is empty")
	case NeedsKey(c.cfg.Auth, c.cfg.Grant):
		_, err := c.key(value)
		return err
	case jose.LooksLikeKey(value):
		return fmt.Errorf("it is a private key, which auth %s would not keep private: set auth to %s, or give the client secret", c.cfg.Auth, PrivateKeyJWT)
	case c.cfg.Auth == SecretJWT:
		return jose.CheckHMACSecret(value)
	default:
		return nil
	}
}

// DoubtSecret names bytes of a secret that are seldom meant to be part of it, as
// [secret.Doubt] does. Keys have none: they are parsed.
func (c *Client) DoubtSecret(value redact.String) string {
	if !NeedsSecret(c.cfg.Auth, c.cfg.Grant) || NeedsKey(c.cfg.Auth, c.cfg.Grant) {
		return ""
	}
	return secret.Doubt(value)
}

// key is a private key and what a header says of it.
type key struct {
	private                    *jose.SigningKey
	algorithm, id, certificate string
}

// key reads the key that a secret is. It is not kept: what is in memory is the
// secret's version alone, and tokens are fetched rarely.
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

// certificateOf is the thumbprint of the key's certificate; empty: none is named.
func (c *Client) certificateOf(private *jose.SigningKey) (string, error) {
	certificates, path := private.Certificates(), c.cfg.Assertion.CertificateFile
	if path != "" {
		read, err := readCertificates(path)
		if err != nil {
			return "", fmt.Errorf("it cannot be used, for assertion.certificate %s %w", path, err)
		}
		certificates = append(slices.Clone(certificates), read...)
	}
	for _, certificate := range certificates {
		if private.Certifies(certificate) {
			return jose.CertificateThumbprint(certificate), nil
		}
	}
	if len(certificates) > 0 || path != "" {
		return "", errors.New("it is a key that none of the certificates with it, or in assertion.certificate, is of")
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
			return nil, errors.New("holds what is no certificate in PEM")
		}
		certificates = append(certificates, certificate)
	}
	return certificates, nil
}

// serviceAccount is what Google gives out for a service account.
type serviceAccount struct {
	PrivateKey   string `json:"private_key"`
	PrivateKeyID string `json:"private_key_id"`
	ClientEmail  string `json:"client_email"`
	ClientID     string `json:"client_id"`
}

// serviceAccountOf returns nil for a secret that is something else.
func serviceAccountOf(value redact.String) (*serviceAccount, error) {
	text := strings.TrimSpace(value.Reveal())
	if !strings.HasPrefix(text, "{") || !strings.Contains(text, `"private_key"`) {
		return nil, nil //nolint:nilnil // neither one nor an error
	}
	account := new(serviceAccount)
	if err := json.Unmarshal([]byte(text), account); err != nil {
		return nil, errors.New("it is no service account's file that can be read")
	}
	return account, nil
}

// check keeps the key of one service account from being taken for that of
// another.
func (a *serviceAccount) check(clientID string) error {
	switch {
	case a.PrivateKey == "":
		return errors.New("it is a service account's file without a private_key")
	case a.ClientEmail != "" && clientID != a.ClientEmail && clientID != a.ClientID:
		return errors.New("it is the file of another service account than client_id, which is the account's email address")
	default:
		return nil
	}
}
