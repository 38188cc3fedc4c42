package jose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"math/big"
	"slices"
	"strings"
)

//nolint:gochecknoglobals // constant tables
var (
	rsaAlgorithms   = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
	ecAlgorithms    = map[string]string{"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
	eddsaAlgorithms = []string{"EdDSA", "Ed25519"}
)

// Algorithms returns the names of all algorithms for verification. Ed25519 is the name
// of EdDSA with an Ed25519 key in RFC 9864.
func Algorithms() []string {
	return slices.Concat(rsaAlgorithms, []string{"ES256", "ES384", "ES512"}, eddsaAlgorithms)
}

// Key is a public key for verifying signatures. It is immutable and safe for concurrent
// use. [ParseSet] returns Keys, with checked key material only.
type Key struct {
	id         string
	thumbprint string
	declared   []string // values of alg, sorted; nil: none
	algorithms []string // permitted ones
	public     crypto.PublicKey
}

// ID returns the key's kid; empty if it has none.
func (k *Key) ID() string { return k.id }

// Thumbprint returns the base64url SHA-256 thumbprint of RFC 7638. It distinguishes keys
// with the same kid, and is safe to log.
func (k *Key) Thumbprint() string { return k.thumbprint }

// DeclaredAmong reports whether the key's entry in the set declares one of the
// algorithms (alg), or declares none.
func (k *Key) DeclaredAmong(algorithms []string) bool {
	return k.declared == nil || slices.ContainsFunc(k.declared, func(name string) bool { return slices.Contains(algorithms, name) })
}

// Equal reports whether two keys have the same kid, key material and algorithms.
func (k *Key) Equal(other *Key) bool {
	return k.sameKey(other) && slices.Equal(k.declared, other.declared)
}

// sameKey reports whether two entries of a set describe one key.
func (k *Key) sameKey(other *Key) bool { return k.id == other.id && k.thumbprint == other.thumbprint }

// union merges two entries for one key. The result permits all algorithms that either
// entry permits.
func (k *Key) union(other *Key) *Key {
	all := *k
	all.algorithms = sortedUnion(k.algorithms, other.algorithms)
	all.declared = nil
	if k.declared != nil && other.declared != nil {
		all.declared = sortedUnion(k.declared, other.declared)
	}
	return &all
}

func sortedUnion(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// ambiguousWith reports whether a token's alg fails to select one of two keys with the
// same kid. A key that declares no algorithm is ambiguous with every other key.
func (k *Key) ambiguousWith(other *Key) bool {
	return k.declared == nil || slices.ContainsFunc(k.algorithms, other.Permits)
}

// Permits reports whether the key may verify signatures of the algorithm. The algorithm
// must match the key's type and curve, and one that the key declares, if it declares
// any. EdDSA and Ed25519 are names of one algorithm.
func (k *Key) Permits(algorithm string) bool { return slices.Contains(k.algorithms, algorithm) }

var (
	// ErrSignature means that a signature is not valid.
	ErrSignature = errors.New("the signature is not valid")
	// ErrAlgorithm means that a key does not permit an algorithm.
	ErrAlgorithm = errors.New("the key does not permit the algorithm")
)

// Verify verifies a signature over signingInput with exactly this algorithm. The error is
// [ErrAlgorithm] if the key does not permit the algorithm, else [ErrSignature].
func Verify(algorithm string, key *Key, signingInput, signature []byte) error {
	if !key.Permits(algorithm) {
		return ErrAlgorithm
	}
	if !validSignature(algorithm, key.public, signingInput, signature) {
		return ErrSignature
	}
	return nil
}

func validSignature(algorithm string, public crypto.PublicKey, signingInput, signature []byte) bool {
	switch public := public.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(public, signingInput, signature)
	case *ecdsa.PublicKey:
		_, digest := hash(algorithm, signingInput)
		return verifyECDSA(public, digest, signature)
	case *rsa.PublicKey:
		h, digest := hash(algorithm, signingInput)
		if strings.HasPrefix(algorithm, "PS") {
			options := rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash} // RFC 7518 section 3.5
			return rsa.VerifyPSS(public, h, digest, signature, &options) == nil
		}
		return rsa.VerifyPKCS1v15(public, h, digest, signature) == nil
	default:
		return false
	}
}

// hash hashes the input with the SHA-2 function that the algorithm's name ends with:
// 256, 384 or 512.
func hash(algorithm string, input []byte) (crypto.Hash, []byte) {
	switch algorithm[len(algorithm)-3:] {
	case "384":
		digest := sha512.Sum384(input)
		return crypto.SHA384, digest[:]
	case "512":
		digest := sha512.Sum512(input)
		return crypto.SHA512, digest[:]
	default:
		digest := sha256.Sum256(input)
		return crypto.SHA256, digest[:]
	}
}

// verifyECDSA verifies a signature in JWS format: r and s, each of the size of the
// curve's field (RFC 7518 section 3.4), not DER.
func verifyECDSA(public *ecdsa.PublicKey, digest, signature []byte) bool {
	size := (public.Params().BitSize + 7) / 8
	if len(signature) != 2*size {
		return false
	}
	r := new(big.Int).SetBytes(signature[:size])
	s := new(big.Int).SetBytes(signature[size:])
	return ecdsa.Verify(public, digest, r, s)
}
