package jose_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
)

type jwk = josetest.JSON

func TestParseSet_skipsBadEntries(t *testing.T) {
	good := josetest.New(t, "ES256", "good")
	r, p384, ed := josetest.New(t, "RS256", "bad"), josetest.New(t, "ES384", "bad"), josetest.New(t, "EdDSA", "bad")
	modulus := func(bits uint, low int64) string { // of that many bits
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return josetest.Base64(n.Add(n, big.NewInt(low)).Bytes())
	}
	e := func(e ...byte) string { return josetest.Base64(e) }
	x384, err := base64.RawURLEncoding.DecodeString(p384.JWK()["x"].(string))
	if err != nil {
		t.Fatal(err)
	}
	y384, err := base64.RawURLEncoding.DecodeString(p384.JWK()["y"].(string))
	if err != nil {
		t.Fatal(err)
	}
	private := josetest.Base64([]byte("private"))
	cases := map[string]any{
		"a string":                  "key",
		"null":                      nil,
		"no kty":                    jwk{"kid": "bad"},
		"kty AKP (ML-DSA)":          jwk{"kty": "AKP", "kid": "bad", "alg": "ML-DSA-44", "pub": "AAAA"},
		"kty in lower case":         r.JWK(jwk{"kty": "rsa"}),
		"kty, a number":             r.JWK(jwk{"kty": 1}),
		"kid missing":               r.JWK(jwk{"kid": nil}),
		"kid empty":                 r.JWK(jwk{"kid": ""}),
		"kid, a number":             r.JWK(jwk{"kid": 1}),
		"kid too long":              r.JWK(jwk{"kid": strings.Repeat("k", 257)}),
		"kid with a line feed":      r.JWK(jwk{"kid": "a\nb"}),
		"use enc":                   r.JWK(jwk{"use": "enc"}),
		"use, a list":               r.JWK(jwk{"use": []string{"sig"}}),
		"key_ops encrypt":           r.JWK(jwk{"use": nil, "key_ops": []string{"encrypt"}}),
		"key_ops empty":             r.JWK(jwk{"key_ops": []string{}}),
		"key_ops, a string":         r.JWK(jwk{"key_ops": "verify"}),
		"alg of encryption":         r.JWK(jwk{"alg": "RSA-OAEP"}),
		"alg of another type":       r.JWK(jwk{"alg": "ES256"}),
		"alg none":                  r.JWK(jwk{"alg": "none"}),
		"alg HS256 on an RSA key":   r.JWK(jwk{"alg": "HS256"}),
		"alg, a number":             r.JWK(jwk{"alg": 256}),
		"ES256 on P-384":            p384.JWK(jwk{"alg": "ES256"}),
		"a symmetric key":           jwk{"kty": "oct", "kid": "bad", "alg": "HS256", "k": private},
		"a private RSA key":         r.JWK(jwk{"d": private}),
		"a prime of an RSA key":     r.JWK(jwk{"p": private}),
		"a private EC key":          p384.JWK(jwk{"d": private}),
		"a private Ed25519 key":     ed.JWK(jwk{"d": private}),
		"a certificate only":        jwk{"kty": "RSA", "kid": "bad", "x5c": []string{"MIIB"}},
		"RSA of 1,024 bits":         r.JWK(jwk{"n": modulus(1024, 1)}),
		"RSA of 2,047 bits":         r.JWK(jwk{"n": modulus(2047, 1)}),
		"RSA of 4,097 bits":         r.JWK(jwk{"n": modulus(4097, 1)}),
		"RSA of 8,192 bits":         r.JWK(jwk{"n": modulus(8192, 1)}),
		"an even modulus":           r.JWK(jwk{"n": modulus(2048, 0)}),
		"no modulus":                r.JWK(jwk{"n": nil}),
		"a modulus, a number":       r.JWK(jwk{"n": 3233}),
		"an empty modulus":          r.JWK(jwk{"n": ""}),
		"a modulus not in base64":   r.JWK(jwk{"n": "!!!"}),
		"exponent 1":                r.JWK(jwk{"e": e(1)}),
		"exponent 2":                r.JWK(jwk{"e": e(2)}),
		"exponent even":             r.JWK(jwk{"e": e(1, 0, 0)}),
		"exponent 2^31+1":           r.JWK(jwk{"e": e(0x80, 0, 0, 1)}),
		"exponent 2^64+65537":       r.JWK(jwk{"e": e(1, 0, 0, 0, 0, 0, 1, 0, 1)}),
		"no exponent":               r.JWK(jwk{"e": nil}),
		"a point off the curve":     p384.JWK(jwk{"x": e(bytes.Repeat([]byte{1}, 48)...)}),
		"the point at infinity":     p384.JWK(jwk{"x": e(make([]byte, 48)...), "y": e(make([]byte, 48)...)}),
		"a coordinate of 49 bytes":  p384.JWK(jwk{"x": e(append([]byte{0}, x384...)...)}),
		"a coordinate too long":     p384.JWK(jwk{"x": "AA" + p384.JWK()["x"].(string)}),
		"a y of 49 bytes":           p384.JWK(jwk{"y": e(append([]byte{0}, y384...)...)}),
		"a coordinate too short":    p384.JWK(jwk{"y": "AAAA"}),
		"a coordinate missing":      p384.JWK(jwk{"y": nil}),
		"curve P-256 for a P-384":   p384.JWK(jwk{"crv": "P-256"}),
		"curve secp256k1":           p384.JWK(jwk{"crv": "secp256k1"}),
		"curve P-224":               p384.JWK(jwk{"crv": "P-224"}),
		"curve X25519":              ed.JWK(jwk{"crv": "X25519"}),
		"curve Ed448":               ed.JWK(jwk{"crv": "Ed448"}),
		"an Ed25519 x of 31 bytes":  ed.JWK(jwk{"x": e(bytes.Repeat([]byte{7}, 31)...)}),
		"an Ed25519 x of 33 bytes":  ed.JWK(jwk{"x": e(bytes.Repeat([]byte{7}, 33)...)}),
		"an Ed25519 x of no bytes":  ed.JWK(jwk{"x": ""}),
		"a member twice":            json.RawMessage(`{"kty":"OKP","kid":"bad","kid":"bad","crv":"Ed25519","x":"AA"}`),
		"invalid UTF-8":             json.RawMessage("{\"kty\":\"OKP\",\"kid\":\"\xff\",\"crv\":\"Ed25519\",\"x\":\"AA\"}"),
		"nested too deep":           r.JWK(jwk{"a": jwk{"b": jwk{"c": jwk{"d": jwk{"e": jwk{"f": jwk{"g": jwk{"h": jwk{}}}}}}}}}),
		"RSA material in an EC key": r.JWK(jwk{"kty": "EC"}),
	}
	if len(cases) < 50 {
		t.Errorf("only %d cases", len(cases))
	}
	for name, entry := range cases {
		data := []byte(`{"keys":[` + string(raw(entry)) + `,` + string(josetest.Marshal(good.JWK())) + `]}`)
		set, err := jose.ParseSet(data)
		if err != nil {
			t.Errorf("%s: the set is refused: %v", name, err)
			continue
		}
		if set.Keys.Len() != 1 || !has(set, "good") || len(set.Skipped) != 1 || set.Skipped[0].Index != 0 {
			t.Errorf("%s: %d keys, skipped %v", name, set.Keys.Len(), set.Skipped)
			continue
		}
		secret := strings.HasPrefix(name, "a private") || strings.HasPrefix(name, "a prime") || strings.HasPrefix(name, "a symmetric")
		if errors.Is(set.Skipped[0].Reason, jose.ErrPrivateKey) != secret {
			t.Errorf("%s: reason %v", name, set.Skipped[0].Reason)
		}
	}
}

