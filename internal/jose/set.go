package jose

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/lestrrat-go/jwx/v2/jwk"
)

// Bounds of a JWK set.
const (
	// MaxSetSize is the maximum length of a set, in bytes.
	MaxSetSize = 512 << 10
	// MaxSetKeys is the maximum number of entries, usable or not.
	MaxSetKeys = 100

	minRSABits = 2048
	// Verifying a signature costs 10 times as much with 4,096 bits as with 2,048, and
	// nearly 40 times as much with 8,192.
	maxRSABits = 4096
)

// ErrPrivateKey is the reason for skipping an entry of a set with a private or symmetric
// key. Its issuer publishes a secret, so an operator should notify the issuer.
var ErrPrivateKey = errors.New("it contains private or symmetric key material")

var (
	errSet          = errors.New("the JWK set is not a JSON object with a list of keys")
	errAmbiguous    = errors.New("another key has the same kid, and alg does not distinguish the two")
	errNoKeyID      = errors.New("it has no kid, which only the single usable key of a set may lack")
	errKeyID        = fmt.Errorf("its kid is not a string of at most %d bytes without control characters", maxKeyID)
	errType         = errors.New("its kty is not RSA, EC or OKP")
	errUse          = errors.New("it is not for verifying signatures")
	errAlg          = errors.New("its alg does not match the key")
	errCurve        = errors.New("its curve is not P-256, P-384, P-521 or Ed25519")
	errMaterial     = errors.New("its key material cannot be parsed")
	errRSASize      = fmt.Errorf("its modulus is not odd and of %d to %d bits", minRSABits, maxRSABits)
	errRSAExponent  = errors.New("its exponent is not odd and between 3 and 2^31")
	errPoint        = errors.New("its coordinates are not a point of the curve, each as long as the field")
	errEd25519Point = errors.New("its x is not a point of 32 bytes that can be a public key")
)

// Set is a parsed JWK set.
type Set struct {
	// Keys are the usable keys, at least one.
	Keys Keys
	// Skipped are the unusable entries, in their order.
	Skipped []Skipped
}

// Skipped is an unusable entry of a JWK set.
type Skipped struct {
	// Index counts the entries from 0.
	Index int
	// Reason is a sentence about the entry ("it ..."). It quotes nothing of the entry.
	Reason error
}

// Keys are public keys, found by kid and, if several keys share it, by algorithm. They
// are immutable and safe for concurrent use. The zero Keys is empty.
type Keys struct {
	byID map[string][]*Key
	// single: all valid entries of the set describe the same key.
	single bool
}

// Find returns the key for a token with this kid and alg. If no key with the kid
// permits the algorithm, it returns another key with the kid; nil if there is none. For
// an empty kid it returns the single key of the set, and nil if there are several.
func (k Keys) Find(id, algorithm string) *Key {
	if id == "" {
		return k.findSingle(algorithm)
	}
	return choose(k.byID[id], algorithm)
}

func (k Keys) findSingle(algorithm string) *Key {
	if !k.single {
		return nil
	}
	return choose(slices.Collect(k.All()), algorithm)
}

func choose(candidates []*Key, algorithm string) *Key {
	for _, key := range candidates {
		if key.Permits(algorithm) {
			return key
		}
	}
	if len(candidates) == 0 {
		return nil
	}
	return candidates[0]
}

// Single reports whether the set describes one key only. A token then needs no kid.
func (k Keys) Single() bool { return k.single }

// Has reports whether key is one of the keys. It compares pointers.
func (k Keys) Has(key *Key) bool { return slices.Contains(k.byID[key.id], key) }

// All returns the keys in no particular order.
func (k Keys) All() iter.Seq[*Key] {
	return func(yield func(*Key) bool) {
		for _, keys := range k.byID {
			for _, key := range keys {
				if !yield(key) {
					return
				}
			}
		}
	}
}

// Len returns the number of keys.
func (k Keys) Len() int {
	n := 0
	for _, keys := range k.byID {
		n += len(keys)
	}
	return n
}

// Reuse returns the same keys, but with the *Key of before for each equal key. So [Keys.Has]
// holds for an unchanged key after a set is fetched again.
func (k Keys) Reuse(before Keys) Keys {
	reused := Keys{byID: make(map[string][]*Key, len(k.byID)), single: k.single}
	for id, keys := range k.byID {
		for _, key := range keys {
			if old := slices.IndexFunc(before.byID[id], key.Equal); old >= 0 {
				key = before.byID[id][old]
			}
			reused.byID[id] = append(reused.byID[id], key)
		}
	}
	return reused
}

