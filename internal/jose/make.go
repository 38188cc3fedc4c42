package jose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
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

// MakeSigningKey makes a private key that signs with an algorithm, in PEM (PKCS#8). RSA
// keys have 2,048 bits, which every IdP accepts.
func MakeSigningKey(algorithm string) (redact.String, error) {
	private, err := generate(algorithm)
	if err != nil {
		return redact.String{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return redact.String{}, fmt.Errorf("encoding a new key for %s failed", algorithm) // the library's error may quote the key
	}
	defer clear(der)
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
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

// PublicJWK returns the public part of the key as a JWK for signatures with an algorithm.
// Its kid is the thumbprint.
func (k *SigningKey) PublicJWK(algorithm string) (string, error) {
	if !k.Permits(algorithm) {
		return "", ErrAlgorithm
	}
	public, err := jwk.FromRaw(k.private().Public())
	if err != nil {
		return "", errKind
	}
	for name, value := range map[string]string{jwk.KeyIDKey: k.Thumbprint(), jwk.AlgorithmKey: algorithm, jwk.KeyUsageKey: "sig"} {
		if err := public.Set(name, value); err != nil {
			return "", errMaterial
		}
	}
	data, err := json.Marshal(public, json.Deterministic(true))
	if err != nil {
		return "", errMaterial
	}
	return string(data), nil
}