// raw marshals like Marshal, but accepts invalid raw JSON, which encoding/json refuses.
func raw(entry any) []byte {
	if raw, ok := entry.(json.RawMessage); ok {
		return raw
	}
	data, err := json.Marshal(entry)
	if err != nil {
		panic(err)
	}
	return data
}

func TestParseSetAccepts(t *testing.T) {
	r := josetest.New(t, "RS256", "k")
	n4096 := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 4096), big.NewInt(1))
	for name, entry := range map[string]jwk{
		"without kid":                  r.JWK(jwk{"kid": nil}),
		"without use, alg and key_ops": r.JWK(jwk{"use": nil}),
		"key_ops verify":               r.JWK(jwk{"use": nil, "key_ops": []string{"sign", "verify"}}),
		"alg PS512":                    r.JWK(jwk{"alg": "PS512"}),
		"RSA of 4,096 bits":            r.JWK(jwk{"n": josetest.Base64(n4096.Bytes())}),
		"exponent 3":                   r.JWK(jwk{"e": "Aw"}),
		"exponent 2^31-1":              r.JWK(jwk{"e": "f____w"}),
		"with a broken certificate":    r.JWK(jwk{"x5c": []string{"???"}, "x5t": 5, "x5u": 1}),
		"with members of its own":      r.JWK(jwk{"issuer": "https://i", "exp": 1}),
		"a kid with other characters":  r.JWK(jwk{"kid": "../../k ey';--😀"}),
		"a kid of 256 bytes":           r.JWK(jwk{"kid": strings.Repeat("k", 256)}),
	} {
		set, err := jose.ParseSet(josetest.Set(entry))
		if err != nil || set.Keys.Len() != 1 || len(set.Skipped) != 0 {
			t.Errorf("%s: %v, skipped %v", name, err, set.Skipped)
		}
	}
}

