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

// HS256 is the one symmetric algorithm, and it is for signing alone: nothing is
// verified with it.
const HS256 = "HS256"

// SigningAlgorithms returns the names of all algorithms that tokens can be signed with.
func SigningAlgorithms() []string { return append([]string{HS256}, Algorithms()...) }

// minHMACSecret is RFC 7518 section 3.2: as long as the hash.
const minHMACSecret = sha256.Size

// ErrShortSecret refuses a secret that is too short to sign with.
var ErrShortSecret = fmt.Errorf("it is shorter than the %d bytes that RFC 7518 section 3.2 wants of a secret to sign with", minHMACSecret)

// SigningKey is a private key to sign assertions with. It cannot print itself,
// is immutable and safe for concurrent use. [ParseSigningKey] makes them.
type SigningKey struct {
	public *Key
	// private is behind a function, of which fmt prints the address where it does
	// not call the methods of what it prints. A pointer would not do: with a wrong
	// verb fmt follows it.
	private      func() crypto.Signer
	certificates []*x509.Certificate
}

// ID is the kid that a JWK brought with it; empty: there was none.
func (k *SigningKey) ID() string { return k.public.id }

// Thumbprint is that of the public key (RFC 7638, SHA-256, base64url).
func (k *SigningKey) Thumbprint() string { return k.public.thumbprint }

// Permits reports whether the key may sign with the algorithm, by its type and
// curve and, if it is a JWK that has one, its alg.
func (k *SigningKey) Permits(algorithm string) bool { return k.public.Permits(algorithm) }

// Algorithm is what the key signs with where nothing else is asked for: its own
// alg, else the most common one of its type.
func (k *SigningKey) Algorithm() string {
	if k.public.declared != nil {
		return k.public.declared[0]
	}
	return k.public.algorithms[0]
}

// Certificates are those that came with the key, in their order.
func (k *SigningKey) Certificates() []*x509.Certificate { return k.certificates }

// Certifies reports whether a certificate is of this key.
func (k *SigningKey) Certifies(certificate *x509.Certificate) bool {
	public, ok := k.private().Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(certificate.PublicKey)
}

// Format writes what may be seen of the key, whatever the verb.
func (k *SigningKey) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "[private key %s]", k.public.thumbprint)
}

// CertificateThumbprint is the x5t#S256 of a certificate (RFC 7515 section
// 4.1.8).
func CertificateThumbprint(certificate *x509.Certificate) string {
	digest := sha256.Sum256(certificate.Raw)
	return base64.RawURLEncoding.EncodeToString(digest[:])
}

// SigningHeader is the header of a JWT to be signed. What is empty is left out.
type SigningHeader struct {
	Algorithm             string `json:"alg"`
	Type                  string `json:"typ,omitzero"`
	KeyID                 string `json:"kid,omitzero"`
	CertificateThumbprint string `json:"x5t#S256,omitzero"`
}

// Sign returns a JWT of claims, which are marshalled to JSON, in compact form.
// The algorithm is the header's, and must be one that the key permits, else the
// error is [ErrAlgorithm].
func Sign(key *SigningKey, header SigningHeader, claims any) (redact.String, error) {
	if !key.Permits(header.Algorithm) {
		return redact.String{}, ErrAlgorithm
	}
	return compact(header, claims, func(input []byte) ([]byte, error) {
		return sign(header.Algorithm, key.private(), input)
	})
}

// SignHS256 is [Sign] with a shared secret of at least 32 bytes, else the error
// is [ErrShortSecret]. The header's algorithm is set.
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

// CheckHMACSecret returns [ErrShortSecret] for a secret that [SignHS256] does not
// take.
func CheckHMACSecret(secret redact.String) error {
	if len(secret.Reveal()) < minHMACSecret {
		return ErrShortSecret
	}
	return nil
}

func compact(header SigningHeader, claims any, sign func(input []byte) ([]byte, error)) (redact.String, error) {
	encodedHeader, err := json.Marshal(header)
	if err != nil {
		return redact.String{}, errors.New("the header of the assertion is not text in UTF-8")
	}
	encodedClaims, err := json.Marshal(claims)
	if err != nil {
		return redact.String{}, errors.New("the claims of the assertion are not text in UTF-8")
	}
	input := base64.RawURLEncoding.EncodeToString(encodedHeader) + "." + base64.RawURLEncoding.EncodeToString(encodedClaims)
	signature, err := sign([]byte(input))
	if err != nil {
		return redact.String{}, errors.New("the key does not sign")
	}
	return redact.New(input + "." + base64.RawURLEncoding.EncodeToString(signature)), nil
}

// sign returns the signature as JWS writes it (RFC 7518 section 3).
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

// signECDSA writes r and s, each as long as the curve's field (RFC 7518 section
// 3.4), and not in DER.
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
