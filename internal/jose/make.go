package jose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/lestrrat-go/jwx/v2/jwk"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// MadeAlgorithms returns the algorithms for which [MakeSigningKey] makes keys.
func MadeAlgorithms() []string {
	return []string{"ES256", "ES384", "ES512", "EdDSA", "RS256", "PS256"}
}

// MakeSigningKey makes a private key that signs with an algorithm, as a JWK whose kid is
// its thumbprint. RSA keys have 2,048 bits, which every IdP accepts.
func MakeSigningKey(algorithm string) (redact.String, error) {
	private, err := generate(algorithm)
	if err != nil {
		return redact.String{}, err
	}
	text, err := encodeJWK(private, algorithm)
	if err != nil {
		return redact.String{}, err
	}
	defer clear(text)
	return redact.New(string(text)), nil
}

func generate(algorithm string) (crypto.Signer, error) {
	switch algorithm {
	case "ES256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ES512":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "EdDSA":
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	case "RS256", "PS256":
		return rsa.GenerateKey(rand.Reader, minRSABits)
	default:
		return nil, fmt.Errorf("no key can be made for %q: use one of %s", algorithm, strings.Join(MadeAlgorithms(), ", "))
	}
}

// PublicJWK returns the public part of the key as a JWK for signatures with its default
// algorithm. Its kid is the thumbprint.
func (k *SigningKey) PublicJWK() (string, error) {
	text, err := encodeJWK(k.private().Public(), k.Algorithm())
	return string(text), err
}

// encodeJWK returns a private or a public key as a JWK. Errors of the library may quote the
// key.
func encodeJWK(raw any, algorithm string) ([]byte, error) {
	key, err := jwk.FromRaw(raw)
	if err != nil {
		return nil, errKind
	}
	id, err := thumbprint(key)
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]string{jwk.KeyIDKey: id, jwk.AlgorithmKey: algorithm, jwk.KeyUsageKey: "sig"} {
		if err := key.Set(name, value); err != nil {
			return nil, errMaterial
		}
	}
	text, err := json.Marshal(key)
	if err != nil {
		return nil, errMaterial
	}
	return text, nil
}