func has(set jose.Set, id string) bool {
	return slices.ContainsFunc(slices.Collect(set.Keys.All()), func(key *jose.Key) bool { return key.ID() == id })
}

// parse parses a set and returns the indexes of the entries that were skipped.
func parse(t *testing.T, entries ...jwk) (set jose.Set, skipped []int) {
	t.Helper()
	set, err := jose.ParseSet(josetest.Set(entries...))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range set.Skipped {
		skipped = append(skipped, entry.Index)
	}
	return set, skipped
}

func TestParseSet_sharedKidWithoutAlg(t *testing.T) {
	a, b, c := josetest.New(t, "ES256", "same"), josetest.New(t, "EdDSA", "same"), josetest.New(t, "ES256", "other")
	set, err := jose.ParseSet(josetest.Set(a.JWK(), c.JWK(), b.JWK()))
	if err != nil || set.Keys.Len() != 1 || !has(set, "other") || len(set.Skipped) != 2 {
		t.Errorf("%v, %d keys, skipped %v", err, set.Keys.Len(), set.Skipped)
	}
	// A key for encryption makes no other key ambiguous.
	set, err = jose.ParseSet(josetest.Set(a.JWK(), b.JWK(jwk{"use": "enc"})))
	if err != nil || !has(set, "same") {
		t.Errorf("a kid shared with a key for encryption: %v", err)
	}
}

// RFC 7517 section 4.5.
func TestParseSet_repeatedKey(t *testing.T) {
	r, other := josetest.New(t, "RS256", "k"), josetest.New(t, "ES256", "other")
	alg := func(name string) jwk { return r.JWK(jwk{"alg": name}) }
	for name, tt := range map[string]struct {
		entries []jwk
		permits []string
		skipped []int
	}{
		"for three algorithms": {[]jwk{alg("RS256"), other.JWK(), alg("RS384"), alg("RS512")}, []string{"RS256", "RS384", "RS512"}, nil},
		"twice the same":       {[]jwk{alg("RS256"), alg("RS256"), other.JWK()}, []string{"RS256"}, nil},
		"once without alg":     {[]jwk{alg("RS256"), other.JWK(), r.JWK()}, []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}, nil},
		"once for encryption":  {[]jwk{r.JWK(jwk{"use": "enc", "alg": "RSA-OAEP"}), alg("RS256"), other.JWK()}, []string{"RS256"}, []int{0}},
		"once with its secret": {[]jwk{r.JWK(jwk{"d": "AAAA", "alg": "PS256"}), alg("RS256"), other.JWK()}, []string{"RS256"}, []int{0}},
	} {
		set, skipped := parse(t, tt.entries...)
		key := set.Keys.Find("k", "RS256")
		if set.Keys.Len() != 2 || !slices.Equal(skipped, tt.skipped) || key == nil {
			t.Errorf("%s: %d keys, skipped %v", name, set.Keys.Len(), set.Skipped)
			continue
		}
		for _, algorithm := range jose.Algorithms() {
			if want := slices.Contains(tt.permits, algorithm); key.Permits(algorithm) != want || (jose.Verify(algorithm, key, []byte("x"), r.As(algorithm, "k").Sign("x")) == nil) != want {
				t.Errorf("%s: permits %s: %v", name, algorithm, !want)
			}
		}
	}
}

