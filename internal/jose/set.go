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
	// MaxSetSize is how long a set may be, in bytes.
	MaxSetSize = 512 << 10
	// MaxSetKeys is how many keys it may have, usable or not.
	MaxSetKeys = 100

	minRSABits = 2048
	// A signature of 4,096 bits costs 10 times as much to verify as one of
	// 2,048, and one of 8,192 nearly 40 times.
	maxRSABits = 4096
)

// ErrPrivateKey marks an entry of a set that holds a private or a symmetric
// key. It is never loaded, and its issuer should be told.
var ErrPrivateKey = errors.New("it holds private or symmetric key material")

var (
	errSet          = errors.New("the JWK set is not a JSON object with a list of keys")
	errAmbiguous    = errors.New("another key has the same kid, and alg does not tell the two apart")
	errNoKeyID      = errors.New("it has no kid, which only the single usable key of a set may lack")
	errKeyID        = fmt.Errorf("its kid is not a string of at most %d bytes without control characters", maxKeyID)
	errType         = errors.New("its kty is not RSA, EC or OKP")
	errUse          = errors.New("it is not for verifying signatures")
	errAlg          = errors.New("its alg does not fit the key")
	errCurve        = errors.New("its curve is not P-256, P-384, P-521 or Ed25519")
	errMaterial     = errors.New("its material cannot be read")
	errRSASize      = fmt.Errorf("its modulus is not odd and of %d to %d bits", minRSABits, maxRSABits)
	errRSAExponent  = errors.New("its exponent is not odd and between 3 and 2^31")
	errPoint        = errors.New("its coordinates are not a point of the curve, each as long as the field")
	errEd25519Point = errors.New("its x is not a point of 32 bytes that can be a public key")
)

// Set is what was found in a JWK set.
type Set struct {
	// Keys are the usable ones. There is at least one.
	Keys Keys
	// Skipped are the entries that are not used.
	Skipped []Skipped
}

// Skipped is an entry of a JWK set that is not used.
type Skipped struct {
	// Index counts the entries from 0.
	Index int
	// Reason is a sentence about the entry ("it ..."). It quotes nothing of it.
	Reason error
}

// Keys are public keys by kid, and by algorithm where several have one kid. They
// are immutable; the zero Keys has none.
type Keys struct {
	byID map[string][]*Key
	// single: every sound entry of the set is about one and the same key.
	single bool
}

// Find returns the key for a token with this kid and alg. If no key with the kid
// permits the algorithm, it returns another key with the kid, and nil if there is
// none. An empty kid means the single key of the set, if there is no other.
func (k Keys) Find(id, algorithm string) *Key {
	if id == "" {
		return k.only(algorithm)
	}
	return choose(k.byID[id], algorithm)
}

func (k Keys) only(algorithm string) *Key {
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

// Single reports whether the set is about one key only, so that a token need not
// name it.
func (k Keys) Single() bool { return k.single }

// Has reports whether this very key is one of them.
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

// Len is the number of keys.
func (k Keys) Len() int {
	n := 0
	for _, keys := range k.byID {
		n += len(keys)
	}
	return n
}

// Keeping returns the same keys, with those of before in place of their equals.
func (k Keys) Keeping(before Keys) Keys {
	kept := Keys{byID: make(map[string][]*Key, len(k.byID)), single: k.single}
	for id, keys := range k.byID {
		for _, key := range keys {
			if old := slices.IndexFunc(before.byID[id], key.Equal); old >= 0 {
				key = before.byID[id][old]
			}
			kept.byID[id] = append(kept.byID[id], key)
		}
	}
	return kept
}

// candidate is a key and the entries that are about it.
type candidate struct {
	key     *Key
	entries []int
}

// ParseSet reads a JWK set (RFC 7517 section 5). Entries that are broken, of
// another kind or not for signatures are skipped, and the others kept. Entries with
// the same kid and the same thumbprint are one key, which permits what any of them
// does. Different keys may share a kid (RFC 7517 section 4.5) if each declares its
// alg and no other permits that; the others are skipped, because nobody can say
// which was meant. A set without a usable key is an error.
func ParseSet(data []byte) (Set, error) {
	entries, err := entriesOf(data)
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
	set := Set{Keys: Keys{byID: map[string][]*Key{}, single: areOne(candidates)}, Skipped: skipped}
	for _, c := range candidates {
		if err := c.problem(candidates, set.Keys.single); err != nil {
			set.skip(c, err)
			continue
		}
		set.Keys.byID[c.key.id] = append(set.Keys.byID[c.key.id], c.key)
	}
	slices.SortFunc(set.Skipped, func(a, b Skipped) int { return cmp.Compare(a.Index, b.Index) })
	if len(set.Keys.byID) == 0 {
		return Set{}, fmt.Errorf("the JWK set has no usable key among its %d%s", len(entries), firstReason(set.Skipped))
	}
	return set, nil
}

func merge(candidates []candidate, key *Key, entry int) []candidate {
	for i := range candidates {
		if known := &candidates[i]; known.key.same(key) {
			known.key, known.entries = known.key.union(key), append(known.entries, entry)
			return candidates
		}
	}
	return append(candidates, candidate{key, []int{entry}})
}

func areOne(candidates []candidate) bool {
	other := func(c candidate) bool { return c.key.thumbprint != candidates[0].key.thumbprint }
	return len(candidates) > 0 && !slices.ContainsFunc(candidates, other)
}

// problem says why a key cannot be told from others of its set.
func (c candidate) problem(all []candidate, single bool) error {
	if c.key.id == "" && !single {
		return errNoKeyID
	}
	for _, other := range all {
		if other.key.id == c.key.id && other.key.thumbprint != c.key.thumbprint && c.key.rivals(other.key) {
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

// entriesOf returns the elements of keys. They are valid JSON but may be
// anything: one bad entry must not cost the others, so what is wrong in an entry
// is left to be found there.
func entriesOf(data []byte) ([]jsontext.Value, error) {
	if len(data) > MaxSetSize {
		return nil, fmt.Errorf("the JWK set is longer than %d bytes", MaxSetSize)
	}
	set := jsontext.Value(data)
	if !set.IsValid(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)) || set.Kind() != '{' {
		return nil, errSet
	}
	var keys jsontext.Value
	for name, rest := next(opened(data)); name != nil; name, rest = next(rest) {
		var value jsontext.Value
		value, rest = next(rest)
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
	for entry, rest := next(opened(list)); entry != nil; entry, rest = next(rest) {
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
	object = object.withoutNulls()
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
	key, err := material(object)
	if err != nil {
		return nil, err
	}
	key.id = id
	return key, key.narrow(object)
}

// forVerifying follows RFC 7517 sections 4.2 and 4.3.
func forVerifying(object Object) bool {
	use, present, err := object.Text("use")
	if err != nil || present && use != "sig" {
		return false
	}
	operations, present, err := object.List("key_ops")
	return err == nil && (!present || slices.Contains(operations, "verify"))
}

// narrow holds a key to the algorithm that it declares, if it does.
func (k *Key) narrow(object Object) error {
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

// material reads the key itself. The library that parses it is shown nothing
// but the members that make the key.
func material(object Object) (*Key, error) {
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
	key, err := check(parsed)
	if err != nil {
		return nil, err
	}
	key.thumbprint, err = thumbprint(parsed)
	return key, err
}

// check does what the library does not: that accepts keys that are too weak, too
// dear to use, or that make a verification panic.
func check(parsed jwk.Key) (*Key, error) {
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
	// The library cuts an exponent that is longer than an int to fit.
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
	algorithm, known := ecAlgorithms[parsed.Crv().String()]
	if !known {
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
