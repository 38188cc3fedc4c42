package jose

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"

	"github.com/lestrrat-go/jwx/v2/jwk"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// maxSigningKey is the maximum length of the text of a signing key, in bytes.
const maxSigningKey = 16 << 10

const pemBegin = "-----BEGIN "

var (
	errNoKey      = errors.New("it contains no private key: expected PEM (PKCS#8, PKCS#1 or SEC1) or a JWK")
	errSeveral    = errors.New("it contains more than one private key: leave only the key for signing")
	errLongKey    = errors.New("it is too long for a private key")
	errEncrypted  = errors.New("its private key is encrypted: store it without a passphrase")
	errPublic     = errors.New("it is a public key: signing needs the private key")
	errBroken     = errors.New("it contains a PEM block that cannot be parsed, or a private key of an unsupported kind")
	errEscaped    = errors.New(`its line breaks are written as \n: write the key with real line breaks`)
	errForeignPEM = errors.New("it contains a PEM block that is neither a private key nor a certificate")
	errJWKSet     = errors.New("it is a JWK set: use the single key for signing")
	errNotSigning = errors.New("the JWK is not for signing, by its use or key_ops")
	errPrimes     = errors.New("the JWK lacks the primes p and q")
	errMismatch   = errors.New("the private part of the JWK does not match its public part")
	errJWK        = errors.New("the JWK cannot be parsed")
	errKind       = errors.New("the key is not RSA, ECDSA on P-256, P-384 or P-521, or Ed25519")
)

// ParseSigningKey parses a private key: RSA of 2,048 to 4,096 bits, ECDSA on P-256,
// P-384 or P-521, or Ed25519. The text is PEM (PKCS#8, PKCS#1 or SEC1), which may also
// contain certificates, or one JWK (RFC 7517), at most 16 KiB. The error
// is a sentence about the text ("it ...") and quotes nothing of it.
func ParseSigningKey(text redact.String) (*SigningKey, error) {
	plain := strings.TrimSpace(text.Reveal())
	switch {
	case len(plain) > maxSigningKey:
		return nil, errLongKey
	case strings.HasPrefix(plain, "{"):
		return parsePrivateJWK([]byte(plain))
	case strings.Contains(plain, pemBegin):
		return parsePEM([]byte(plain))
	default:
		return nil, errNoKey
	}
}

// LooksLikeKey reports whether a text seems intended as a private key, valid or not.
// Such a text must never be sent as a client secret.
func LooksLikeKey(text redact.String) bool {
	plain := strings.TrimSpace(text.Reveal())
	if strings.Contains(plain, pemBegin) {
		return true
	}
	object, err := ParseObject([]byte(plain))
	return err == nil && (object.Has("kty") || object.Has("private_key") || object.Has("keys"))
}

func parsePEM(text []byte) (*SigningKey, error) {
	var signer crypto.Signer
	var certificates []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		private, certificate, err := parseBlock(block)
		switch {
		case err != nil:
			return nil, err
		case private != nil && signer != nil:
			return nil, errSeveral
		case private != nil:
			signer = private
		case certificate != nil:
			certificates = append(certificates, certificate)
		}
	}
	switch {
	case bytes.Contains(text, []byte(pemBegin)) && bytes.Contains(text, []byte(`\n`)):
		return nil, errEscaped
	case bytes.Contains(text, []byte(pemBegin)):
		return nil, errBroken
	case signer == nil:
		return nil, errNoKey
	}
	key, err := newSigningKey(signer)
	if err != nil {
		return nil, err
	}
	key.certificates = certificates
	return key, nil
}

// parseBlock returns a private key, a certificate, or neither for an ignored block.
func parseBlock(block *pem.Block) (crypto.Signer, *x509.Certificate, error) {
	if block.Headers["DEK-Info"] != "" || block.Type == "ENCRYPTED PRIVATE KEY" {
		return nil, nil, errEncrypted
	}
	var parsed any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		parsed, err = x509.ParseECPrivateKey(block.Bytes)
	case "EC PARAMETERS": // openssl writes this block before a key that repeats its content
		return nil, nil, nil
	case "CERTIFICATE":
		parsed, err = x509.ParseCertificate(block.Bytes)
	case "PUBLIC KEY", "RSA PUBLIC KEY":
		return nil, nil, errPublic
	default:
		return nil, nil, errForeignPEM
	}
	if err != nil {
		return nil, nil, errBroken // the error of the library may quote the key
	}
	if certificate, ok := parsed.(*x509.Certificate); ok {
		return nil, certificate, nil
	}
	signer, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, nil, errKind
	}
	return signer, nil, nil
}