func TestKeysFind_sharedKid(t *testing.T) {
	a, b := josetest.New(t, "RS256", "k"), josetest.New(t, "PS256", "k")
	ec, ed, ed2 := josetest.New(t, "ES256", "k"), josetest.New(t, "EdDSA", "k"), josetest.New(t, "Ed25519", "k")
	says := func(s *josetest.Signer, algorithm string) jwk { return s.JWK(jwk{"alg": algorithm}) }
	for name, tt := range map[string]struct {
		entries []jwk
		found   map[string]*josetest.Signer // by the algorithm of a token
		skipped []int
	}{
		"of two types":                      {[]jwk{says(a, "RS256"), says(ec, "ES256")}, map[string]*josetest.Signer{"RS256": a, "ES256": ec}, nil},
		"of one type":                       {[]jwk{says(a, "RS256"), says(b, "PS256")}, map[string]*josetest.Signer{"RS256": a, "PS256": b}, nil},
		"with two algorithms each":          {[]jwk{says(a, "RS256"), says(b, "PS256"), says(a, "RS384"), says(b, "PS384")}, map[string]*josetest.Signer{"RS384": a, "PS384": b}, nil},
		"one algorithm in common":           {[]jwk{says(a, "RS256"), says(b, "RS256"), says(ec, "ES256")}, map[string]*josetest.Signer{"ES256": ec}, []int{0, 1}},
		"one algorithm of three in common":  {[]jwk{says(a, "RS256"), says(b, "RS384"), says(a, "RS384"), says(ec, "ES256")}, map[string]*josetest.Signer{"ES256": ec}, []int{0, 1, 2}},
		"one without alg, of the same type": {[]jwk{a.JWK(), says(b, "RS256"), says(ec, "ES256")}, map[string]*josetest.Signer{"ES256": ec}, []int{0, 1}},
		"one without alg, of another type":  {[]jwk{ec.JWK(), says(b, "RS256")}, map[string]*josetest.Signer{"RS256": b}, []int{0}},
		"two names of one algorithm":        {[]jwk{says(ed, "EdDSA"), says(ed2, "Ed25519"), says(ec, "ES256")}, map[string]*josetest.Signer{"ES256": ec}, []int{0, 1}},
	} {
		set, skipped := parse(t, tt.entries...)
		if !slices.Equal(skipped, tt.skipped) {
			t.Errorf("%s: skipped %v", name, set.Skipped)
		}
		for algorithm, signer := range tt.found {
			if key := set.Keys.Find("k", algorithm); key == nil || key.Thumbprint() != load(t, signer).Thumbprint() {
				t.Errorf("%s: another key, or none, is found for %s", name, algorithm)
			}
		}
		if key := set.Keys.Find("k", "ES512"); key == nil || key.Permits("ES512") {
			t.Errorf("%s: for an algorithm of none of them: %v", name, key)
		}
		if key := set.Keys.Find("", "ES256"); key != nil {
			t.Errorf("%s: a key is found without a kid", name)
		}
	}
}

func TestKeysFind_singleKey(t *testing.T) {
	a, b := josetest.New(t, "ES256", "a"), josetest.New(t, "ES256", "b")
	alias := a.As("ES256", "alias")
	for name, tt := range map[string]struct {
		entries []jwk
		single  bool
		skipped []int
	}{
		"one key":                                {[]jwk{a.JWK()}, true, nil},
		"one key without kid":                    {[]jwk{a.JWK(jwk{"kid": nil})}, true, nil},
		"one key with an empty kid":              {[]jwk{a.JWK(jwk{"kid": ""})}, true, nil},
		"one key, twice":                         {[]jwk{a.JWK(), a.JWK(jwk{"alg": "ES256"})}, true, nil},
		"one key under two kids":                 {[]jwk{a.JWK(), alias.JWK()}, true, nil},
		"one key with and without kid":           {[]jwk{a.JWK(), a.JWK(jwk{"kid": nil})}, true, nil},
		"beside a key for encryption":            {[]jwk{a.JWK(), b.JWK(jwk{"use": "enc"})}, true, []int{1}},
		"beside an entry that is broken":         {[]jwk{b.JWK(jwk{"x": "AA"}), a.JWK()}, true, []int{0}},
		"two keys":                               {[]jwk{a.JWK(), b.JWK()}, false, nil},
		"two keys, one without kid":              {[]jwk{a.JWK(), b.JWK(jwk{"kid": nil})}, false, []int{1}},
		"beside two that cannot be told apart":   {[]jwk{a.JWK(), b.JWK(), josetest.New(t, "ES256", "b").JWK()}, false, []int{1, 2}},
		"beside one whose kid is no string":      {[]jwk{a.JWK(), b.JWK(jwk{"kid": 1})}, true, []int{1}},
		"two keys for different algorithms each": {[]jwk{a.JWK(jwk{"alg": "ES256"}), josetest.New(t, "RS256", "r").JWK()}, false, nil},
	} {
		set, skipped := parse(t, tt.entries...)
		key := set.Keys.Find("", "ES256")
		if set.Keys.Single() != tt.single || (key != nil) != tt.single || !slices.Equal(skipped, tt.skipped) {
			t.Errorf("%s: single %v, skipped %v, key %v", name, set.Keys.Single(), set.Skipped, key)
		}
		if key != nil && (key.Thumbprint() != load(t, a).Thumbprint() || !set.Keys.Has(key)) {
			t.Errorf("%s: another key is found", name)
		}
	}
	if _, err := jose.ParseSet(josetest.Set(a.JWK(jwk{"kid": nil}), b.JWK(jwk{"kid": nil}))); err == nil || !strings.Contains(err.Error(), "no kid") {
		t.Errorf("two keys without kid: %v", err)
	}
}

