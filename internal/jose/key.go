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

//nolint:gochecknoglobals // tables that nothing writes
var (
	rsaAlgorithms   = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
	ecAlgorithms    = map[string]string{"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
	eddsaAlgorithms = []string{"EdDSA", "Ed25519"}
)

// Algorithms returns the names of all algorithms there are. Ed25519 is the name
// that RFC 9864 gives to EdDSA with an Ed25519 key.
func Algorithms() []string {
	return slices.Concat(rsaAlgorithms, []string{"ES256", "ES384", "ES512"}, eddsaAlgorithms)
}

// Key is a public key to verify signatures with. It is immutable and safe for
// concurrent use. [ParseSet] makes Keys, of sound material only.
type Key struct {
	id         string
	thumbprint string
	declared   []string // sorted; nil: none
	algorithms []string
	public     crypto.PublicKey
}

// ID is the key's kid; empty: it has none.
func (k *Key) ID() string { return k.id }

// Thumbprint is the base64url SHA-256 thumbprint of RFC 7638: it tells keys
// apart that have the same kid, and may be logged.
func (k *Key) Thumbprint() string { return k.thumbprint }

// Declared returns the values of alg that the set gives for the key, sorted. Nil:
// it gives none.
func (k *Key) Declared() []string { return slices.Clone(k.declared) }

// DeclaredAmong reports whether the key declares one of the algorithms, or none at
// all.
func (k *Key) DeclaredAmong(algorithms []string) bool {
	return k.declared == nil || slices.ContainsFunc(k.declared, func(name string) bool { return slices.Contains(algorithms, name) })
}

// Equal reports whether two keys have the same kid and the same material, and
// permit the same.
func (k *Key) Equal(other *Key) bool {
	return k.same(other) && slices.Equal(k.declared, other.declared)
}

// same reports whether two entries of a set are about one key.
func (k *Key) same(other *Key) bool { return k.id == other.id && k.thumbprint == other.thumbprint }

// union returns a key that permits what either of two entries about it permits.
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

// rivals reports whether an algorithm cannot tell which of two keys with one kid
// is meant. A key that declares no algorithm is a rival of every other.
func (k *Key) rivals(other *Key) bool {
	return k.declared == nil || slices.ContainsFunc(k.algorithms, other.Permits)
}

// Permits reports whether a signature of the algorithm may be verified with the
// key: the algorithm must fit its type and curve, and be one that it declares, if
// it does. EdDSA and Ed25519 are names of one algorithm.
func (k *Key) Permits(algorithm string) bool { return slices.Contains(k.algorithms, algorithm) }

var (
	// ErrSignature means that a signature does not hold.
	ErrSignature = errors.New("the signature does not hold")
	// ErrAlgorithm means that a key does not permit an algorithm.
	ErrAlgorithm = errors.New("the key does not permit the algorithm")
)

// Verify checks a signature over signingInput with exactly the algorithm named,
// which must be one that the key permits. The error is [ErrSignature] or
// [ErrAlgorithm].
func Verify(algorithm string, key *Key, signingInput, signature []byte) error {
	if !key.Permits(algorithm) {
		return ErrAlgorithm
	}
	if !holds(algorithm, key.public, signingInput, signature) {
		return ErrSignature
	}
	return nil
}

func holds(algorithm string, public crypto.PublicKey, signingInput, signature []byte) bool {
	switch public := public.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(public, signingInput, signature)
	case *ecdsa.PublicKey:
		_, digest := hash(algorithm, signingInput)
		return verifyECDSA(public, digest, signature)
	case *rsa.PublicKey:
		h, digest := hash(algorithm, signingInput)
		if strings.HasPrefix(algorithm, "PS") {
			salted := rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash} // RFC 7518 section 3.5
			return rsa.VerifyPSS(public, h, digest, signature, &salted) == nil
		}
		return rsa.VerifyPKCS1v15(public, h, digest, signature) == nil
	default:
		return false
	}
}

// hash digests the input as the algorithm's name ends: 256, 384 or 512.
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

// verifyECDSA takes the signature as JWS writes it: r and s, each as long as
// the curve's field (RFC 7518 section 3.4), and not in DER.
func verifyECDSA(public *ecdsa.PublicKey, digest, signature []byte) bool {
	size := (public.Params().BitSize + 7) / 8
	if len(signature) != 2*size {
		return false
	}
	r := new(big.Int).SetBytes(signature[:size])
	s := new(big.Int).SetBytes(signature[size:])
	return ecdsa.Verify(public, digest, r, s)
}