// candidate is a key with the indices of its entries.
type candidate struct {
	key     *Key
	entries []int
}

// ParseSet parses a JWK set (RFC 7517 section 5) of at most [MaxSetSize] bytes. It skips
// entries that are invalid, of an unsupported type or not for verifying signatures.
// Entries with the same kid and thumbprint are one key, which permits the algorithms of
// all of them. Different keys may share a kid (RFC 7517 section 4.5) if each declares an
// alg that no other permits; otherwise they are ambiguous and skipped. A set without a
// usable key is an error.
func ParseSet(data []byte) (Set, error) {
	entries, err := parseEntries(data)
	if err != nil {
		return Set{}, err
	}
	var candidates []candidate
	var skipped []Skipped
	for i, entry := range entries {
		key, err := parseKey(entry)
		if err != nil {
			skipped = append(skipped, Skipped{i, err})
			continue
		}
		candidates = merge(candidates, key, i)
	}
	set := Set{Keys: Keys{byID: map[string][]*Key{}, single: haveOneKey(candidates)}, Skipped: skipped}
	for _, c := range candidates {
		if err := c.checkUnique(candidates, set.Keys.single); err != nil {
			set.skip(c, err)
			continue
		}
		set.Keys.byID[c.key.id] = append(set.Keys.byID[c.key.id], c.key)
	}
	slices.SortFunc(set.Skipped, func(a, b Skipped) int { return cmp.Compare(a.Index, b.Index) })
	if len(set.Keys.byID) == 0 {
		return Set{}, fmt.Errorf("none of the %d keys of the JWK set is usable%s", len(entries), firstReason(set.Skipped))
	}
	return set, nil
}

func merge(candidates []candidate, key *Key, entry int) []candidate {
	for i := range candidates {
		if c := &candidates[i]; c.key.sameKey(key) {
			c.key, c.entries = c.key.union(key), append(c.entries, entry)
			return candidates
		}
	}
	return append(candidates, candidate{key, []int{entry}})
}

func haveOneKey(candidates []candidate) bool {
	other := func(c candidate) bool { return c.key.thumbprint != candidates[0].key.thumbprint }
	return len(candidates) > 0 && !slices.ContainsFunc(candidates, other)
}

// checkUnique returns an error if kid and alg do not distinguish a key from the other
// keys of its set.
func (c candidate) checkUnique(all []candidate, single bool) error {
	if c.key.id == "" && !single {
		return errNoKeyID
	}
	for _, other := range all {
		if other.key.id == c.key.id && other.key.thumbprint != c.key.thumbprint && c.key.ambiguousWith(other.key) {
			return errAmbiguous
		}
	}
	return nil
}

func (s *Set) skip(c candidate, reason error) {
	for _, entry := range c.entries {
		s.Skipped = append(s.Skipped, Skipped{entry, reason})
	}
}

func firstReason(skipped []Skipped) string {
	if len(skipped) == 0 {
		return ""
	}
	return fmt.Sprintf("; the first: %v", skipped[0].Reason)
}

// parseEntries returns the elements of keys. They are valid JSON, but may have any type,
// repeated names or invalid UTF-8: parseKey checks each entry alone, so that a bad entry
// does not affect the others.
func parseEntries(data []byte) ([]jsontext.Value, error) {
	if len(data) > MaxSetSize {
		return nil, fmt.Errorf("the JWK set is longer than %d bytes", MaxSetSize)
	}
	set := jsontext.Value(data)
	if !set.IsValid(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)) || set.Kind() != '{' {
		return nil, errSet
	}
	var keys jsontext.Value
	for name, rest := nextValue(afterBracket(data)); name != nil; name, rest = nextValue(rest) {
		var value jsontext.Value
		value, rest = nextValue(rest)
		if string(name) != `"keys"` {
			continue
		}
		if keys != nil || value.Kind() != '[' {
			return nil, errSet
		}
		keys = value
	}
	if keys == nil {
		return nil, errSet
	}
	return elements(keys)
}

func elements(list jsontext.Value) ([]jsontext.Value, error) {
	var entries []jsontext.Value
	for entry, rest := nextValue(afterBracket(list)); entry != nil; entry, rest = nextValue(rest) {
		if len(entries) == MaxSetKeys {
			return nil, fmt.Errorf("the JWK set has more than %d keys", MaxSetKeys)
		}
		entries = append(entries, entry)
	}
	return entries, nil
}

