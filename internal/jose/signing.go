package jose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// HS256 is the only symmetric algorithm. It is used for signing only, never for
// verification.
const HS256 = "HS256"

// SigningAlgorithms returns the names of all algorithms for signing.
func SigningAlgorithms() []string { return append([]string{HS256}, Algorithms()...) }

// minHMACSecret is the length of the hash, in bytes (RFC 7518 section 3.2).
const minHMACSecret = sha256.Size

// ErrShortSecret means that a secret is too short for HS256.
var ErrShortSecret = fmt.Errorf("it is shorter than %d bytes, which RFC 7518 section 3.2 requires of a secret for signing", minHMACSecret)

// SigningKey is a private key for signing assertions. It never prints the key. It is
// immutable and safe for concurrent use. [ParseSigningKey] returns SigningKeys.
type SigningKey struct {
	public *Key
	// private is a function, because fmt prints only the address of one. With a wrong
	// verb, fmt skips the method Format and would follow a pointer.
	private      func() crypto.Signer
	certificates []*x509.Certificate
}

// ID returns the kid of a JWK; empty if there is none.
func (k *SigningKey) ID() string { return k.public.id }

// Thumbprint returns the thumbprint of the public key (RFC 7638, SHA-256, base64url).
func (k *SigningKey) Thumbprint() string { return k.public.thumbprint }

// Permits reports whether the key may sign with the algorithm. It depends on the key's
// type and curve, and on the alg of a JWK.
func (k *SigningKey) Permits(algorithm string) bool { return k.public.Permits(algorithm) }

// Algorithm returns the key's default algorithm: the alg of a JWK, else the most common
// algorithm for the key's type.
func (k *SigningKey) Algorithm() string {
	if k.public.declared != nil {
		return k.public.declared[0]
	}
	return k.public.algorithms[0]
}

// Certificates returns the certificates beside the key in PEM, in their order.
func (k *SigningKey) Certificates() []*x509.Certificate { return k.certificates }

// Certifies reports whether a certificate certifies the key.
func (k *SigningKey) Certifies(certificate *x509.Certificate) bool {
	public, ok := k.private().Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(certificate.PublicKey)
}

// Format writes the thumbprint for every verb.
func (k *SigningKey) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "[private key %s]", k.public.thumbprint)
}

// CertificateThumbprint returns the x5t#S256 of a certificate (RFC 7515 section 4.1.8).
func CertificateThumbprint(certificate *x509.Certificate) string {
	digest := sha256.Sum256(certificate.Raw)
	return base64.RawURLEncoding.EncodeToString(digest[:])
}

// SigningHeader is the header of a JWT to sign. Empty fields are omitted.
type SigningHeader struct {
	Algorithm             string `json:"alg"`
	Type                  string `json:"typ,omitzero"`
	KeyID                 string `json:"kid,omitzero"`
	CertificateThumbprint string `json:"x5t#S256,omitzero"`
}

// Sign marshals claims to JSON and returns a signed JWT in compact form. The error is
// [ErrAlgorithm] if the key does not permit the header's algorithm.
func Sign(key *SigningKey, header SigningHeader, claims any) (redact.String, error) {
	if !key.Permits(header.Algorithm) {
		return redact.String{}, ErrAlgorithm
	}
	return compact(header, claims, func(input []byte) ([]byte, error) {
		return sign(header.Algorithm, key.private(), input)
	})
}

// SignHS256 is [Sign] with a shared secret. It sets the header's algorithm. The error is
// [ErrShortSecret] if the secret has less than 32 bytes.
func SignHS256(secret redact.String, header SigningHeader, claims any) (redact.String, error) {
	if err := CheckHMACSecret(secret); err != nil {
		return redact.String{}, err
	}
	header.Algorithm = HS256
	return compact(header, claims, func(input []byte) ([]byte, error) {
		mac := hmac.New(sha256.New, []byte(secret.Reveal()))
		_, _ = mac.Write(input)
		return mac.Sum(nil), nil
	})
}

// CheckHMACSecret returns [ErrShortSecret] if [SignHS256] would refuse the secret.
func CheckHMACSecret(secret redact.String) error {
	if len(secret.Reveal()) < minHMACSecret {
		return ErrShortSecret
	}
	return nil
}

func compact(header SigningHeader, claims any, sign func(input []byte) ([]byte, error)) (redact.String, error) {
	encodedHeader, err := json.Marshal(header)
	if err != nil {
		return redact.String{}, errors.New("the header of the assertion is not valid UTF-8")
	}
	encodedClaims, err := json.Marshal(claims)
	if err != nil {
		return redact.String{}, errors.New("the claims of the assertion are not valid UTF-8")
	}
	input := base64.RawURLEncoding.EncodeToString(encodedHeader) + "." + base64.RawURLEncoding.EncodeToString(encodedClaims)
	signature, err := sign([]byte(input))
	if err != nil {
		return redact.String{}, errors.New("signing with the key failed")
	}
	return redact.New(input + "." + base64.RawURLEncoding.EncodeToString(signature)), nil
}

// sign returns a signature in JWS format (RFC 7518 section 3).
func sign(algorithm string, signer crypto.Signer, input []byte) ([]byte, error) {
	switch private := signer.(type) {
	case ed25519.PrivateKey:
		return ed25519.Sign(private, input), nil
	case *ecdsa.PrivateKey:
		_, digest := hash(algorithm, input)
		return signECDSA(private, digest)
	case *rsa.PrivateKey:
		h, digest := hash(algorithm, input)
		if strings.HasPrefix(algorithm, "PS") {
			return rsa.SignPSS(rand.Reader, private, h, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) // RFC 7518 section 3.5
		}
		return rsa.SignPKCS1v15(rand.Reader, private, h, digest)
	default:
		return nil, ErrAlgorithm
	}
}

// signECDSA returns r and s, each of the size of the curve's field (RFC 7518 section
// 3.4), not DER.
func signECDSA(private *ecdsa.PrivateKey, digest []byte) ([]byte, error) {
	r, s, err := ecdsa.Sign(rand.Reader, private, digest)
	if err != nil {
		return nil, err
	}
	size := (private.Params().BitSize + 7) / 8
	signature := make([]byte, 2*size)
	r.FillBytes(signature[:size])
	s.FillBytes(signature[size:])
	return signature, nil
}
