// Package josetest creates keys, JWK sets and tokens for tests. It uses the standard
// library only, so that it is independent of the code under test.
package josetest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"
)

// JSON holds the members of a JSON object.
type JSON = map[string]any

// Signer signs tokens.
type Signer struct {
	// KeyID is the kid of the JWK and of the header of tokens.
	KeyID string
	// Algorithm is the alg of the header of tokens, and the algorithm of Sign.
	Algorithm string
	Private   crypto.Signer
}

// New generates a key for the algorithm: one of RS*, PS*, ES*, EdDSA and Ed25519.
func New(t testing.TB, algorithm, keyID string) *Signer {
	t.Helper()
	var private crypto.Signer
	var err error
	switch algorithm {
	case "ES256":
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ES512":
		private, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "EdDSA", "Ed25519":
		_, private, err = ed25519.GenerateKey(rand.Reader)
	default:
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &Signer{KeyID: keyID, Algorithm: algorithm, Private: private}
}

// As returns a signer with the same key under another algorithm and kid.
func (s *Signer) As(algorithm, keyID string) *Signer {
	return &Signer{KeyID: keyID, Algorithm: algorithm, Private: s.Private}
}

// JWK returns the public key with kid and use. Further members are added or replace
// these; a nil member is removed.
func (s *Signer) JWK(members ...JSON) JSON {
	jwk := JSON{"kid": s.KeyID, "use": "sig"}
	switch public := s.Private.Public().(type) {
	case *rsa.PublicKey:
		jwk["kty"], jwk["n"], jwk["e"] = "RSA", Base64(public.N.Bytes()), Base64(big.NewInt(int64(public.E)).Bytes())
	case *ecdsa.PublicKey:
		point, err := public.Bytes() // 0x04, x, y
		if err != nil {
			panic(err)
		}
		size := len(point) / 2
		jwk["kty"], jwk["crv"] = "EC", public.Params().Name
		jwk["x"], jwk["y"] = Base64(point[1:1+size]), Base64(point[1+size:])
	case ed25519.PublicKey:
		jwk["kty"], jwk["crv"], jwk["x"] = "OKP", "Ed25519", Base64(public)
	}
	for _, more := range members {
		for name, value := range more {
			if jwk[name] = value; value == nil {
				delete(jwk, name)
			}
		}
	}
	return jwk
}

// Set returns a JWK set.
func Set(keys ...JSON) []byte { return Marshal(JSON{"keys": keys}) }

// Header returns the header of a token, with further members as in [Signer.JWK].
func (s *Signer) Header(members ...JSON) JSON {
	header := JSON{"alg": s.Algorithm, "kid": s.KeyID, "typ": "at+jwt"}
	for _, more := range members {
		for name, value := range more {
			if header[name] = value; value == nil {
				delete(header, name)
			}
		}
	}
	return header
}

// Token returns a signed token. Header and claims are encoded by [Marshal].
func (s *Signer) Token(header, claims any) string {
	input := Base64(Marshal(header)) + "." + Base64(Marshal(claims))
	return input + "." + Base64(s.Sign(input))
}

// Sign returns a signature in JWS format (RFC 7518 section 3).
func (s *Signer) Sign(input string) []byte {
	h := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[s.Algorithm[len(s.Algorithm)-3:]]
	var opts crypto.SignerOpts = h
	message := []byte(input)
	switch {
	case strings.HasPrefix(s.Algorithm, "Ed"):
		opts = crypto.Hash(0)
		return s.sign(message, opts)
	case strings.HasPrefix(s.Algorithm, "PS"):
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
	}
	digest := h.New()
	digest.Write(message)
	if private, ok := s.Private.(*ecdsa.PrivateKey); ok {
		return signECDSA(private, digest.Sum(nil))
	}
	return s.sign(digest.Sum(nil), opts)
}

func (s *Signer) sign(message []byte, opts crypto.SignerOpts) []byte {
	signature, err := s.Private.Sign(rand.Reader, message, opts)
	if err != nil {
		panic(err)
	}
	return signature
}

func signECDSA(private *ecdsa.PrivateKey, digest []byte) []byte {
	r, s, err := ecdsa.Sign(rand.Reader, private, digest)
	if err != nil {
		panic(err)
	}
	size := (private.Params().BitSize + 7) / 8
	return append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
}

// HMAC returns a token signed with HS256.
func HMAC(secret []byte, header, claims any) string {
	input := Base64(Marshal(header)) + "." + Base64(Marshal(claims))
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(input))
	return input + "." + Base64(mac.Sum(nil))
}

// Base64 encodes data as base64url without padding.
func Base64(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// Decode decodes the result of [Base64].
func Decode(text string) ([]byte, error) { return base64.RawURLEncoding.DecodeString(text) }

// Marshal returns a string unchanged, and the JSON of any other value.
func Marshal(value any) []byte {
	if text, ok := value.(string); ok {
		return []byte(text)
	}
	data, err := json.Marshal(value)
	if err != nil {
		panic(fmt.Sprintf("josetest: %v", err))
	}
	return data
}