func parseKey(entry jsontext.Value) (*Key, error) {
	object, err := ParseObject(entry)
	if err != nil {
		return nil, fmt.Errorf("it %w", err)
	}
	object = object.withoutAllNulls()
	for _, name := range [...]string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"} {
		if object.Has(name) {
			return nil, ErrPrivateKey
		}
	}
	id, _, err := object.Text("kid")
	if err != nil || len(id) > maxKeyID {
		return nil, errKeyID
	}
	if !forVerifying(object) {
		return nil, errUse
	}
	key, err := parseMaterial(object)
	if err != nil {
		return nil, err
	}
	key.id = id
	return key, key.restrict(object)
}

// forVerifying reports whether use and key_ops allow verification (RFC 7517 sections 4.2,
// 4.3).
func forVerifying(object Object) bool {
	use, present, err := object.Text("use")
	if err != nil || present && use != "sig" {
		return false
	}
	operations, present, err := object.List("key_ops")
	return err == nil && (!present || slices.Contains(operations, "verify"))
}

// restrict restricts a key to its declared algorithm, if it has one.
func (k *Key) restrict(object Object) error {
	declared, present, err := object.Text("alg")
	switch {
	case !present:
		return nil
	case err != nil || !k.Permits(declared):
		return errAlg
	}
	k.declared = []string{declared}
	if !slices.Contains(eddsaAlgorithms, declared) {
		k.algorithms = []string{declared}
	}
	return nil
}

// parseMaterial parses the key material. The library sees only the members that it
// needs.
func parseMaterial(object Object) (*Key, error) {
	kty, _, err := object.Text("kty")
	names := map[string][]string{"RSA": {"n", "e"}, "EC": {"crv", "x", "y"}, "OKP": {"crv", "x"}}[kty]
	if err != nil || names == nil {
		return nil, errType
	}
	bare := fmt.Appendf(nil, `{"kty":%q`, kty)
	for _, name := range names {
		value := object.get(name)
		if value.Kind() != '"' {
			return nil, errMaterial
		}
		bare = append(fmt.Appendf(bare, `,%q:`, name), value...)
	}
	parsed, err := jwk.ParseKey(append(bare, '}'))
	if err != nil {
		return nil, errMaterial
	}
	key, err := checkKey(parsed)
	if err != nil {
		return nil, err
	}
	key.thumbprint, err = thumbprint(parsed)
	return key, err
}

// checkKey applies checks that the library lacks. The library accepts keys that are too
// weak, too expensive to use, or that make a verification panic.
func checkKey(parsed jwk.Key) (*Key, error) {
	switch parsed := parsed.(type) {
	case jwk.RSAPublicKey:
		return rsaKey(parsed)
	case jwk.ECDSAPublicKey:
		return ecKey(parsed)
	case jwk.OKPPublicKey:
		return ed25519Key(parsed)
	default:
		return nil, errType
	}
}

func rsaKey(parsed jwk.RSAPublicKey) (*Key, error) {
	// The library truncates an exponent that overflows an int.
	if len(parsed.E()) > 4 {
		return nil, errRSAExponent
	}
	var public rsa.PublicKey
	if err := parsed.Raw(&public); err != nil {
		return nil, errMaterial
	}
	switch bits := public.N.BitLen(); {
	case bits < minRSABits || bits > maxRSABits || public.N.Bit(0) == 0:
		return nil, errRSASize
	case public.E < 3 || public.E >= 1<<31 || public.E%2 == 0:
		return nil, errRSAExponent
	}
	return &Key{public: &public, algorithms: rsaAlgorithms}, nil
}

func ecKey(parsed jwk.ECDSAPublicKey) (*Key, error) {
	algorithm, ok := ecAlgorithms[parsed.Crv().String()]
	if !ok {
		return nil, errCurve
	}
	var public ecdsa.PublicKey
	if err := parsed.Raw(&public); err != nil {
		return nil, errMaterial
	}
	size := (public.Params().BitSize + 7) / 8
	if _, err := public.ECDH(); err != nil || len(parsed.X()) != size || len(parsed.Y()) != size {
		return nil, errPoint
	}
	return &Key{public: &public, algorithms: []string{algorithm}}, nil
}

func ed25519Key(parsed jwk.OKPPublicKey) (*Key, error) {
	if parsed.Crv().String() != "Ed25519" {
		return nil, errCurve
	}
	x := parsed.X()
	if len(x) != ed25519.PublicKeySize || smallOrder(x) {
		return nil, errEd25519Point
	}
	return &Key{public: ed25519.PublicKey(x), algorithms: eddsaAlgorithms}, nil
}