func TestNullMembersOfAKeyAreAbsent(t *testing.T) {
	a, b := josetest.New(t, "RS256", "a"), josetest.New(t, "ES256", "b")
	null := json.RawMessage("null")
	full := a.JWK(jwk{"alg": null, "use": null, "key_ops": null, "d": null, "p": null, "k": null, "x5c": null, "x5t": null, "x": null})
	set, skipped := parse(t, full, b.JWK(jwk{"y": null}), b.JWK(jwk{"kty": null}), b.JWK(jwk{"kid": null}))
	if len(skipped) != 3 || set.Keys.Len() != 1 || !set.Keys.Find("a", "PS512").Permits("PS512") {
		t.Errorf("%d keys, skipped %v", set.Keys.Len(), set.Skipped)
	}
}

func TestParseSetRefuses(t *testing.T) {
	key := string(josetest.Marshal(josetest.New(t, "ES256", "k").JWK()))
	keys := func(n int) string { // with a kid each
		var all []string
		for i := range n {
			all = append(all, strings.Replace(key, `"kid":"k"`, fmt.Sprintf(`"kid":"k%d"`, i), 1))
		}
		return `{"keys":[` + strings.Join(all, ",") + `]}`
	}
	for name, data := range map[string]string{
		"nothing":           "",
		"HTML":              "<html>",
		"an array":          "[" + key + "]",
		"one key":           key,
		"no keys":           `{}`,
		"keys null":         `{"keys":null}`,
		"keys, an object":   `{"keys":{"k":` + key + `}}`,
		"keys empty":        `{"keys":[]}`,
		"KEYS":              `{"KEYS":[` + key + `]}`,
		"keys twice":        `{"keys":[` + key + `],"keys":[` + key + `]}`,
		"keys twice, null":  `{"keys":null,"keys":[` + key + `]}`,
		"no usable key":     `{"keys":[{"kty":"oct","kid":"k","k":"AAAA"}]}`,
		"cut off":           `{"keys":[` + key,
		"cut off later":     `{"keys":[` + key + `]`,
		"a second document": keys(1) + keys(1),
		"101 keys":          keys(101),
		"513 KiB":           keys(1) + strings.Repeat(" ", 512<<10),
	} {
		if set, err := jose.ParseSet([]byte(data)); err == nil || set.Keys.Len() != 0 {
			t.Errorf("%s: %d keys, %v", name, set.Keys.Len(), err)
		}
	}
	if set, err := jose.ParseSet([]byte(keys(100))); err != nil || set.Keys.Len() != 100 {
		t.Errorf("100 keys: %d, %v", set.Keys.Len(), err)
	}
	if _, err := jose.ParseSet([]byte(`{"v":{"a":1,"a":2},"keys":[` + key + `]}`)); err != nil {
		t.Errorf("a flaw beside the keys costs them: %v", err)
	}
}

func TestThumbprint(t *testing.T) {
	// The example of RFC 7638 section 3.1.
	const n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
	set, err := jose.ParseSet(josetest.Set(jwk{"kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"}))
	if err != nil {
		t.Fatal(err)
	}
	key := set.Keys.Find("2011-04-29", "RS256")
	if key.Thumbprint() != "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs" || key.ID() != "2011-04-29" {
		t.Errorf("thumbprint %q, kid %q", key.Thumbprint(), key.ID())
	}
	p256 := josetest.New(t, "ES256", "k")
	x, y := p256.JWK()["x"], p256.JWK()["y"]
	sum := sha256.Sum256(fmt.Appendf(nil, `{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, x, y))
	if got := load(t, p256).Thumbprint(); got != josetest.Base64(sum[:]) {
		t.Errorf("thumbprint of an EC key: %q", got)
	}
}

// No key of an accepted set makes a verification panic.
func FuzzParseSet(f *testing.F) {
	for _, algorithm := range []string{"RS256", "ES256", "ES384", "ES512", "EdDSA"} {
		f.Add(josetest.Set(josetest.New(f, algorithm, "k").JWK()))
	}
	ed := josetest.New(f, "EdDSA", "k")
	f.Add(josetest.Set(ed.JWK(jwk{"x": "AAAA"}), ed.JWK(jwk{"alg": "EdDSA", "kid": "l"})))
	f.Add([]byte(`{"keys":[{"kty":"RSA","kid":"k","n":"AQAB","e":"AQABAQABAQAB"},{"kty":"EC","kid":"k","crv":"P-256","x":"AA","y":"AA"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AA"},null,1,"x",[],{"kty":"AKP"}],"keys":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := jose.ParseSet(data)
		if (err == nil) != (set.Keys.Len() > 0) {
			t.Fatalf("%d keys and %v", set.Keys.Len(), err)
		}
		for key := range set.Keys.All() {
			if key.Thumbprint() == "" || !set.Keys.Has(key) {
				t.Errorf("key %q, thumbprint %q", key.ID(), key.Thumbprint())
			}
			for _, algorithm := range jose.Algorithms() {
				for _, size := range []int{0, 64, 96, 132, 256} {
					if err := jose.Verify(algorithm, key, []byte("input"), make([]byte, size)); err == nil {
						t.Errorf("%s: a signature of zeros holds", algorithm)
					}
				}
			}
		}
	})
}

// FuzzEntryBesideAGoodKey adds an arbitrary entry to a set with a good key: the key stays
// usable, and the entry is usable only if it is usable alone.
func FuzzEntryBesideAGoodKey(f *testing.F) {
	good, ed, r := josetest.New(f, "ES256", "good"), josetest.New(f, "EdDSA", "k"), josetest.New(f, "RS256", "k")
	null := json.RawMessage("null")
	for _, entry := range []any{
		ed.JWK(), r.JWK(), r.JWK(jwk{"alg": "RS384"}), ed.JWK(jwk{"kid": nil}), ed.JWK(jwk{"kid": "good"}), ed.JWK(jwk{"x": "AAAA"}), good.JWK(), good.JWK(jwk{"alg": "ES256"}),
		r.JWK(jwk{"d": null, "use": null}), r.JWK(jwk{"n": null}), jwk{"kty": "oct", "k": "AA"}, nil, 1, "x",
	} {
		f.Add(raw(entry))
	}
	f.Add([]byte(`{"kty":"OKP","kid":"k","kid":"k"}`))
	only := josetest.Marshal(good.JWK(jwk{"alg": "ES256"}))
	set := func(entries ...[]byte) []byte {
		return slices.Concat([]byte(`{"keys":[`), bytes.Join(entries, []byte(",")), []byte("]}"))
	}
	f.Fuzz(func(t *testing.T, entry []byte) {
		if !json.Valid(entry) || len(entry) > 10_000 {
			return
		}
		both, err := jose.ParseSet(set(entry, only))
		alone, refused := jose.ParseSet(set(entry))
		key := both.Keys.Find("good", "ES256")
		rival := refused == nil && alone.Keys.Find("good", "ES256") != nil
		if err != nil || !rival && (key == nil || !key.Permits("ES256") || key.Thumbprint() != load(t, good).Thumbprint()) {
			if !rival {
				t.Fatalf("%s costs the good key: %v", entry, err)
			}
			return
		}
		for found := range both.Keys.All() {
			if found.Thumbprint() != load(t, good).Thumbprint() && (refused != nil || alone.Keys.Find(found.ID(), "") == nil) {
				t.Errorf("%s is used beside another key, and not by itself: %v", entry, refused)
			}
		}
	})
}
