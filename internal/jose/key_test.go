package jose_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"math/big"
	"slices"
	"testing"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
)

const signingInput = "aGVhZGVy.cGF5bG9hZA"

// load passes a signer's public key through a JWK set.
func load(t testing.TB, s *josetest.Signer, members ...josetest.JSON) *jose.Key {
	t.Helper()
	set, err := jose.ParseSet(josetest.Set(s.JWK(members...)))
	if err != nil {
		t.Fatal(err)
	}
	return set.Keys.Find(s.KeyID, s.Algorithm)
}

func TestVerify_onlyWithTheSignaturesAlgorithm(t *testing.T) {
	rsaKey, p256 := josetest.New(t, "RS256", "k"), josetest.New(t, "ES256", "k")
	ed := josetest.New(t, "EdDSA", "k")
	signers := []*josetest.Signer{p256, josetest.New(t, "ES384", "k"), josetest.New(t, "ES512", "k"), ed, ed.As("Ed25519", "k")}
	for _, algorithm := range []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"} {
		signers = append(signers, rsaKey.As(algorithm, "k"))
	}
	if len(signers) != len(jose.Algorithms()) {
		t.Errorf("%d of %d algorithms are tested", len(signers), len(jose.Algorithms()))
	}
	for _, signer := range signers {
		key, signature := load(t, signer), signer.Sign(signingInput)
		for _, algorithm := range append(jose.Algorithms(), "none", "", "HS256", "rs256", "RS256 ", "ES256K", "256") {
			err := jose.Verify(algorithm, key, []byte(signingInput), signature)
			same := algorithm == signer.Algorithm || algorithm[:min(2, len(algorithm))] == "Ed" && signer.Algorithm[:2] == "Ed"
			switch {
			case same && err != nil:
				t.Errorf("%s: %v", algorithm, err)
			case !same && err == nil:
				t.Errorf("a signature under %s holds under %q", signer.Algorithm, algorithm)
			case !same && errors.Is(err, jose.ErrAlgorithm) == key.Permits(algorithm):
				t.Errorf("a signature under %s, verified under %q: %v", signer.Algorithm, algorithm, err)
			}
		}
		if err := jose.Verify(signer.Algorithm, key, []byte(signingInput+"x"), signature); !errors.Is(err, jose.ErrSignature) {
			t.Errorf("%s: other input: %v", signer.Algorithm, err)
		}
		for _, bad := range [][]byte{nil, signature[1:], append(bytes.Clone(signature), 0), append([]byte{0}, signature...), make([]byte, len(signature)), flip(signature)} {
			if err := jose.Verify(signer.Algorithm, key, []byte(signingInput), bad); !errors.Is(err, jose.ErrSignature) {
				t.Errorf("%s: signature %x: %v", signer.Algorithm, bad, err)
			}
		}
	}
}

func flip(signature []byte) []byte {
	other := bytes.Clone(signature)
	other[len(other)/2] ^= 1
	return other
}

func TestKeyPermits_declaredAlgorithm(t *testing.T) {
	signer := josetest.New(t, "RS256", "k")
	narrow := load(t, signer, josetest.JSON{"alg": "PS256"})
	if narrow.DeclaredAmong([]string{"RS256"}) || !narrow.DeclaredAmong([]string{"RS256", "PS256"}) || !narrow.Permits("PS256") || narrow.Permits("RS256") {
		t.Error("a key with alg PS256 does not declare and permit PS256 alone")
	}
	if err := jose.Verify("RS256", narrow, []byte(signingInput), signer.Sign(signingInput)); !errors.Is(err, jose.ErrAlgorithm) {
		t.Errorf("a key with alg PS256 verifies RS256: %v", err)
	}
	if wide := load(t, signer); !wide.DeclaredAmong(nil) || !wide.Permits("RS512") || !wide.Permits("PS384") || wide.Permits("ES256") {
		t.Error("an RSA key without alg does not permit what its type allows")
	}
	for _, name := range []string{"EdDSA", "Ed25519"} {
		if key := load(t, josetest.New(t, "EdDSA", "k"), josetest.JSON{"alg": name}); !key.Permits("EdDSA") || !key.Permits("Ed25519") || !key.DeclaredAmong([]string{name}) || key.DeclaredAmong(nil) {
			t.Errorf("an Ed25519 key with alg %s", name)
		}
	}
}

