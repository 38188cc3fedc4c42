package devidp

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// key is a signing key. It is immutable.
type key struct {
	id, algorithm string
	public        map[string]string // the published JWK
	sign          func(input []byte) ([]byte, error)
}

// newKey returns a new key for an algorithm that New accepts.
func newKey(algorithm string) key {
	k := key{id: rand.Text(), algorithm: algorithm}
	var err error
	switch algorithm {
	case "RS256":
		err = k.generateRSA()
	case "ES256":
		err = k.generateECDSA()
	case "EdDSA":
		err = k.generateEd25519()
	}
	if err != nil {
		panic(fmt.Sprintf("devidp: generating a key for %s: %v", algorithm, err))
	}
	k.public["kid"], k.public["alg"], k.public["use"] = k.id, algorithm, "sig"
	return k
}

func (k *key) generateRSA() error {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	k.public = map[string]string{
		"kty": "RSA",
		"n":   encode(private.N.Bytes()),
		"e":   encode(big.NewInt(int64(private.E)).Bytes()),
	}
	k.sign = func(input []byte) ([]byte, error) {
		digest := sha256.Sum256(input)
		return rsa.SignPKCS1v15(nil, private, crypto.SHA256, digest[:])
	}
	return nil
}

func (k *key) generateECDSA() error {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	point, err := private.PublicKey.Bytes() // 4, X, Y
	if err != nil {
		return err
	}
	k.public = map[string]string{"kty": "EC", "crv": "P-256", "x": encode(point[1:33]), "y": encode(point[33:])}
	k.sign = func(input []byte) ([]byte, error) {
		digest := sha256.Sum256(input)
		r, s, err := ecdsa.Sign(rand.Reader, private, digest[:])
		if err != nil {
			return nil, err
		}
		// RFC 7518, section 3.4: R and S at full length, not ASN.1.
		signature := make([]byte, 64)
		r.FillBytes(signature[:32])
		s.FillBytes(signature[32:])
		return signature, nil
	}
	return nil
}

func (k *key) generateEd25519() error {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	k.public = map[string]string{"kty": "OKP", "crv": "Ed25519", "x": encode(public)}
	k.sign = func(input []byte) ([]byte, error) { return ed25519.Sign(private, input), nil }
	return nil
}

// Mint returns a JWT with exactly these claims and the header of an access token, signed
// with the current key. It panics if claims cannot be encoded as JSON.
func (s *Server) Mint(claims map[string]any) redact.String { return s.MintWith(nil, claims) }

// MintWith is Mint with additional header members, which may replace alg, kid and typ. A
// nil member removes one. The header does not change the key and the algorithm of the
// signature.
func (s *Server) MintWith(header, claims map[string]any) redact.String {
	key := (*s.keys.Load())[0]
	members := map[string]any{"alg": key.algorithm, "kid": key.id, "typ": "at+jwt"}
	maps.Copy(members, header)
	maps.DeleteFunc(members, func(_ string, value any) bool { return value == nil })

	input := part(members) + "." + part(claims)
	signature, err := key.sign([]byte(input))
	if err != nil {
		panic(fmt.Sprintf("devidp: signing: %v", err))
	}
	return redact.New(input + "." + encode(signature))
}

func part(members map[string]any) string {
	data, err := json.Marshal(members)
	if err != nil {
		panic(fmt.Sprintf("devidp: a token's header and claims must be JSON: %v", err))
	}
	return encode(data)
}

func encode(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }
