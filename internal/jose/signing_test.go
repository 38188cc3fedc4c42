package jose_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
)

// keyAlgorithms has one algorithm for each kind of key.
var keyAlgorithms = []string{"RS256", "ES256", "ES384", "ES512", "EdDSA"}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func pkcs8(t testing.TB, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("PRIVATE KEY", der)
}

func sec1(t testing.TB, key *ecdsa.PrivateKey) string {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("EC PRIVATE KEY", der)
}

// privateJWK returns the key as a JWK without using the code under test.
func privateJWK(t testing.TB, s *josetest.Signer, members ...josetest.JSON) string {
	t.Helper()
	private := josetest.JSON{}
	switch key := s.Private.(type) {
	case *rsa.PrivateKey:
		private["d"], private["p"], private["q"] = josetest.Base64(key.D.Bytes()), josetest.Base64(key.Primes[0].Bytes()), josetest.Base64(key.Primes[1].Bytes())
	case *ecdsa.PrivateKey:
		d, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		private["d"] = josetest.Base64(d)
	case ed25519.PrivateKey:
		private["d"] = josetest.Base64(key.Seed())
	}
	return string(josetest.Marshal(s.JWK(append([]josetest.JSON{private}, members...)...)))
}

// spellings returns a key in all supported formats.
func spellings(t testing.TB, s *josetest.Signer) map[string]string {
	t.Helper()
	all := map[string]string{"PKCS#8": pkcs8(t, s.Private), "JWK": privateJWK(t, s), "JWK without kid and use": privateJWK(t, s, josetest.JSON{"kid": nil, "use": nil})}
	switch key := s.Private.(type) {
	case *rsa.PrivateKey:
		all["PKCS#1"] = pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
	case *ecdsa.PrivateKey:
		all["SEC1"] = sec1(t, key)
		all["SEC1 after its parameters"] = pemOf("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}) + all["SEC1"]
	}
	all["PKCS#8 with CRLF and words around it"] = "Bag Attributes\r\n    friendlyName: x\r\n" + strings.ReplaceAll(all["PKCS#8"], "\n", "\r\n") + "\r\nend"
	return all
}

func parseKey(t testing.TB, text string) *jose.SigningKey {
	t.Helper()
	key, err := jose.ParseSigningKey(redact.New(text))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

var someClaims = map[string]any{"iss": "client", "aud": "https://idp.example/ü?a=b&c"}

// TestSign_otherLibrariesVerify verifies signatures with a library that shares no code with
// this package.
func TestSign_otherLibrariesVerify(t *testing.T) {
	tried := 0
	for _, kind := range keyAlgorithms {
		signer := josetest.New(t, kind, "k1")
		for spelling, text := range spellings(t, signer) {
			key := parseKey(t, text)
			for _, algorithm := range jose.Algorithms() {
				signed, err := jose.Sign(key, jose.SigningHeader{Algorithm: algorithm, Type: "JWT", KeyID: "k1"}, someClaims)
				if !key.Permits(algorithm) {
					if !errors.Is(err, jose.ErrAlgorithm) {
						t.Errorf("%s as %s signs with %s: %v", kind, spelling, algorithm, err)
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s as %s: %v", kind, spelling, err)
				}
				tried++
				elsewhere(t, signed.Reveal(), algorithm, signer.Private.Public())
			}
		}
	}
	if tried < 50 {
		t.Errorf("only %d signatures were tried", tried)
	}
}

func elsewhere(t *testing.T, text, algorithm string, public any) {
	t.Helper()
	if algorithm == "Ed25519" { // a name that the library does not know (RFC 9864)
		part, err := jose.Split(redact.New(text))
		if key, ok := public.(ed25519.PublicKey); err != nil || !ok || !ed25519.Verify(key, part.SigningInput, part.Signature) {
			t.Errorf("%s: %v", algorithm, err)
		}
		return
	}
	token, err := jwt.Parse(text, func(*jwt.Token) (any, error) { return public, nil }, jwt.WithValidMethods([]string{algorithm}), jwt.WithStrictDecoding())
	if err != nil {
		t.Errorf("%s: %v", algorithm, err)
		return
	}
	claims, _ := token.Claims.(jwt.MapClaims)
	if !maps.Equal(claims, someClaims) || token.Header["kid"] != "k1" || token.Header["typ"] != "JWT" || len(token.Header) != 3 {
		t.Errorf("%s: header %v, claims %v", algorithm, token.Header, claims)
	}
}

func TestHS256(t *testing.T) {
	secret := redact.New(strings.Repeat("ü", 16))
	signed, err := jose.SignHS256(secret, jose.SigningHeader{Type: "JWT", KeyID: "k1"}, someClaims)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere(t, signed.Reveal(), "HS256", []byte(secret.Reveal()))
	if _, err := jose.SignHS256(redact.New(strings.Repeat("x", 31)), jose.SigningHeader{}, someClaims); !errors.Is(err, jose.ErrShortSecret) {
		t.Errorf("a secret of 31 bytes: %v", err)
	}
}

func TestAlgorithmOfAKey(t *testing.T) {
	rsaKey := josetest.New(t, "RS256", "k1")
	for want, text := range map[string]string{
		"RS256":   pkcs8(t, rsaKey.Private),
		"PS384":   privateJWK(t, rsaKey, josetest.JSON{"alg": "PS384"}),
		"ES384":   pkcs8(t, josetest.New(t, "ES384", "k1").Private),
		"EdDSA":   pkcs8(t, josetest.New(t, "EdDSA", "k1").Private),
		"Ed25519": privateJWK(t, josetest.New(t, "EdDSA", "k1"), josetest.JSON{"alg": "Ed25519"}),
	} {
		if got := parseKey(t, text).Algorithm(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if parseKey(t, privateJWK(t, rsaKey, josetest.JSON{"alg": "PS384"})).Permits("RS256") {
		t.Error("a JWK with an alg signs with another")
	}
}

// RFC 8037 appendix A.1 and A.3.
func TestThumbprintOfAPrivateKey(t *testing.T) {
	const (
		d          = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
		x          = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
		thumbprint = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
	)
	key := parseKey(t, `{"kty":"OKP","crv":"Ed25519","d":"`+d+`","x":"`+x+`"}`)
	if key.Thumbprint() != thumbprint || key.ID() != "" {
		t.Errorf("%s, %q", key.Thumbprint(), key.ID())
	}
	if seed, err := josetest.Decode(d); err != nil || parseKey(t, pkcs8(t, ed25519.NewKeyFromSeed(seed))).Thumbprint() != thumbprint {
		t.Errorf("as PEM: %v", err)
	}
}

func certificateOf(t testing.TB, private crypto.Signer) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "c"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func TestCertificatesBesideAKey(t *testing.T) {
	for _, kind := range keyAlgorithms {
		signer, other := josetest.New(t, kind, "k1"), josetest.New(t, "ES256", "k2")
		own, foreign := certificateOf(t, signer.Private), certificateOf(t, other.Private)
		key := parseKey(t, pemOf("CERTIFICATE", foreign.Raw)+pkcs8(t, signer.Private)+pemOf("CERTIFICATE", own.Raw))
		if len(key.Certificates()) != 2 || !key.Certificates()[1].Equal(own) || !key.Certifies(own) || key.Certifies(foreign) {
			t.Errorf("%s: %d certificates, own %v, foreign %v", kind, len(key.Certificates()), key.Certifies(own), key.Certifies(foreign))
		}
	}
	signer := josetest.New(t, "ES256", "k1")
	signed, err := jose.Sign(parseKey(t, pkcs8(t, signer.Private)), jose.SigningHeader{Algorithm: "ES256", CertificateThumbprint: "abc"}, someClaims)
	if err != nil {
		t.Fatal(err)
	}
	compact, err := jose.Split(signed)
	if err != nil || string(compact.Header) != `{"alg":"ES256","x5t#S256":"abc"}` {
		t.Errorf("%s, %v", compact.Header, err)
	}
}

// badKeys returns invalid texts with a part of the error for each.
func badKeys(t testing.TB) map[string]string {
	t.Helper()
	rsaKey, ec, ed := josetest.New(t, "RS256", "k1"), josetest.New(t, "ES256", "k1"), josetest.New(t, "EdDSA", "k1")
	other := josetest.New(t, "RS256", "k1")
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	exchange, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	publicDER, err := x509.MarshalPKIXPublicKey(ec.Private.Public())
	if err != nil {
		t.Fatal(err)
	}
	good := pkcs8(t, ec.Private)
	withHeader := strings.Replace(pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey.Private.(*rsa.PrivateKey))), "\n", "\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n", 1)
	return map[string]string{
		"":                             "contains no private key",
		"a client secret, canary":      "contains no private key",
		strings.Repeat("x", 17<<10):    "too long",
		good + pkcs8(t, ed.Private):    "more than one private key",
		pemOf("PUBLIC KEY", publicDER): "is a public key",
		pemOf("CERTIFICATE", certificateOf(t, ec.Private).Raw): "contains no private key",
		pemOf("CERTIFICATE", []byte("canary")) + good:          "PEM block that cannot be parsed",
		pemOf("ENCRYPTED PRIVATE KEY", []byte("canary")):       "is encrypted",
		withHeader:                                     "is encrypted",
		pemOf("PRIVATE KEY", []byte("canary")):         "PEM block that cannot be parsed",
		pemOf("RSA PRIVATE KEY", []byte("canary")):     "PEM block that cannot be parsed",
		pemOf("EC PRIVATE KEY", []byte("canary")):      "PEM block that cannot be parsed",
		pemOf("OPENSSH PRIVATE KEY", nil):              "neither a private key nor a certificate",
		strings.ReplaceAll(good, "\n", `\n`):           `line breaks are written as \n`,
		good[:len(good)-20]:                            "PEM block that cannot be parsed",
		pkcs8(t, weak):                                 "its modulus is not odd and of 2048 to 4096 bits",
		pkcs8(t, p224):                                 "not RSA, ECDSA on",
		pkcs8(t, exchange):                             "not RSA, ECDSA on",
		`{"type":"service_account"}`:                   "contains no private key",
		`{"kty":"oct","k":"canary"}`:                   "not RSA, ECDSA on",
		`{"kty":`:                                      "cannot be parsed",
		`{"kty":"EC","kty":"EC"}`:                      "cannot be parsed",
		string(josetest.Set(josetest.JSON{})):          "is a JWK set",
		string(josetest.Marshal(ec.JWK())):             "is a public key",
		privateJWK(t, ec, josetest.JSON{"use": "enc"}): "not for signing",
		privateJWK(t, ec, josetest.JSON{"key_ops": []string{"verify"}}):                                             "not for signing",
		privateJWK(t, ec, josetest.JSON{"alg": "RS256"}):                                                            "alg does not match",
		privateJWK(t, ec, josetest.JSON{"kid": 5}):                                                                  "kid",
		privateJWK(t, ec, josetest.JSON{"kid": strings.Repeat("x", 257)}):                                           "kid",
		privateJWK(t, ec, josetest.JSON{"crv": "secp256k1"}):                                                        "not RSA, ECDSA on",
		privateJWK(t, ec, josetest.JSON{"d": "AAAA"}):                                                               "material cannot be parsed",
		privateJWK(t, ec, josetest.JSON{"d": josetest.Base64(bytes.Repeat([]byte{1}, 32))}):                         "does not match its public part",
		privateJWK(t, ec, josetest.JSON{"d": "canary+/"}):                                                           "material cannot be parsed",
		privateJWK(t, ec, josetest.JSON{"d": 5}):                                                                    "material cannot be parsed",
		privateJWK(t, ed, josetest.JSON{"d": "AAAA"}):                                                               "material cannot be parsed",
		privateJWK(t, ed, josetest.JSON{"d": josetest.Base64(bytes.Repeat([]byte{1}, 32))}):                         "does not match its public part",
		privateJWK(t, rsaKey, josetest.JSON{"p": nil}):                                                              "lacks the primes",
		privateJWK(t, rsaKey, josetest.JSON{"d": "AQAB"}):                                                           "does not match its public part",
		privateJWK(t, rsaKey, josetest.JSON{"p": "AQ"}):                                                             "does not match its public part",
		privateJWK(t, rsaKey, josetest.JSON{"q": "canary+/"}):                                                       "material cannot be parsed",
		privateJWK(t, rsaKey, josetest.JSON{"n": josetest.Base64(other.Private.(*rsa.PrivateKey).N.Bytes())}):       "does not match its public part",
		privateJWK(t, rsaKey, josetest.JSON{"e": "AQ"}):                                                             "exponent",
		privateJWK(t, rsaKey, josetest.JSON{"e": josetest.Base64([]byte{1, 0, 0, 0, 0, 0, 0, 0, 1}), "use": "sig"}): "exponent",
	}
}

func TestParseSigningKey_refuses(t *testing.T) {
	for text, says := range badKeys(t) {
		key, err := jose.ParseSigningKey(redact.New(text))
		if key != nil || err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want %q, got %v of %.60q", says, err, text)
			continue
		}
		if strings.Contains(err.Error(), "canary") {
			t.Errorf("quoted: %v", err)
		}
	}
}

func TestLooksLikeKey(t *testing.T) {
	ec := josetest.New(t, "ES256", "k1")
	for _, text := range []string{
		pkcs8(t, ec.Private), "\n " + privateJWK(t, ec), strings.ReplaceAll(pkcs8(t, ec.Private), "\n", `\n`),
		`{"private_key":"x"}`, "-----BEGIN CERTIFICATE-----", `{"keys":[]}`,
	} {
		if !jose.LooksLikeKey(redact.New(text)) {
			t.Errorf("%.40q does not", text)
		}
	}
	for _, text := range []string{"", "secret", "{secret}", `{"a":"b"}`, "-----begin"} {
		if jose.LooksLikeKey(redact.New(text)) {
			t.Errorf("%q does", text)
		}
	}
}

func TestKeysDoNotPrintThemselves(t *testing.T) {
	for _, kind := range keyAlgorithms {
		signer := josetest.New(t, kind, "k1")
		key := parseKey(t, privateJWK(t, signer)+"\n")
		secrets := secretsOf(t, signer)
		wrapped := struct {
			Key   *jose.SigningKey
			inner jose.SigningKey
			any   any
		}{key, *key, *key}
		var out strings.Builder
		for _, value := range []any{key, *key, wrapped, &wrapped, []any{*key}, map[string]any{"k": *key}} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
				fmt.Fprintf(&out, verb+"\n", value)
			}
			if text, err := json.Marshal(value); err == nil {
				out.Write(text)
			}
			slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "key", value)
			slog.New(slog.NewTextHandler(&out, nil)).Info("x", "key", value)
		}
		for _, secret := range secrets {
			if len(secret) < 10 || strings.Contains(out.String(), secret) {
				t.Errorf("%s: printed", kind)
			}
		}
		if !strings.Contains(out.String(), "[private key "+key.Thumbprint()) {
			t.Errorf("%s: %s", kind, out.String())
		}
	}
}

// secretsOf returns the forms in which a key could leak: numbers and bytes as fmt prints
// them, and their encodings.
func secretsOf(t testing.TB, s *josetest.Signer) []string {
	t.Helper()
	var raw []byte
	switch key := s.Private.(type) {
	case *rsa.PrivateKey:
		raw = key.D.Bytes()
	case *ecdsa.PrivateKey:
		raw = key.D.Bytes() //nolint:staticcheck // the number is what fmt would print
	case ed25519.PrivateKey:
		raw = key.Seed()
	}
	number := new(big.Int).SetBytes(raw)
	some := slices.Clone(raw[:8])
	return []string{josetest.Base64(raw)[:20], number.String()[:20], fmt.Sprintf("%x", some), strings.Trim(fmt.Sprint(some), "[]"), fmt.Sprintf("%#v", some)[7:40]}
}

// FuzzParseSigningKey: each text is either a key that signs and verifies, or an error that
// quotes nothing of it.
func FuzzParseSigningKey(f *testing.F) {
	for _, kind := range keyAlgorithms {
		for _, text := range spellings(f, josetest.New(f, kind, "k1")) {
			f.Add(text)
		}
	}
	for text := range badKeys(f) {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		key, err := jose.ParseSigningKey(redact.New(text))
		if err != nil {
			if key != nil || len(err.Error()) > 120 {
				t.Errorf("%v: %v", key, err)
			}
			return
		}
		if !jose.LooksLikeKey(redact.New(text)) {
			t.Error("a key that does not look like one")
		}
		signed, err := jose.Sign(key, jose.SigningHeader{Algorithm: key.Algorithm()}, someClaims)
		if err != nil {
			t.Fatalf("it does not sign: %v", err)
		}
		if _, err := jose.Split(signed); err != nil {
			t.Error(err)
		}
		if !jose.SignedBy(key, signed) {
			t.Error("its public part does not verify what it signed")
		}
	})
}

func BenchmarkAssertion(b *testing.B) {
	for _, kind := range []string{"RS256", "ES256", "EdDSA"} {
		text := redact.New(pkcs8(b, josetest.New(b, kind, "k1").Private))
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				key, err := jose.ParseSigningKey(text)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := jose.Sign(key, jose.SigningHeader{Algorithm: kind}, someClaims); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
