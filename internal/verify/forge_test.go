package verify_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"

	"github.com/cezzis/tokenbroker/internal/jose/josetest"
)

// pssSalt returns a PS256 token with a salt of this length.
func pssSalt(w *world, length int) string {
	input := josetest.Base64(josetest.Marshal(w.ps.Header())) + "." + josetest.Base64(josetest.Marshal(claims()))
	digest := sha256.Sum256([]byte(input))
	signature, err := rsa.SignPSS(rand.Reader, w.ps.Private.(*rsa.PrivateKey), crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: length})
	if err != nil {
		panic(err)
	}
	return input + "." + josetest.Base64(signature)
}

// forgeSmallOrder forges a token without a private key, for a public key that is the neutral
// element of the curve.
func forgeSmallOrder(w *world) string {
	input := josetest.Base64(josetest.Marshal(w.ed.Header(jsonObject{"kid": "small"}))) + "." + josetest.Base64(josetest.Marshal(claims()))
	return input + "." + josetest.Base64(append([]byte{1}, make([]byte, 63)...))
}

// forgeExponentOne forges a token without a private key, for an RSA key with exponent 1: the
// signature equals the padded digest of RFC 8017 section 9.2.
func forgeExponentOne(w *world) string {
	input := josetest.Base64(josetest.Marshal(w.rs.Header(jsonObject{"kid": "e1"}))) + "." + josetest.Base64(josetest.Marshal(claims()))
	prefix := "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"
	digest := sha256.Sum256([]byte(input))
	info := prefix + string(digest[:])
	padding := make([]byte, 256-3-len(info))
	for i := range padding {
		padding[i] = 0xff
	}
	return input + "." + josetest.Base64(fmt.Appendf(nil, "\x00\x01%s\x00%s", padding, info))
}