// newSigningKey applies the same checks as to public keys for verification.
func newSigningKey(signer crypto.Signer) (*SigningKey, error) {
	parsed, err := jwk.FromRaw(signer.Public())
	if err != nil {
		return nil, errKind
	}
	public, err := checkKey(parsed)
	if errors.Is(err, errType) || errors.Is(err, errCurve) {
		return nil, errKind
	}
	if err != nil {
		return nil, err
	}
	if public.thumbprint, err = thumbprint(parsed); err != nil {
		return nil, err
	}
	return &SigningKey{public: public, private: func() crypto.Signer { return signer }}, nil
}

// parsePrivateJWK parses the public part like any JWK, and the private part with the
// standard library only.
func parsePrivateJWK(text []byte) (*SigningKey, error) {
	object, err := ParseObject(text)
	switch {
	case err != nil:
		return nil, errJWK
	case object.Has("keys"):
		return nil, errJWKSet
	case !object.Has("kty"):
		return nil, errNoKey
	case !forSigning(object):
		return nil, errNotSigning
	}
	public, err := parseMaterial(object)
	switch {
	case errors.Is(err, errType), errors.Is(err, errCurve):
		return nil, errKind
	case err != nil:
		return nil, err
	case !object.Has("d"):
		return nil, errPublic
	}
	if public.id, _, err = object.Text("kid"); err != nil || len(public.id) > maxKeyID {
		return nil, errNoKeyID
	}
	if err := public.restrict(object); err != nil {
		return nil, err
	}
	signer, err := parsePrivatePart(object, public.public)
	if err != nil {
		return nil, err
	}
	return &SigningKey{public: public, private: func() crypto.Signer { return signer }}, nil
}

// forSigning reports whether use and key_ops allow signing (RFC 7517 sections 4.2, 4.3).
func forSigning(object Object) bool {
	use, present, err := object.Text("use")
	if err != nil || present && use != "sig" {
		return false
	}
	operations, present, err := object.List("key_ops")
	return err == nil && (!present || slices.Contains(operations, "sign"))
}

func parsePrivatePart(object Object, public crypto.PublicKey) (crypto.Signer, error) {
	d, err := octets(object, "d")
	if err != nil {
		return nil, err
	}
	switch public := public.(type) {
	case *rsa.PublicKey:
		return privateRSA(object, public, d)
	case *ecdsa.PublicKey:
		return privateEC(public, d)
	case ed25519.PublicKey:
		if len(d) != ed25519.SeedSize {
			return nil, errMaterial
		}
		private := ed25519.NewKeyFromSeed(d)
		if !public.Equal(private.Public()) {
			return nil, errMismatch
		}
		return private, nil
	default:
		return nil, errKind
	}
}

func privateRSA(object Object, public *rsa.PublicKey, d []byte) (crypto.Signer, error) {
	if !object.Has("p") || !object.Has("q") {
		return nil, errPrimes
	}
	p, errP := octets(object, "p")
	q, errQ := octets(object, "q")
	if errP != nil || errQ != nil {
		return nil, errMaterial
	}
	private := &rsa.PrivateKey{
		PublicKey: *public,
		D:         new(big.Int).SetBytes(d),
		Primes:    []*big.Int{new(big.Int).SetBytes(p), new(big.Int).SetBytes(q)},
	}
	if err := private.Validate(); err != nil {
		return nil, errMismatch
	}
	private.Precompute()
	return private, nil
}

func privateEC(public *ecdsa.PublicKey, d []byte) (crypto.Signer, error) {
	private, err := ecdsa.ParseRawPrivateKey(public.Curve, d)
	if err != nil {
		return nil, errMaterial
	}
	if !private.PublicKey.Equal(public) {
		return nil, errMismatch
	}
	return private, nil
}

// octets returns the bytes of a base64url member.
func octets(object Object, name string) ([]byte, error) {
	text, _, err := object.Text(name)
	if err != nil || text == "" || strings.ContainsAny(text, "\r\n") {
		return nil, errMaterial
	}
	decoded, err := strict.DecodeString(text)
	if err != nil {
		return nil, errMaterial
	}
	return decoded, nil
}

func thumbprint(parsed jwk.Key) (string, error) {
	digest, err := parsed.Thumbprint(crypto.SHA256)
	if err != nil {
		return "", errMaterial
	}
	return base64.RawURLEncoding.EncodeToString(digest), nil
}