func TestKeyEqual(t *testing.T) {
	signer := josetest.New(t, "RS256", "k")
	key := load(t, signer)
	for name, tt := range map[string]struct {
		other *jose.Key
		want  bool
	}{
		"the same, parsed again":       {load(t, signer), true},
		"with members of no account":   {load(t, signer, josetest.JSON{"use": nil, "x5t": "AAAA"}), true},
		"with another kid":             {load(t, signer.As("RS256", "l")), false},
		"that declares an algorithm":   {load(t, signer, josetest.JSON{"alg": "RS256"}), false},
		"of other material":            {load(t, josetest.New(t, "RS256", "k")), false},
		"of another type, of that kid": {load(t, josetest.New(t, "ES256", "k")), false},
	} {
		if key.Equal(tt.other) != tt.want || tt.other.Equal(key) != tt.want {
			t.Errorf("a key %s: equal = %v", name, !tt.want)
		}
	}
}

func TestVerify_saltLengthOfPSS(t *testing.T) {
	signer := josetest.New(t, "PS256", "k")
	key := load(t, signer)
	digest := sha256.Sum256([]byte(signingInput))
	for _, length := range []int{20, 31, 32, 64, rsa.PSSSaltLengthAuto} { // the last: as long as fits
		signature, err := rsa.SignPSS(rand.Reader, signer.Private.(*rsa.PrivateKey), crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: length})
		if err != nil {
			t.Fatal(err)
		}
		if err := jose.Verify("PS256", key, []byte(signingInput), signature); (err == nil) != (length == 32) {
			t.Errorf("salt of %d bytes: %v", length, err)
		}
	}
}

func TestMalformedECDSASignaturesAreRefused(t *testing.T) {
	signer := josetest.New(t, "ES256", "k")
	key, private := load(t, signer), signer.Private.(*ecdsa.PrivateKey)
	n := private.Params().N
	signature := signer.Sign(signingInput)
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	join := func(r, s *big.Int) []byte {
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
	if err != nil {
		t.Fatal(err)
	}
	zero, all := new(big.Int), new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 256), big.NewInt(1))
	for name, bad := range map[string][]byte{
		"(0, 0)": join(zero, zero), "(0, s)": join(zero, s), "(r, 0)": join(r, zero),
		"(n, s)": join(n, s), "(r, n)": join(r, n), "(n, n)": join(n, n), "(r, 2^256-1)": join(r, all),
		"DER": der, "r, a zero and s": slices.Concat(signature[:32], []byte{0}, signature[32:]), "each a byte longer": slices.Concat([]byte{0}, signature[:32], []byte{0}, signature[32:]),
	} {
		if err := jose.Verify("ES256", key, []byte(signingInput), bad); !errors.Is(err, jose.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// (r, n-s) is valid too: a token may have more than one valid signature.
	if err := jose.Verify("ES256", key, []byte(signingInput), join(r, new(big.Int).Sub(n, s))); err != nil {
		t.Errorf("(r, n-s): %v", err)
	}
}

// The signature (1, 0), which needs no private key, is valid for each such "key" and at least
// one message in eight: without the check in ParseSet anyone could sign.
func TestEd25519KeysOfSmallOrderAreRefused(t *testing.T) {
	identity := make([]byte, ed25519.SignatureSize)
	identity[0] = 1
	tried := 0
	for _, hex := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	} {
		for _, sign := range []byte{0, 0x80} {
			x := new(big.Int)
			x.SetString(hex, 16)
			point := x.FillBytes(make([]byte, 32))
			point[31] |= sign
			forged := false
			for i := range 256 {
				forged = forged || ed25519.Verify(point, []byte{byte(i)}, identity)
			}
			if forged {
				tried++
			} else if sign == 0 {
				t.Errorf("%x is not of small order: the list in the test is wrong", point)
			}
			jwk := josetest.JSON{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": josetest.Base64(point)}
			if _, err := jose.ParseSet(josetest.Set(jwk)); err == nil {
				t.Errorf("%x was accepted as a key", point)
			}
		}
	}
	if tried < 12 {
		t.Errorf("only %d points were of small order", tried)
	}
}
